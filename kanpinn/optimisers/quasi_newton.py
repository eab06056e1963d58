"""What quasi-Newton methods share: line search, restarts, stops; one step is one iteration."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from kanpinn.errors import ConfigError
from kanpinn.optimisers.base import (
    Objective,
    Optimiser,
    ParameterLayout,
    State,
    StepResult,
    StopReason,
    check_start,
)
from kanpinn.optimisers.line_search import (
    SearchEnd,
    SearchResult,
    Trial,
    WolfeConditions,
    wolfe_search,
)
from kanpinn.optimisers.numbers import read
from kanpinn.optimisers.operations import Meter
from kanpinn.optimisers.quasi_newton_memory import Curvature, Memory, Notes, Pair

# Each restart after a non-finite loss shortens the first trial step by this factor.
RESTART_SHRINK = 0.1
# The gradient norm must fall by this factor to count as progress where the loss does not fall.
GRADIENT_PROGRESS = 0.9
# The noise of a loss is taken to be at least this many units of round-off.
LEAST_NOISE = 10.0
# A move of theta by less than this many units of round-off cannot be expected to lower the loss.
RESOLUTION = 100.0

NOTE_RESTART = "restarted from best iterate: loss or gradient not finite"
NOTE_FAILED = "line search failed: history cleared, searched along the steepest descent"
NOTE_ASCENT = "quasi-Newton direction was no descent: history cleared"
NOTE_SHORT = "line search ended with sufficient decrease only"
NOTE_SKIPPED = "curvature pair not stored: no positive curvature above round-off"


@dataclass(frozen=True)
class QuasiNewtonOptions:
    """Options of every ``QuasiNewton`` method."""

    optimiser: str
    learning_rate: Annotated[
        float, Gt(0), "first trial step of each line search, as a multiple of the quasi-Newton step"
    ] = 1.0
    sufficient_decrease: Annotated[float, Gt(0), Lt(0.5), "c1 of the Wolfe conditions"] = 1e-4
    curvature: Annotated[float, Gt(0), Lt(1), "c2 of the strong Wolfe conditions"] = 0.9
    max_line_search_evaluations: Annotated[int, Ge(1), "evaluations in one line search"] = 25
    loss_noise: Annotated[
        float,
        Ge(0),
        "relative difference below which two losses count as equal in a line search; "
        "never less than 10 units of round-off",
    ] = 1e-8
    gradient_tolerance: Annotated[float, Ge(0), "stops at this 2-norm of the gradient"] = 1e-14
    change_tolerance: Annotated[
        float, Ge(0), "relative fall of the loss, over `patience` steps, that counts as progress"
    ] = 1e-9
    patience: Annotated[int, Ge(1), "steps without progress in loss or gradient before a stop"] = (
        100
    )
    max_restarts: Annotated[
        int, Ge(0), "restarts from the best iterate after non-finite losses"
    ] = 3

    def __post_init__(self) -> None:
        if self.sufficient_decrease >= self.curvature:
            raise ConfigError(
                f"{self.optimiser}: sufficient_decrease is {self.sufficient_decrease}, "
                f"must be below curvature ({self.curvature})"
            )


@dataclass
class _Line:
    """The objective along ``theta + a d``; counts all that a step costs."""

    objective: Objective
    evaluations: int = 0
    meter: Meter = field(default_factory=Meter)

    def at(self, theta: Tensor, step: float = 0.0, direction: Tensor | None = None) -> Trial:
        """At ``theta + step * direction`` (slope along it), or at ``theta`` itself (slope g.g)."""
        self.evaluations += 1
        where = theta if direction is None else theta + step * direction
        loss, gradient = (value.detach() for value in self.objective.loss_and_gradient(where))
        # either slope is finite only if the gradient is: 0 * nan is nan
        slope = gradient @ (gradient if direction is None else direction)
        value, slope_value = read((loss, slope))  # one wait for the device
        return Trial(step, value, slope_value, where, loss, gradient)


@dataclass(frozen=True)
class QuasiNewton(Optimiser):
    """A quasi-Newton method for a full-batch loss; its subclasses say what H is.

    One step goes from theta along ``d = -H g`` (H a ``Curvature``) to a point that satisfies the
    strong Wolfe conditions, or their approximate form at the level of round-off
    (``line_search``). No evaluation is repeated from one step to the next. Call ``refresh`` when
    the objective changes.

    When something fails, in this order, with a note each time:

    * a pair without positive curvature above round-off is not stored;
    * a direction that is no descent, or a line search that fails, clears the history, and the step
      goes on along ``-g``;
    * if that fails too, the step stops, parameters unchanged: with NO_PROGRESS if the loss changed
      by no more than noise or the first trial moved theta by no more than round-off, otherwise with
      LINE_SEARCH_FAILED;
    * a search that runs out of evaluations or comes up against a non-finite region takes the lowest
      point with sufficient decrease, if it found one;
    * non-finite trials only shorten the step; a non-finite loss or gradient where the step starts
      restarts it from the best iterate with cleared history and a shorter first trial, up to
      ``max_restarts`` times over all steps, then stops with NON_FINITE at the best iterate.

    NO_PROGRESS also ends ``patience`` steps in which neither the loss fell relatively by more than
    ``change_tolerance`` nor the gradient norm by a tenth.

    The state: ``theta``, ``loss``, ``gradient`` of the last evaluation (``evaluated`` 0: none yet);
    the tensors of H, with ``pairs`` pairs in use; ``scale``; ``best_theta``, ``best_loss``;
    ``reference_loss``, ``reference_norm`` and ``stalled`` for the test of progress; ``restarts``;
    ``iteration``. See ``Memory``.
    """

    options: QuasiNewtonOptions

    deterministic_objective: ClassVar[bool] = True
    loss_at: ClassVar[Literal["start", "end"]] = "end"

    @abstractmethod
    def no_curvature(self, theta: Tensor) -> Curvature:
        """An H for parameters like ``theta`` (n,) that knows nothing yet.

        Raises:
            ConfigError: ``theta`` is too long for it.
        """

    @abstractmethod
    def read_curvature(self, state: Mapping[str, Tensor], count: int) -> Curvature:
        """H from the flat state, with ``count`` pairs in use."""

    def init(self, theta: Tensor, layout: ParameterLayout, total_steps: int | None = None) -> State:
        """See ``Optimiser.init``; ``total_steps`` is not used. Nothing is evaluated here."""
        check_start(self.options.optimiser, theta, layout)
        theta = theta.detach().clone()
        return Memory(self.no_curvature(theta), None, theta).write()

    def refresh(self, theta: Tensor, state: Mapping[str, Tensor], layout: ParameterLayout) -> State:
        """See ``Optimiser.refresh``: pairs of the old objective say nothing of the new one."""
        return self.init(theta, layout)

    def step(
        self,
        theta: Tensor,
        state: Mapping[str, Tensor],
        objective: Objective,
        layout: ParameterLayout,
    ) -> StepResult:
        """One iteration; see the class. ``loss`` and ``gradient_norm`` belong to the new theta."""
        line = _Line(objective)
        memory, notes = self._start(theta.detach(), Memory.read(state, self.read_curvature), line)
        start = memory.point
        assert start is not None  # _start has evaluated
        if not start.finite:
            return self._non_finite(start, memory, line, notes)
        norm = math.sqrt(start.slope)
        if norm <= self.options.gradient_tolerance:
            return _result(start, memory, line, StopReason.GRADIENT_TOLERANCE, notes)
        found, memory, search_notes = self._search(start, memory, line)
        notes += search_notes
        if found.trial is None:
            flat = found.end is SearchEnd.FLAT
            reason = StopReason.NO_PROGRESS if flat else StopReason.LINE_SEARCH_FAILED
            return _result(start, memory, line, reason, notes)
        if found.end is SearchEnd.DECREASE:
            notes += (NOTE_SHORT,)
        memory, learn_notes = self._learn(start, found.trial, memory, line)
        assert memory.point is not None
        return _result(memory.point, memory, line, self._stop(memory), notes + learn_notes)

    def _start(self, theta: Tensor, memory: Memory, line: _Line) -> tuple[Memory, Notes]:
        """Memory with the evaluation this step begins from, after a restart if it needs one."""
        # the comparison lets a caller change theta between steps: only then is it evaluated again
        if memory.point is None or not torch.equal(memory.point.theta, theta):
            memory = memory.at(line.at(theta.clone()))
        assert memory.point is not None
        if memory.point.finite or memory.restarts >= self.options.max_restarts:
            return memory, ()
        if not math.isfinite(memory.best_loss) or torch.equal(memory.best_theta, theta):
            return memory, ()
        memory = replace(memory.cleared(), restarts=memory.restarts + 1)
        return memory.at(line.at(memory.best_theta)), (NOTE_RESTART,)

    def _non_finite(self, start: Trial, memory: Memory, line: _Line, notes: Notes) -> StepResult:
        """Stop at the best iterate, or where the step began if no loss was ever finite."""
        theta, loss = start.theta, start.loss
        if math.isfinite(memory.best_loss):
            theta, loss = memory.best_theta, loss.new_full((), memory.best_loss)
        reason = StopReason.NON_FINITE
        return StepResult(theta, memory.write(), loss, None, line.evaluations, reason, notes)

    def _search(
        self, start: Trial, memory: Memory, line: _Line
    ) -> tuple[SearchResult, Memory, Notes]:
        """Search along the quasi-Newton direction and, if need be, the steepest descent."""
        notes: Notes = ()
        if memory.curvature.count:
            line.meter.add(memory.curvature.direction_operations)
            direction = memory.curvature.direction(start.gradient)
            slope, square = read((start.gradient @ direction, direction @ direction))
            roundoff = torch.finfo(direction.dtype).eps * math.sqrt(start.slope)
            if slope < -roundoff * math.sqrt(square):  # false for a slope that is not finite
                found = self._along(direction, slope, self.options.learning_rate, memory, line)
                if found.trial is not None:
                    return found, memory, notes
                notes = (NOTE_FAILED,)
            else:
                notes = (NOTE_ASCENT,)
            memory = memory.cleared()
        first = memory.scale or min(1.0, 1.0 / start.gradient.abs().sum().item())
        first *= self.options.learning_rate * RESTART_SHRINK**memory.restarts
        return self._along(-start.gradient, -start.slope, first, memory, line), memory, notes

    def _along(
        self, direction: Tensor, slope: float, first: float, memory: Memory, line: _Line
    ) -> SearchResult:
        """A line search from the memory's point along ``direction`` (n,)."""
        start, options = memory.point, self.options
        assert start is not None
        noise = max(options.loss_noise, LEAST_NOISE * torch.finfo(direction.dtype).eps)
        # Bounded by the best loss, not the current one: noise cannot add up over many steps.
        conditions = WolfeConditions(
            value=start.value,
            slope=slope,
            c1=options.sufficient_decrease,
            c2=options.curvature,
            ceiling=memory.best_loss + noise * abs(memory.best_loss),
            noise=noise * abs(start.value),
        )
        found = wolfe_search(
            lambda step: line.at(start.theta, step, direction),
            replace(start, slope=slope),
            first,
            conditions,
            options.max_line_search_evaluations,
        )
        if found.trial is None and _below_resolution(first * direction, start.theta):
            return replace(found, end=SearchEnd.FLAT)
        return found

    def _learn(
        self, start: Trial, trial: Trial, memory: Memory, line: _Line
    ) -> tuple[Memory, Notes]:
        """Store the new point and, if it has curvature above round-off, the pair it gives."""
        s = trial.theta - start.theta  # (n,), the step as rounded, which y belongs to
        y = trial.gradient - start.gradient  # (n,)
        sy, ss, yy, square = read((s @ y, s @ s, y @ y, trial.gradient @ trial.gradient))
        memory = memory.at(replace(trial, step=0.0, slope=square)).measured(
            math.sqrt(square), self.options.change_tolerance, GRADIENT_PROGRESS
        )
        if not sy > torch.finfo(s.dtype).eps * math.sqrt(ss * yy):
            return memory, (NOTE_SKIPPED,)
        line.meter.add(memory.curvature.learning_operations)
        curvature, notes = memory.curvature.learn(Pair(s, y, trial.step, start.gradient))
        return replace(memory, curvature=curvature, scale=sy / yy), notes

    def _stop(self, memory: Memory) -> StopReason | None:
        """Whether the accepted step should be the last."""
        assert memory.point is not None
        if math.sqrt(memory.point.slope) <= self.options.gradient_tolerance:
            return StopReason.GRADIENT_TOLERANCE
        return StopReason.NO_PROGRESS if memory.stalled >= self.options.patience else None


def _below_resolution(move: Tensor, theta: Tensor) -> bool:
    """Whether a move (n,) of theta (n,) is of the size of the rounding of theta."""
    resolution = RESOLUTION * torch.finfo(theta.dtype).eps
    return bool(torch.linalg.vector_norm(move) <= resolution * torch.linalg.vector_norm(theta))


def _result(
    point: Trial, memory: Memory, line: _Line, stop: StopReason | None, notes: Notes
) -> StepResult:
    """The result of a step that ends at ``point``."""
    theta = point.theta.clone()  # the state keeps the other one, whatever becomes of this
    norm = torch.linalg.vector_norm(point.gradient)
    spent, operations = line.evaluations, line.meter.operations
    return StepResult(
        theta, memory.write(), point.loss, norm, spent, stop, notes, operations=operations
    )
