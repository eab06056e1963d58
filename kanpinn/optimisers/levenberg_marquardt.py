"""Levenberg-Marquardt with geodesic acceleration, on the triangular factor of the Jacobian."""

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
    LeastSquaresObjective,
    Objective,
    Optimiser,
    ParameterLayout,
    State,
    StepResult,
    StopReason,
    check_start,
)

LEAST_GAIN = 1e-3  # of the fall of the loss predicted, for a step to be taken
LARGEST_FALL = 1 / 3  # of the damping, after a step as good as predicted
COLUMN_FLOOR = 1e-12  # of the largest column norm, in the scaling by columns
NOTE_WIDE = "fewer residuals than parameters: the damping alone decides between their solutions"
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
    change_tolerance: Annotated[
        float, Ge(0), "relative fall of the loss, over `patience` steps, that counts as progress"
    ] = 1e-3
    patience: Annotated[int, Ge(1), "steps without progress before a stop"] = 20


@dataclass(frozen=True)
class DampedSystem:
    """``min |J d + r|^2 + lambda |D d|^2``, from the triangle of ``[J | r]``.

    Attributes:
        factor: triangle of ``[[J, r], [sqrt(lambda) D, 0]]``, ``(n + 1, n + 1)``.
    """

    factor: Tensor

    @classmethod
    def of(cls, triangle: Tensor, damping: float, scale: Tensor) -> DampedSystem:
        """From the triangle ``(n + 1, n + 1)``, ``lambda`` and the diagonal ``D`` ``(n,)``."""
        below = torch.diag(scale * math.sqrt(damping))
        below = torch.cat([below, below.new_zeros(len(scale), 1)], 1)
        return cls(torch.linalg.qr(torch.cat([triangle, below]), mode="r").R)

    def step(self) -> Tensor:
        """The minimiser ``d`` ``(n,)``."""
        n = self.factor.shape[1] - 1
        square, right = self.factor[:n, :n], self.factor[:n, n:]
        return -torch.linalg.solve_triangular(square, right, upper=True)[:, 0]

    def newton(self, gradient: Tensor) -> Tensor:
        """``-(J^T J + lambda D^2)^-1 gradient``, ``(n,)``."""
        n = self.factor.shape[1] - 1
        square = self.factor[:n, :n]
        half = torch.linalg.solve_triangular(square.mT, gradient[:, None], upper=False)
        return -torch.linalg.solve_triangular(square, half, upper=True)[:, 0]


@dataclass(frozen=True)
class _Trial:
    """A damping that was tried: where it leads, the loss there, predicted fall, what it cost."""

    theta: Tensor
    loss: float
    predicted: float
    evaluations: int


