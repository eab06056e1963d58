"""The one interface of all optimisers: ``init`` and ``step`` over one flat vector of parameters.

An optimiser never runs to convergence by itself. Its ``step`` is a pure function of
``(theta, state, objective)``: it changes none of its inputs and remembers nothing, so that exact
resume, staged training and refinement between steps need nothing from the optimiser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from kanpinn.errors import ConfigError

State: TypeAlias = dict[str, Tensor]
"""Everything an optimiser needs to continue bit for bit, as a flat dictionary of tensors.

Tensors that steps compute with live on the device of ``theta``; numbers without dimensions that
the host alone decides by may be on the CPU. Counters are int64 and have no dimensions.
"""


class StopReason(StrEnum):
    """Why a phase of training ended; the training loop sets those that no optimiser can know."""

    STEPS = "steps"
    """The phase has done the number of steps it was given (set by the training loop)."""
    TIME = "time"
    """The time budget is spent (set by the training loop)."""
    TARGET = "target"
    """The loss or error asked for has been reached (set by the training loop)."""
    GRADIENT_TOLERANCE = "gradient_tolerance"
    """The norm of the gradient is at or below the optimiser's tolerance."""
    NO_PROGRESS = "no_progress"
    """Loss and gradient no longer fall by more than round-off or the stated tolerance."""
    LINE_SEARCH_FAILED = "line_search_failed"
    """No acceptable step along the search direction, nor along the steepest descent."""
    NON_FINITE = "non_finite"
    """The loss or its gradient is not finite and the allowed restarts are used up."""
    POINTS = "points"
    """The held-out residual no longer follows the training residual (set by the training loop)."""
    KNOTS = "knots"
    """The optimisation error is below the discretisation error (set by the training loop)."""
    OPTIMISER = "optimiser"
    """The loss has stalled above the discretisation error (set by the training loop)."""
    WORK = "work"
    """The level has spent its budget of work (set by the training loop)."""
    INTERRUPTED = "interrupted"
    """The user stopped the run (set by the training loop)."""


@dataclass(frozen=True)
class ParameterLayout:
    """Named groups of parameters as consecutive slices of one flat vector ``theta``.

    Attributes:
        names: of the groups.
        sizes: of the groups.
        linear: groups that the model's outputs depend on linearly, all others held fixed.

    Raises:
        ConfigError: names repeated, a negative size, or not one size for each name.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    linear: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if len(self.names) != len(self.sizes):
            raise ConfigError(
                f"parameter layout: {len(self.names)} names but {len(self.sizes)} sizes; "
                "each group needs one of each"
            )
        if len(set(self.names)) != len(self.names):
            repeated = sorted({name for name in self.names if self.names.count(name) > 1})
            raise ConfigError(f"parameter layout: group names repeated: {', '.join(repeated)}")
        if any(size < 0 for size in self.sizes):
            raise ConfigError(f"parameter layout: negative size in {self.sizes}")

    @property
    def total(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    def slices(self) -> dict[str, slice]:
        """Where each group lies in the flat vector."""
        ends = tuple(accumulate(self.sizes))
        return {
            name: slice(end - size, end)
            for name, size, end in zip(self.names, self.sizes, ends, strict=True)
        }

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of ``theta`` (total,), one (size,) for each group.

        Raises:
            ConfigError: ``theta`` is not a vector of this layout's length.
        """
        self.check(theta)
        return {name: theta[where] for name, where in self.slices().items()}

    def check(self, theta: Tensor) -> None:
        """Raise ConfigError unless ``theta`` is a vector of this layout's length."""
        if theta.shape != (self.total,):
            raise ConfigError(
                f"theta has shape {tuple(theta.shape)}, the parameter layout needs ({self.total},)"
            )


