"""A line search for the strong Wolfe conditions that keeps working down to round-off.

Along ``phi(a) = f(theta + a d)`` with ``phi'(0) < 0`` a step is accepted if

* ``phi(a) <= phi(0) + c1 a phi'(0)`` (sufficient decrease), and
* ``|phi'(a)| <= c2 |phi'(0)|`` (curvature).

Where decreases are below the noise of the loss, the first condition can no longer be decided from
values. Its equivalent for a quadratic, ``phi'(a) <= (2 c1 - 1) phi'(0)``, then stands in for it, as
long as ``phi(a) <= ceiling``, a bound just above the lowest loss so far.

Sources: J. Nocedal and S. Wright, Numerical Optimization (2006), algorithms 3.5 and 3.6, equation
3.59; W. Hager and H. Zhang, SIAM J. Optim. 16 (2005), doi:10.1137/030601880, equation 4.1 (the
approximate Wolfe conditions).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

# A trial step nearer to an end of the bracket than this share of its width is moved inwards.
INSET = 0.1
# Extrapolation beyond a step that is still going down: between these multiples of the last stride.
LEAST_GROWTH, MOST_GROWTH = 1.1, 4.0
# Towards the last finite step after a non-finite one; the first factor holds before any step.
SHRINK_AT_START, SHRINK = 0.1, 0.5


@dataclass(frozen=True)
class Trial:
    """A point on the line: step ``a``, ``phi(a)``, ``phi'(a)``, and the tensors behind them."""

    step: float
    value: float
    slope: float
    theta: Tensor  # (n,)
    loss: Tensor  # ()
    gradient: Tensor  # (n,)

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are finite (a non-finite gradient makes the slope so too)."""
        return math.isfinite(self.value) and math.isfinite(self.slope)


@dataclass(frozen=True)
class WolfeConditions:
    """The conditions of the module's docstring for one line.

    ``ceiling`` is the largest loss the approximate condition allows; ``noise`` the difference
    below which two losses count as equal.
    """

    value: float
    slope: float
    c1: float
    c2: float
    ceiling: float
    noise: float

    def decrease(self, trial: Trial) -> bool:
        """Sufficient decrease, exactly or in its form for losses at the level of round-off."""
        if trial.value <= self.value + self.c1 * trial.step * self.slope:
            return True
        return trial.value <= self.ceiling and trial.slope <= (2 * self.c1 - 1) * self.slope

    def curvature(self, trial: Trial) -> bool:
        """The strong curvature condition."""
        return abs(trial.slope) <= -self.c2 * self.slope

    def higher(self, trial: Trial, other: Trial) -> bool:
        """Whether the loss at ``trial`` is above that at ``other`` by more than noise."""
        return trial.value > other.value + self.noise


class SearchEnd(Enum):
    """How a line search ended."""

    WOLFE = "both conditions hold"
    DECREASE = "sufficient decrease, without the curvature condition"
    FLAT = "failed: no trial differed from the start by more than noise"
    FAILED = "failed"


@dataclass(frozen=True)
class SearchResult:
    """The accepted trial (None if the search failed), how it ended, and the evaluations spent."""

    trial: Trial | None
    end: SearchEnd
    evaluations: int


Evaluate = Callable[[float], Trial]


@dataclass
class _Search:
    """One search in progress: counts evaluations and sees whether the loss changes at all."""

    evaluate: Evaluate
    conditions: WolfeConditions
    budget: int
    spent: int = 0
    changed: bool = False

    def trial(self, step: float) -> Trial:
        self.spent += 1
        trial = self.evaluate(step)
        if not trial.finite or abs(trial.value - self.conditions.value) > self.conditions.noise:
            self.changed = True
        return trial

    def accept(self, trial: Trial) -> SearchResult:
        return SearchResult(trial, SearchEnd.WOLFE, self.spent)

    def give_up(self, best: Trial) -> SearchResult:
        """The best trial if it is a decrease beyond noise; otherwise a failure."""
        if best.step > 0 and best.value < self.conditions.value - self.conditions.noise:
            return SearchResult(best, SearchEnd.DECREASE, self.spent)
        end = SearchEnd.FAILED if self.changed else SearchEnd.FLAT
        return SearchResult(None, end, self.spent)


def wolfe_search(
    evaluate: Evaluate,
    start: Trial,
    first_step: float,
    conditions: WolfeConditions,
    max_evaluations: int,
) -> SearchResult:
    """Find a step that satisfies ``conditions``: Nocedal and Wright, algorithm 3.5.

    ``start`` is the trial at step 0. If the evaluations run out, the lowest trial with sufficient
    decrease is returned, if there is one.
    """
    search = _Search(evaluate, conditions, max_evaluations)
    previous, step = start, first_step
    while search.spent < max_evaluations and math.isfinite(step):
        trial = search.trial(step)
        if (
            not trial.finite
            or not conditions.decrease(trial)
            or (previous is not start and conditions.higher(trial, previous))
        ):
            return _zoom(search, previous, trial)
        if conditions.curvature(trial):
            return search.accept(trial)
        if trial.slope >= 0:
            return _zoom(search, trial, previous)
        step = _extrapolate(previous, trial)
        previous = trial
    return search.give_up(previous)


def _zoom(search: _Search, low: Trial, high: Trial) -> SearchResult:
    """Narrow a bracket down to an acceptable step: Nocedal and Wright, algorithm 3.6.

    ``low`` has sufficient decrease (or is the start) and slopes down towards ``high``.
    """
    conditions = search.conditions
    while search.spent < search.budget:
        step = _interpolate(low, high, conditions.noise)
        if step in (low.step, high.step):  # the bracket cannot be divided any more
            break
        trial = search.trial(step)
        if not trial.finite or not conditions.decrease(trial) or conditions.higher(trial, low):
            high = trial
            continue
        if conditions.curvature(trial):
            return search.accept(trial)
        if trial.slope * (high.step - low.step) >= 0:
            high = low
        low = trial
    return search.give_up(low)


def _extrapolate(previous: Trial, trial: Trial) -> float:
    """A longer step: the minimiser of the cubic through both, within the allowed growth."""
    stride = trial.step - previous.step
    least, most = trial.step + LEAST_GROWTH * stride, trial.step + MOST_GROWTH * stride
    guess = _cubic_minimiser(previous, trial)
    return most if guess is None or guess <= trial.step else min(max(guess, least), most)


def _interpolate(low: Trial, high: Trial, noise: float) -> float:
    """A step inside the bracket, never too near to its ends."""
    span = high.step - low.step
    if not high.finite:
        return low.step + (SHRINK_AT_START if low.step == 0 else SHRINK) * span
    if abs(high.value - low.value) <= noise:
        guess = _secant(low, high)  # the values say nothing: use the slopes alone
    else:
        guess = _cubic_minimiser(low, high)
    if guess is None:
        return low.step + 0.5 * span
    return low.step + min(max((guess - low.step) / span, INSET), 1 - INSET) * span


def _secant(low: Trial, high: Trial) -> float | None:
    """Where the slope vanishes if it is linear; None unless the slopes differ in sign."""
    if low.slope * high.slope >= 0:
        return None
    return low.step - low.slope * (high.step - low.step) / (high.slope - low.slope)


def _cubic_minimiser(one: Trial, two: Trial) -> float | None:
    """The minimiser of the cubic with both values and slopes (3.59), or None if it has none."""
    span = two.step - one.step
    d1 = one.slope + two.slope - 3 * (two.value - one.value) / span
    square = d1 * d1 - one.slope * two.slope
    if not square >= 0:
        return None
    d2 = math.copysign(math.sqrt(square), span)
    bottom = two.slope - one.slope + 2 * d2
    if bottom == 0:
        return None
    guess = two.step - span * (two.slope + d2 - d1) / bottom
    return guess if math.isfinite(guess) else None