@final
@dataclass(frozen=True)
class LevenbergMarquardt(Optimiser):
    """Damped Gauss-Newton steps for a sum of squares ``|r(theta)|^2``.

    One step takes the triangle of ``[J | r]`` and solves ``min |J d + r|^2 + lambda |D d|^2``.
    Along ``d`` it measures the second derivative of the residuals, ``s = r''(theta)[d, d]``, by
    central differences, and adds half the acceleration ``a = -(J^T J + lambda D^2)^-1 J^T s``: the
    parabola ``theta + d + a/2`` follows a curved valley where the line ``theta + d`` leaves it. A
    trial with ``2 |D a| > limit |D d|`` is refused without looking at the loss: the second
    order is then no correction any more, and such steps are what saturates a network for good.

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
        return _state(theta, damping=0.0, reference=math.inf, stalled=0, iteration=0)

    def refresh(self, theta: Tensor, state: Mapping[str, Tensor], layout: ParameterLayout) -> State:
        """See ``Optimiser.refresh``: only the damping is kept, as a start."""
        damping, iteration = float(state["damping"]), int(state["iteration"])
        return _state(theta, damping, reference=math.inf, stalled=0, iteration=iteration)

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
        triangle = objective.triangle(theta)
        squares = triangle.square().sum(0)  # (n + 1,)
        gradient_norm = 2 * (triangle[:, :-1].mT @ triangle[:, -1]).norm()
        loss, norm = torch.stack([squares[-1], gradient_norm]).tolist()
        if not math.isfinite(loss) or not math.isfinite(norm):
            return _stopped(theta, state, squares[-1], StopReason.NON_FINITE)
        if norm <= options.gradient_tolerance:
            return _stopped(theta, state, squares[-1], StopReason.GRADIENT_TOLERANCE)
        residuals = objective.residuals(theta)
        wide = NOTE_WIDE if len(residuals) < len(theta) and not int(state["iteration"]) else None
        scale = self._scale(squares[:-1], layout)
        damping = float(state["damping"]) or options.damping * loss
        growth, evaluations = 2.0, 2
        for _ in range(options.max_trials):
            trial = self._try(theta, triangle, residuals, damping, scale, objective)
            evaluations += trial.evaluations
            gain = (loss - trial.loss) / trial.predicted if trial.predicted > 0 else -1.0
            if gain > LEAST_GAIN:  # false for a loss that is not finite
                damping *= max(LARGEST_FALL, 1 - (2 * gain - 1) ** 3)
                new, stop = self._progress(theta, state, damping, trial.loss)
                loss_there = squares.new_tensor(trial.loss)
                notes = (wide,) if wide else ()
                return StepResult(
                    trial.theta, new, loss_there, gradient_norm, evaluations, stop, notes
                )
            damping, growth = damping * growth, 2 * growth
        return _stopped(
            theta, state, squares[-1], StopReason.NO_PROGRESS, evaluations, (NOTE_REJECTED,)
        )

    def _try(
        self,
        theta: Tensor,
        triangle: Tensor,
        residuals: Tensor,
        damping: float,
        scale: Tensor,
        objective: LeastSquaresObjective,
    ) -> _Trial:
        """Solve with one damping and evaluate where it leads, unless the curvature forbids it."""
        system = DampedSystem.of(triangle, damping, scale)
        step = system.step()
        move, evaluations = step, 1
        if self.options.geodesic:
            second = self._second_derivative(theta, step, residuals, objective)
            acceleration = system.newton(objective.transposed_product(theta, second))
            ratio = 2 * (scale * acceleration).norm() / (scale * step).norm()
            evaluations += 3
            if not float(ratio) <= self.options.acceleration_limit:
                return _Trial(theta, math.inf, 0.0, evaluations - 1)
            move = step + 0.5 * acceleration
        there = theta + move
        linear = triangle[:, :-1] @ step + triangle[:, -1]  # of the norm of J d + r
        fall = triangle[:, -1].square().sum() - linear.square().sum()
        loss, predicted = torch.stack([objective.loss(there), fall]).tolist()
        return _Trial(there, loss if math.isfinite(loss) else math.inf, predicted, evaluations)

    def _second_derivative(
        self,
        theta: Tensor,
        step: Tensor,
        residuals: Tensor,
        objective: LeastSquaresObjective,
    ) -> Tensor:
        """``r''(theta)[d, d]``, ``(N,)``, by central differences over a share of the step."""
        h = self.options.difference
        ahead = objective.residuals(theta + h * step)
        behind = objective.residuals(theta - h * step)
        return (ahead - 2 * residuals + behind) / h**2

    def _scale(self, column_squares: Tensor, layout: ParameterLayout) -> Tensor:
        """The diagonal ``D`` ``(n,)``."""
        if self.options.scaling == "identity":
            scale = torch.ones_like(column_squares)
        else:
            norms = column_squares.sqrt()
            scale = norms.clamp(min=COLUMN_FLOOR * float(norms.max()))
        for name, where in layout.slices().items():
            if name in layout.linear:
                scale[where] *= self.options.linear_scale
        return scale

    def _progress(
        self, theta: Tensor, state: Mapping[str, Tensor], damping: float, loss: float
    ) -> tuple[State, StopReason | None]:
        """The state after an accepted step, and whether it should be the last."""
        reference, stalled = float(state["reference_loss"]), int(state["stalled"])
        if not math.isfinite(reference) or loss < (1 - self.options.change_tolerance) * reference:
            reference, stalled = loss, 0
        else:
            stalled += 1
        new = _state(theta, damping, reference, stalled, int(state["iteration"]) + 1)
        return new, StopReason.NO_PROGRESS if stalled >= self.options.patience else None


def _state(like: Tensor, damping: float, reference: float, stalled: int, iteration: int) -> State:
    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=like.device)

    def counter(value: int) -> Tensor:
        return torch.tensor(value, dtype=torch.int64, device=like.device)

    return {
        "damping": number(damping),
        "reference_loss": number(reference),
        "stalled": counter(stalled),
        "iteration": counter(iteration),
    }


def _stopped(
    theta: Tensor,
    state: Mapping[str, Tensor],
    loss: Tensor,
    reason: StopReason,
    evaluations: int = 1,
    notes: tuple[str, ...] = (),
) -> StepResult:
    """A step that ends where it began."""
    return StepResult(theta.clone(), dict(state), loss, None, evaluations, reason, notes)
