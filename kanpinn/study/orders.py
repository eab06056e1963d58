"""Orders of convergence: observed, fitted, and what they say of the error without a reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

SAFETY = 1.25  # of the grid convergence index, on three levels or more

Number = float | None


@dataclass(frozen=True)
class FittedOrder:
    """The slope of ``log e`` against ``log h`` by least squares, and of how many levels."""

    order: float
    levels: int


@dataclass(frozen=True)
class Extrapolation:
    """What the changes between three levels say of the finest one's error.

    Attributes:
        error: estimated.
        gci: the grid convergence index, :data:`SAFETY` times that.
    """

    error: float
    gci: float


def observed_order(errors: tuple[Number, Number], widths: tuple[Number, Number]) -> Number:
    """``log(e1 / e2) / log(h1 / h2)``; ``None`` where errors or widths are missing or equal."""
    (e1, e2), (h1, h2) = errors, widths
    if not (e1 and e2 and h1 and h2) or h1 == h2:
        return None
    return math.log(e1 / e2) / math.log(h1 / h2)


def fitted_order(errors: Sequence[Number], widths: Sequence[Number]) -> FittedOrder | None:
    """The order ``p`` of ``e = C h^p`` by least squares in the logarithms, over all levels.

    ``None`` for fewer than two levels with an error and different widths.
    """
    pairs = [(h, e) for e, h in zip(errors, widths, strict=True) if e and h and e > 0]
    if len({h for h, _ in pairs}) < 2:
        return None
    h, e = zip(*pairs, strict=True)
    return FittedOrder(exponent(h, e), len(pairs))


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """``p`` of the least-squares fit ``y = c x^p`` in logarithms, both positive."""
    return _slope([math.log(value) for value in x], [math.log(value) for value in y])


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the line through the points by least squares."""
    x0, y0 = math.fsum(x) / len(x), math.fsum(y) / len(y)
    covariance = math.fsum((a - x0) * (b - y0) for a, b in zip(x, y, strict=True))
    return covariance / math.fsum((a - x0) ** 2 for a in x)


def order_of_changes(changes: Sequence[Number], widths: Sequence[Number]) -> FittedOrder | None:
    """The order ``p`` of errors ``e = C h^p``, from the changes between levels.

    The change to level ``k`` is then ``c_k = C (h_{k-1}^p - h_k^p)``. ``p`` is the number for which
    the logarithms of that have the same least-squares slope on ``log h_k`` as those of the changes.
    With two changes and ``q = h_{k-1} / h_k`` it solves ``c_{k-1} / c_k = q_k^p (q_{k-1}^p - 1) /
    (q_k^p - 1)`` (Celik et al., J. Fluids Eng. 130, 2008, 078001), and where all ratios are the
    same one it is the slope itself. That quotient rises with ``p`` from zero to infinity, the slope
    from minus to plus infinity: there is always one such ``p``, which may be negative.

    Args:
        changes: by level, that from the level before; those missing are left out.
        widths: of all levels, coarsest first.

    Returns:
        The order, and how many changes it is of. ``None`` for fewer than two, or where a width is
        missing or not below the one before.
    """
    if not all(a and b and a > b for a, b in pairwise(widths)):
        return None
    steps = [(coarse, fine) for coarse, fine in pairwise(widths) if coarse and fine]
    known = [
        (change, math.log(fine), math.log(coarse / fine))
        for change, (coarse, fine) in zip(changes[1:], steps, strict=True)
        if change and change > 0
    ]
    if len(known) < 2:
        return None
    sizes, x, ratios = zip(*known, strict=True)
    wanted = _slope(x, [math.log(size) for size in sizes])

    def excess(p: float) -> float:
        exact = [p * a + _log_expm1(p, b) for a, b in zip(x, ratios, strict=True)]
        return _slope(x, exact) - wanted

    return FittedOrder(_root(excess, wanted), len(known))


def _log_expm1(p: float, ratio: float) -> float:
    """``log|(exp(p r) - 1) / p|``, which has a limit at zero; without overflow."""
    z = p * ratio
    if z == 0:
        return math.log(ratio)
    return max(z, 0.0) + math.log(-math.expm1(-abs(z))) - math.log(abs(p))


def _root(rising: Callable[[float], float], guess: float) -> float:
    """Where a function that grows without bounds is zero."""
    from scipy.optimize import brentq  # when needed, as everywhere

    low = high = guess
    step = 0.5
    while rising(low) > 0:
        low, step = low - step, 2 * step
    while rising(high) < 0:
        high, step = high + step, 2 * step
    return low if low == high else float(brentq(rising, low, high, xtol=1e-14))


def extrapolate(
    change: Number, order: Number, widths: tuple[Number, Number]
) -> Extrapolation | None:
    """Richardson's estimate of the error after a refinement, and the grid convergence index.

    With ``c = |u_k - u_{k-1}|`` and errors ``e = C h^p``, ``e_{k-1} - e_k = (q^p - 1) e_k``,
    ``q = h_{k-1} / h_k``: the error is about ``c / (q^p - 1)``. The index (Roache, J. Fluids Eng.
    116, 1994, 405-413) is 1.25 times that. ``None`` unless the order is positive and ``q > 1``.

    Args:
        change: ``c``, absolute or relative, as is the estimate then.
        order: ``p``.
        widths: ``h_{k-1}`` and ``h_k``.
    """
    coarse, fine = widths
    if change is None or not order or order <= 0 or not (coarse and fine and coarse > fine):
        return None
    try:
        error = change / math.expm1(order * math.log(coarse / fine))
    except OverflowError:  # of an order that no sequence of three levels can show
        return None
    return Extrapolation(error, SAFETY * error)