class Objective(Protocol):
    """What an optimiser may ask for; ``theta`` (n,) is the flat vector of the active groups.

    Results are detached, have the type and device of ``theta``, and are not changed afterwards.
    """

    def loss(self, theta: Tensor) -> Tensor:
        """The loss at ``theta`` (n,), without dimensions."""

    def loss_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The loss at ``theta`` (n,), without dimensions, and its gradient (n,)."""


class Linearisation(Protocol):
    """The Jacobian ``J`` at one ``theta``, by its products; it is never held as a whole."""

    def product(self, v: Tensor) -> Tensor:
        """``J v`` ``(N,)`` of ``v`` (n,)."""

    def transposed(self, u: Tensor) -> Tensor:
        """``J^T u`` (n,) of ``u`` ``(N,)``."""

    def block_squares(self, size: int) -> Sequence[Tensor]:
        """``J_b^T J_b`` of blocks of at most ``size`` neighbouring columns, that cover all of them.

        In the order of the parameters, blocks of one size beside each other as
        ``(count, size, size)``.
        """


class SquaredJacobian(Protocol):
    """``[J | r]^T [J | r]`` at one ``theta``, and products with ``J`` and ``J^T`` there."""

    @property
    def upper(self) -> Tensor:
        """The square on and above its diagonal, zero below, ``(n + 1, n + 1)``."""

    @property
    def evaluations(self) -> int:
        """Evaluations of the residuals that a product with ``J^T`` takes."""

    def transposed(self, u: Tensor) -> Tensor:
        """``J^T u`` (n,) of ``u`` ``(N,)``."""

    def product(self, v: Tensor) -> Tensor | None:
        """``J v`` ``(N,)`` of ``v`` (n,), where that takes no evaluation."""

    def normal(self, d: Tensor, u: Tensor) -> Tensor | None:
        """``J^T (J d + u)`` (n,) of ``d`` (n,) and ``u`` ``(N,)``, where that takes none."""


@runtime_checkable
class LeastSquaresObjective(Objective, Protocol):
    """A loss that is a sum of squares ``|r(theta)|^2``, with the residuals' Jacobian ``J``."""

    def residuals(self, theta: Tensor) -> Tensor:
        """The residuals ``r`` ``(N,)`` at ``theta`` (n,)."""

    def squares(self, theta: Tensor, memory: float) -> SquaredJacobian:
        """The square of ``[J | r]`` at ``theta`` (n,), keeping ``memory`` bytes for products."""

    def triangle(self, theta: Tensor) -> Tensor:
        """``R`` with ``R^T R = [J | r]^T [J | r]`` at ``theta`` (n,), ``(n + 1, n + 1)``."""

    def transposed_product(self, theta: Tensor, u: Tensor) -> Tensor:
        """``J^T u`` (n,) at ``theta`` (n,) for ``u`` ``(N,)``."""

    def jacobian_rows(self, theta: Tensor) -> Iterable[Tensor]:
        """Pieces ``(any, n + 1)`` of ``[J | r]`` at ``theta`` (n,), in order."""

    def linearise(self, theta: Tensor, memory: float) -> Linearisation:
        """``J`` at ``theta`` (n,) by its products, keeping at most ``memory`` bytes for them."""


class Condition(StrEnum):
    """What is unusual about a level's least-squares problem; training goes on."""

    FEWER_RESIDUALS = "fewer_residuals"
    """There are fewer residuals than parameters: the damping decides between solutions."""
    RANK_DEFICIENT = "rank_deficient"
    """Some parameters, or combinations of them, do not change the residuals."""
    OVER_MEMORY = "over_memory"
    """The dense system would not fit in the memory allowed: steps are made by products."""


@dataclass(frozen=True)
class StepResult:
    """What one step gives back.

    Attributes:
        theta: the new parameters (n,).
        state: the new state; the step's input state is unchanged.
        loss: a loss without dimensions; ``Optimiser.loss_at`` says where it was evaluated.
        gradient_norm: 2-norm of the gradient, at the same place as ``loss``.
        evaluations: how many times the loss (with or without gradient) was evaluated.
        stop: why the optimiser cannot usefully continue, or None.
        notes: what happened beside the normal course, e.g. "restarted from the best iterate".
        conditions: what was found out about the problem, if anything.
        operations: of the optimiser's own linear algebra, beside what the objective was asked for.
    """

    theta: Tensor
    state: State
    loss: Tensor
    gradient_norm: Tensor | None
    evaluations: int
    stop: StopReason | None = None
    notes: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    operations: int = 0


class OptimiserOptions(Protocol):
    """What the options of every optimiser have in common: the name it is registered under."""

    @property
    def optimiser(self) -> str:
        """The name in the registry."""


class Optimiser(ABC):
    """An optimiser: immutable options, ``init`` and ``step``.

    Attributes:
        options: a frozen dataclass.
        deterministic_objective: True if the objective must be the same function from one step to
            the next (full batch; call ``refresh`` when it changes), False if mini-batches do.
        loss_at: where ``StepResult.loss`` and ``gradient_norm`` were evaluated: "start", at the
            parameters the step was given, or "end", at those it returns.
    """

    options: OptimiserOptions
    deterministic_objective: ClassVar[bool]
    loss_at: ClassVar[Literal["start", "end"]]

    @abstractmethod
    def init(self, theta: Tensor, layout: ParameterLayout, total_steps: int | None = None) -> State:
        """The state before the first step from ``theta`` (n,).

        ``total_steps`` is the number of steps of the phase, for learning-rate schedules that end
        with it; None where it is unknown.

        Raises:
            ConfigError: options, layout and ``theta`` do not fit together.
        """

    @abstractmethod
    def refresh(self, theta: Tensor, state: Mapping[str, Tensor], layout: ParameterLayout) -> State:
        """The state to go on with at ``theta`` (n,) once the objective has changed.

        Nothing in it rests on values of the old objective.
        """

    @abstractmethod
    def step(
        self,
        theta: Tensor,
        state: Mapping[str, Tensor],
        objective: Objective,
        layout: ParameterLayout,
    ) -> StepResult:
        """One step from ``theta`` (n,): a pure function of its arguments."""


def check_start(name: str, theta: Tensor, layout: ParameterLayout) -> None:
    """Raise ConfigError unless ``theta`` is a non-empty real vector that fits the layout."""
    layout.check(theta)
    if layout.total == 0:
        raise ConfigError(f"{name}: there are no parameters to optimise (all groups are empty)")
    if not theta.is_floating_point():
        raise ConfigError(f"{name}: theta has dtype {theta.dtype}, a real floating type is needed")
