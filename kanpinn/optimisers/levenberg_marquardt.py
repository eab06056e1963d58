"""Levenberg-Marquardt with geodesic acceleration, on the exact Jacobian."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, final

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from kanpinn.errors import ConfigError
from kanpinn.optimisers.base import (
    Condition,
    LeastSquaresObjective,
    Objective,
    Optimiser,
    ParameterLayout,
    State,
    StepResult,
    StopReason,
    check_start,
)
from kanpinn.optimisers.dense_model import DenseModel
from kanpinn.optimisers.dual_model import DualModel
from kanpinn.optimisers.iterative_model import IterativeModel
from kanpinn.optimisers.linear_models import LinearModel, ScaleOf
from kanpinn.optimisers.numbers import read, reads_freely
from kanpinn.optimisers.solver_choice import SolverChoice, choose_solver

LEAST_GAIN = 1e-3  # of the fall of the loss predicted, for a step to be taken
LARGEST_FALL = 1 / 3  # of the damping, after a step as good as predicted
COLUMN_FLOOR = 1e-12  # of the largest column norm, in the scaling by columns
NOTE_WIDE = (
    "{rows} residuals for {columns} parameters: the damping alone decides between the solutions; "
    "the linear systems are solved by the {solver} solver"
)
NOTE_MEMORY = (
    "the {direct} solver would take {mib:.3g} MiB for {columns} parameters, above memory_mib "
    "({limit:g}): the iterative solver is used, whose steps are inexact"
)
NOTE_RANK = (
    "the Jacobian has the numerical rank {rank} of {full}, which is usual: the damping alone "
    "decides between parameters of the same residuals"
)
NOTE_REJECTED = "no step lowered the loss within the trials allowed"


@dataclass(frozen=True)
class LevenbergMarquardtOptions:
    """Options of ``LevenbergMarquardt``."""

    optimiser: Literal["lm"] = "lm"
    damping: Annotated[
        float, Gt(0), "damping of the first step, as a multiple of the loss there"
    ] = 1.0
    scaling: Annotated[
        Literal["identity", "columns"],
        "what the damping measures steps by: the parameters themselves, or each in units of its "
        "column's norm (Marquardt)",
    ] = "identity"
    linear_scale: Annotated[
        float,
        Gt(0),
        "size of the damping of parameters that the fields depend on linearly (last layers), "
        "relative to that of all others",
    ] = 0.3
    geodesic: Annotated[bool, "add the second-order correction along the step"] = True
    acceleration_limit: Annotated[
        float, Gt(0), "largest correction, relative to half the step; a trial above it is refused"
    ] = 0.75
    difference: Annotated[
        float, Gt(0), Lt(1), "share of the step over which its curvature is measured"
    ] = 0.1
    max_trials: Annotated[int, Ge(1), "dampings tried in one step"] = 40
    gradient_tolerance: Annotated[float, Ge(0), "stops at this 2-norm of the gradient"] = 1e-16
    solver: Annotated[
        Literal["auto", "dense", "dual", "iterative"],
        "how the linear systems are solved: dense (factors of the Jacobian), dual (its rows, for "
        "fewer residuals than parameters), iterative (products alone, inexact steps); auto: dual "
        "for fewer residuals, else dense, or iterative where that takes more than memory_mib",
    ] = "auto"
    memory_mib: Annotated[
        float,
        Gt(0),
        "MiB that a linear system may take: auto decides by it, and the iterative solver keeps no "
        "more from product to product",
    ] = 2048.0
    iterations: Annotated[int, Ge(1), "iterations of the iterative solver for one damping"] = 200
    linear_tolerance: Annotated[
        float, Gt(0), Lt(1), "fall of the gradient of the damped system that ends the iteration"
    ] = 1e-2
    change_tolerance: Annotated[
        float, Ge(0), "relative fall of the loss, over `patience` steps, that counts as progress"
    ] = 1e-3
    patience: Annotated[int, Ge(1), "steps without progress before a stop"] = 20


@dataclass(frozen=True)
class _Trial:
    """A damping that was taken: where it leads, and what it cost.

    Attributes:
        theta: there.
        damping: that was taken.
        there: the loss, 0-d; of a trial that is refused, anything.
        loss: its value, infinite for a trial that is refused.
        predicted: fall of the loss.
        evaluations: of the objective.
    """

    theta: Tensor
    damping: float
    there: Tensor
    loss: float
    predicted: float
    evaluations: int


@final
@dataclass(frozen=True)
class LevenbergMarquardt(Optimiser):
    """Levenberg-Marquardt: damped Gauss-Newton steps for a sum of squares ``|r(theta)|^2``.

    One step takes a linear model of the residuals and solves ``min |J d + r|^2 + lambda |D d|^2``
    (``dense_model`` and its siblings have the means). Along ``d`` it measures the second
    derivative of the residuals, ``s = r''(theta)[d, d]``, by differences, and adds half the
    acceleration ``a = -(J^T J + lambda D^2)^-1 J^T s``: the parabola ``theta + d + a/2`` follows
    a curved valley where the line ``theta + d`` leaves it. A trial with ``2 |D a| > limit |D d|``
    is refused without looking at the loss: the second order is then no correction any more, and
    such steps are what saturates a network for good.

    ``D`` is smaller for last layers (``linear_scale``). A step in them alone is exact whatever its
    length, so that what limits steps is the rest: variable projection (Golub and Pereyra) is the
    limit of no damping there at all, which converged more slowly than a mild preference.

    The damping follows the ratio of the actual to the predicted fall of the loss (Nielsen). It
    starts at a multiple of the loss, which is where it is found to stay, on every level.

    Every decision rests on residuals; fewer rows than parameters, or dependent columns, need no
    case of their own, since the damped system has full rank.

    The state: ``damping`` (0: not yet known), ``reference_loss``, ``stalled``, ``iteration``.

    Sources: J. More, The Levenberg-Marquardt algorithm, doi:10.1007/BFb0067700; M. Transtrum and
    J. Sethna, arXiv 1201.5885 (geodesic acceleration); H. Nielsen, IMM-REP-1999-05 (damping).
    """

    options: LevenbergMarquardtOptions = field(default_factory=LevenbergMarquardtOptions)

    deterministic_objective: ClassVar[bool] = True
    loss_at: ClassVar[Literal["start", "end"]] = "end"

    def init(self, theta: Tensor, layout: ParameterLayout, total_steps: int | None = None) -> State:
        """See ``Optimiser.init``; ``total_steps`` is not used. Nothing is evaluated here."""
        check_start("lm", theta, layout)
        return _state(damping=0.0, reference=math.inf, stalled=0, iteration=0)

    def refresh(self, theta: Tensor, state: Mapping[str, Tensor], layout: ParameterLayout) -> State:
        """See ``Optimiser.refresh``: only the damping is kept, as a start."""
        damping, iteration = float(state["damping"]), int(state["iteration"])
        return _state(damping, reference=math.inf, stalled=0, iteration=iteration)

    def step(
        self,
        theta: Tensor,
        state: Mapping[str, Tensor],
        objective: Objective,
        layout: ParameterLayout,
    ) -> StepResult:
        """One accepted step; see the class. ``gradient_norm`` belongs to the start.

        Raises:
            ConfigError: if the objective is no sum of squares.
        """
        if not isinstance(objective, LeastSquaresObjective):
            raise ConfigError("lm: the objective is no sum of squares; use adam or lbfgs")
        theta, options = theta.detach(), self.options
        residuals = objective.residuals(theta)
        here = residuals.square().sum()
        choice = self.choose(len(residuals), len(theta), theta.element_size())
        model = self._model(choice, theta, residuals, objective, layout)
        gradient_norm = model.gradient.norm()
        loss, norm = (model.numbers.later(value) for value in (here, gradient_norm))
        # Without a step before it, the loss is read here; later with what is begun first.
        damping = float(state["damping"]) or options.damping * float(loss)
        model.prepare(damping)
        if not math.isfinite(float(loss)) or not math.isfinite(float(norm)):
            return _stopped(theta, state, here, StopReason.NON_FINITE, model)
        if float(norm) <= options.gradient_tolerance:
            return _stopped(theta, state, here, StopReason.GRADIENT_TOLERANCE, model)
        first = not int(state["iteration"])
        told = _told(choice, options, model, len(residuals), len(theta)) if first else {}
        notes, conditions = tuple(told.values()), tuple(told)
        growth, evaluations = 2.0, 2
        for _ in range(options.max_trials):
            trial = self._try(theta, model, residuals, damping, objective)
            damping, evaluations = trial.damping, evaluations + trial.evaluations
            fall = float(loss) - trial.loss
            gain = fall / trial.predicted if trial.predicted > 0 else -1.0
            if gain > LEAST_GAIN:  # false for a loss that is not finite
                damping *= max(LARGEST_FALL, 1 - (2 * gain - 1) ** 3)
                new, stop = self._progress(state, damping, trial.loss)
                spent, ends = model.meter.operations, (trial.there, gradient_norm)
                return StepResult(
                    trial.theta, new, *ends, evaluations, stop, notes, conditions, spent
                )
            damping, growth = damping * growth, 2 * growth
        reason, notes = StopReason.NO_PROGRESS, (*notes, NOTE_REJECTED)
        return _stopped(theta, state, here, reason, model, evaluations, notes, conditions)

    def choose(self, rows: int, columns: int, itemsize: int) -> SolverChoice:
        """The linear solver for ``rows`` residuals in ``columns`` parameters."""
        options = self.options
        return choose_solver(options.solver, options.memory_mib, rows, columns, itemsize)

    def _model(
        self,
        choice: SolverChoice,
        theta: Tensor,
        residuals: Tensor,
        objective: LeastSquaresObjective,
        layout: ParameterLayout,
    ) -> LinearModel:
        """The residuals' linear model behind the chosen solver."""
        options = self.options
        scale: ScaleOf = lambda squares: self._scale(squares, layout)  # noqa: E731
        if choice.solver == "dense":
            spare = options.memory_mib - choice.direct_mib
            return DenseModel(objective, theta, residuals, scale, spare)
        if choice.solver == "dual":
            return DualModel(objective, theta, residuals, scale)
        limits = (options.iterations, options.linear_tolerance, options.memory_mib)
        return IterativeModel(objective, theta, residuals, scale, *limits)

    def _try(
        self,
        theta: Tensor,
        model: LinearModel,
        residuals: Tensor,
        damping: float,
        objective: LeastSquaresObjective,
    ) -> _Trial:
        """Solve with one damping and evaluate where it leads; refused if that is mostly curved.

        What is refused is evaluated none the less where reading the reason is a wait of its own.
        """
        system = model.damped(damping)
        step = system.step()
        move, ratio, evaluations = step, step.new_zeros(()), 1
        if self.options.geodesic:
            second, taken = self._second_derivative(theta, step, residuals, model, objective)
            acceleration = system.correction(second)
            ratio = 2 * (model.scale * acceleration).norm() / (model.scale * step).norm()
            evaluations += taken + system.evaluations
            move = step + 0.5 * acceleration
        place, limit = theta + move, self.options.acceleration_limit
        if reads_freely(ratio) and not float(ratio) <= limit:
            return _Trial(place, system.damping, model.loss, math.inf, 0.0, evaluations - 1)
        there = objective.loss(place)
        curved, loss, predicted = read([ratio, there, model.loss - model.remaining(step)])
        loss = loss if curved <= limit and math.isfinite(loss) else math.inf
        return _Trial(place, system.damping, there, loss, predicted, evaluations)

    def _second_derivative(
        self,
        theta: Tensor,
        step: Tensor,
        residuals: Tensor,
        model: LinearModel,
        objective: LeastSquaresObjective,
    ) -> tuple[Tensor, int]:
        """``r''(theta)[d, d]``, ``(N,)``, by a difference over a share of the step; evaluations.

        Where the model has ``J d`` at hand, one evaluation is enough:
        ``2 ((r(theta + h d) - r) / h - J d) / h``. Otherwise the difference is central.
        """
        h = self.options.difference
        ahead = objective.residuals(theta + h * step)
        slope = model.product(step)
        if slope is not None:
            return ((ahead - residuals) / h - slope) * (2 / h), 1
        behind = objective.residuals(theta - h * step)
        return (ahead - 2 * residuals + behind) / h**2, 2

    def _scale(self, column_squares: Tensor, layout: ParameterLayout) -> Tensor:
        """The diagonal ``D`` ``(n,)``."""
        if self.options.scaling == "identity":
            scale = torch.ones_like(column_squares)
        else:
            norms = column_squares.sqrt()
            scale = torch.maximum(norms, COLUMN_FLOOR * norms.max())
        for name, where in layout.slices().items():
            if name in layout.linear:
                scale[where] *= self.options.linear_scale
        return scale

    def _progress(
        self, state: Mapping[str, Tensor], damping: float, loss: float
    ) -> tuple[State, StopReason | None]:
        """The state after an accepted step, and whether it should be the last."""
        reference, stalled = float(state["reference_loss"]), int(state["stalled"])
        if not math.isfinite(reference) or loss < (1 - self.options.change_tolerance) * reference:
            reference, stalled = loss, 0
        else:
            stalled += 1
        new = _state(damping, reference, stalled, int(state["iteration"]) + 1)
        return new, StopReason.NO_PROGRESS if stalled >= self.options.patience else None


def _told(
    choice: SolverChoice,
    options: LevenbergMarquardtOptions,
    model: LinearModel,
    rows: int,
    columns: int,
) -> dict[Condition, str]:
    """What the user should know of the linear systems, said at the first step of a level."""
    told, full = {}, min(rows, columns)
    rank = model.rank()
    if rows < columns:
        text = NOTE_WIDE.format(rows=rows, columns=columns, solver=choice.solver)
        told[Condition.FEWER_RESIDUALS] = text
    if options.solver == "auto" and choice.solver == "iterative":
        limit = options.memory_mib
        mib, direct = choice.direct_mib, choice.direct
        text = NOTE_MEMORY.format(direct=direct, mib=mib, columns=columns, limit=limit)
        told[Condition.OVER_MEMORY] = text
    if rank is not None and rank < full:
        told[Condition.RANK_DEFICIENT] = NOTE_RANK.format(rank=rank, full=full)
    return told


def _state(damping: float, reference: float, stalled: int, iteration: int) -> State:
    return {
        "damping": torch.tensor(damping, dtype=torch.float64),
        "reference_loss": torch.tensor(reference, dtype=torch.float64),
        "stalled": torch.tensor(stalled),
        "iteration": torch.tensor(iteration),
    }


def _stopped(
    theta: Tensor,
    state: Mapping[str, Tensor],
    loss: Tensor,
    reason: StopReason,
    model: LinearModel,
    evaluations: int = 2,
    notes: tuple[str, ...] = (),
    conditions: tuple[Condition, ...] = (),
) -> StepResult:
    """A step that ends where it began, and what the model it has made cost."""
    spent = model.meter.operations
    return StepResult(
        theta.clone(), dict(state), loss, None, evaluations, reason, notes, conditions, spent
    )
