"""Options of training: phases, levels, targets, budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from kanpinn.errors import ConfigError
from kanpinn.training.memory import Memory
from kanpinn.training.phase_options import (
    AutoPhase,
    LevenbergMarquardtPhase,
    Phase,
    Precision,
    on_level,
)
from kanpinn.training.weight_options import AttentionOptions, BalanceOptions, CausalOptions

FIRST_LINES = 4  # logged lines of a phase, before ``refine: auto`` judges it


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """Accuracy at which a run is done; whichever of the given ones is met last counts."""

    rel_l2: Annotated[Annotated[float, Gt(0)] | None, "relative L2 error (needs a reference)"] = (
        None
    )
    heldout_residual: Annotated[Annotated[float, Gt(0)] | None, "held-out residual"] = None
    loss: Annotated[Annotated[float, Gt(0)] | None, "training loss"] = None
    estimated_error: Annotated[
        Annotated[float, Gt(0)] | None,
        "relative L2 change of the solution since the level before, once the held-out score has "
        "halved; needs no reference, but two levels",
    ] = None

    @property
    def given(self) -> dict[str, float]:
        """The targets that were given."""
        pairs = {
            "rel_l2": self.rel_l2,
            "heldout_residual": self.heldout_residual,
            "loss": self.loss,
            "estimated_error": self.estimated_error,
        }
        return {name: value for name, value in pairs.items() if value is not None}

    def met(self, row: Mapping[str, Any]) -> bool:
        """Whether a logged line meets all targets; False if there is none."""
        values = [(row.get(name), limit) for name, limit in self.given.items()]
        return bool(values) and all(v is not None and v <= limit for v, limit in values)


AUTO_PENALTIES = tuple(10.0**-k for k in range(1, 8))


@dataclass(frozen=True, kw_only=True)
class SmoothingOptions:
    """A penalty ``lambda sum int (d^k g / ds^k)^2 ds`` over the networks' univariate functions g.

    A function does not change under a prolongation, and so does its penalty: the same ``lambda``
    asks for the same smoothness on every level. On the coarsest level the phases are done for one
    ``lambda`` after the other. A finer level goes on from the best iterate by the held-out score,
    with the ``lambda`` that was found with and weaker ones. The best of all is the solution.
    """

    penalties: Annotated[
        Literal["auto"] | tuple[Annotated[float, Ge(0)], ...],
        "values of lambda, strongest first: the phases are done for each, from where the one "
        "before ended; finer levels leave out those stronger than the best; auto: 0.1 to 1e-7 in "
        "powers of ten",
    ] = "auto"
    derivative: Annotated[int, Ge(1), Le(4), "k, below the splines' order"] = 2
    layers: Annotated[
        tuple[str, ...],
        "layers it acts on, as patterns: *, *.layer1, or <network>.* where a problem has several",
    ] = ("*",)

    def __post_init__(self) -> None:
        if not self.values or any(b >= a for a, b in pairwise(self.values)):
            raise ConfigError(
                f"training.smoothing.penalties: found {list(self.values)}, allowed: at least one "
                "number, strictly decreasing"
            )

    @property
    def values(self) -> tuple[float, ...]:
        """All values of lambda, strongest first."""
        return AUTO_PENALTIES if self.penalties == "auto" else tuple(self.penalties)


@dataclass(frozen=True, kw_only=True)
class StartsOptions:
    """Random initial networks, of which the best one after the first levels goes on.

    All are trained there as the run itself would be. The best has the lowest held-out score.
    """

    count: Annotated[int, Ge(2), Le(100), "initial networks; the first is that of a run without"]
    levels: Annotated[int, Ge(1), Le(20), "levels that all of them are trained on"] = 1

    def on(self, place: int) -> int:
        """How many are trained on a level; ``place`` is 0 for the first one with steps."""
        return self.count if place < self.levels else 1


Work = Annotated[float, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """What a level may spend on training, counted as docs/method.md says.

    A level of every time window ends with the step that brings it to its share, in whichever of
    its phases, and the next one goes on. Steps limit it too.
    """

    of: Annotated[
        Literal["operations", "evaluations"],
        "what is counted: floating-point operations, or evaluations of the loss or the residuals",
    ] = "operations"
    per_level: Annotated[
        Work | tuple[Work, ...],
        "the share of every level, or a list per level, coarsest first; 0 skips the level; the "
        "last entry holds for all further levels, entries beyond the last level are not used",
    ]

    def __post_init__(self) -> None:
        if not isinstance(self.per_level, int | float) and not self.per_level:
            raise ConfigError(
                "training.work.per_level: found an empty list, allowed: a number, or one for every "
                "level"
            )

    def on(self, level: int) -> float:
        """The share of a level."""
        return on_level(self.per_level, level)

    def spent(self, record: Mapping[str, Any]) -> bool:
        """Whether a level, by its record as in the summary, has spent its share."""
        return bool(record[self.of] >= self.on(record["level"]))


LayerKnots = Annotated[int, Gt(0)] | tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Levels, phases, budgets and how often to look."""

    levels: Annotated[int, Ge(1), Le(20), "number of levels, the coarsest included"] = 1
    windows: Annotated[
        int,
        Ge(1),
        Le(1000),
        "time windows of equal length, solved one after the other, each by all levels and phases",
    ] = 1
    refine: Annotated[
        Literal["dyadic", "auto", "adaptive"] | tuple[int | tuple[LayerKnots, ...], ...],
        "dyadic; auto: dyadic too, but a level ends once its points, its knots or the optimiser "
        "limit it, with steps as the most it may take; adaptive: only the intervals whose halves "
        "promise the lowest loss are halved; or per refinement the new number of intervals, or a "
        "list per layer of numbers of intervals or of breakpoints on [-1, 1]",
    ] = "dyadic"
    refine_share: Annotated[
        float,
        Gt(0),
        Le(1),
        "with refine: adaptive, the share of a layer's intervals that a refinement halves",
    ] = 0.5
    max_extensions: Annotated[
        int,
        Ge(0),
        Le(6),
        "with refine: auto, how often the run may double the points of the level it is on, and of "
        "those that follow, where they are what limits it",
    ] = 2
    refine_layers: Annotated[
        tuple[bool, ...] | None,
        "which layers are refined where refine is no list; all by default",
    ] = None
    transfer: Annotated[
        Literal["prolongation", "least_squares"],
        "how coefficients reach the next level: exactly, or refitted (grid extension, a baseline)",
    ] = "prolongation"
    precision: Annotated[
        tuple[Precision, ...] | None,
        "type of all numbers on every level, coarsest first, in place of dtype; the last entry "
        "holds for all further levels, entries beyond the last level are not used",
    ] = None
    phases: Annotated[tuple[Phase, ...], "what is done on every level, in order"] = (AutoPhase(),)
    starts: Annotated[
        StartsOptions | None, "several random initial networks, the best of which goes on"
    ] = None
    attention: Annotated[AttentionOptions | None, "residual-based attention"] = None
    balance: Annotated[BalanceOptions | None, "factors that balance the blocks' losses"] = None
    causal: Annotated[CausalOptions | None, "weights that respect the order of time"] = None
    smoothing: Annotated[
        SmoothingOptions | None, "penalty on rough splines, chosen by the held-out score"
    ] = None
    target: Annotated[TargetOptions, "accuracy at which the run is done"] = TargetOptions()
    work: Annotated[WorkOptions | None, "budget of every level, counted and not timed"] = None
    time_limit: Annotated[
        Annotated[float, Gt(0)] | None, "budget in seconds; it only ends a run"
    ] = None
    max_restarts: Annotated[
        int, Ge(0), "restarts from the best iterate after a non-finite loss"
    ] = 3
    log_every: Annotated[int, Gt(0), "steps between logged lines and held-out evaluations"] = 50
    checkpoint_every: Annotated[int, Gt(0), "steps between checkpoints"] = 1000
    chunk: Annotated[
        Annotated[int, Gt(0)] | None,
        "rows evaluated at once; by default a rule on caches and on work",
    ] = None

    def __post_init__(self) -> None:
        for number, phase in enumerate(self.phases):
            if not isinstance(phase.steps, int) and not phase.steps:
                raise ConfigError(
                    f"training.phases.{number}.steps: found an empty list, allowed: a number, or "
                    "one for every level"
                )
        if self.precision == ():
            raise ConfigError(
                "training.precision: found an empty list, allowed: null, or float32 or float64 for "
                "every level"
            )
        if not self.phases:
            raise ConfigError("training.phases: empty; at least one phase is needed")
        if not isinstance(self.refine, str) and len(self.refine) != self.levels - 1:
            raise ConfigError(
                f"training.refine: found {len(self.refine)} refinements, {self.levels} levels "
                f"need {self.levels - 1}"
            )
        trained = [level for level in range(self.levels) if self.steps_on(level)]
        if not trained:
            empty = (
                "training.phases: all steps are 0"
                if self.work is None
                else ("training.work.per_level: every level with steps has 0")
            )
            raise ConfigError(f"{empty}, so there is nothing to do")
        if self.marks and len(trained) < self.levels:
            raise ConfigError(
                f"training.phases: {self.levels - len(trained)} of {self.levels} levels have no "
                "steps, allowed: some on every level with refine: adaptive, because trained "
                "networks show where knots are needed"
            )
        if self.target.estimated_error is not None and len(trained) < 2:
            raise ConfigError(
                "training.target.estimated_error: found "
                f"{self.target.estimated_error:g}, allowed: null, because only one level is trained"
            )
        if self.estimates and self.windows > 1:
            raise ConfigError(
                f"training.windows: found {self.windows}, allowed: 1 with refine: auto or a target "
                "for the estimated error, which are those of a whole solution"
            )
        if self.adapts:
            self._check_adapting(max(self.steps_on(level) for level in trained))

    def _check_adapting(self, steps: int) -> None:
        """Refuse what ``refine: auto`` could not judge."""
        for name in self.reweighting:
            raise ConfigError(
                f"training.{name}: found with refine: auto, allowed: null, because the loss "
                "could not be compared with the held-out residual"
            )
        if self.log_every * FIRST_LINES > steps:
            raise ConfigError(
                f"training.log_every: found {self.log_every}, allowed: at most "
                f"{steps // FIRST_LINES}, because refine: auto judges a level from "
                f"{FIRST_LINES} logged lines on, and none has more than {steps} steps"
            )

    def bounded(self, memory: Memory) -> TrainingOptions:
        """With linear systems that keep to their share of a bound on memory."""
        if memory.bound_mib is None:
            return self
        phases = [
            replace(phase, memory_mib=memory.systems_mib(phase.memory_mib))
            if isinstance(phase, LevenbergMarquardtPhase)
            else phase
            for phase in self.phases
        ]
        return replace(self, phases=tuple(phases))

    @property
    def linearises(self) -> bool:
        """Whether anything asks for the Jacobian of the points that are trained on."""
        least_squares = any(isinstance(phase, LevenbergMarquardtPhase) for phase in self.phases)
        by_kernel = self.balance is not None and self.balance.by == "ntk"
        return least_squares or by_kernel or self.adapts or self.marks

    @property
    def reweighting(self) -> tuple[str, ...]:
        """What changes the loss while a level is trained, so that its values do not compare."""
        names = ("attention", "balance", "causal", "smoothing")
        return tuple(name for name in names if getattr(self, name) is not None)

    @property
    def adapts(self) -> bool:
        """Whether levels end by what limits them."""
        return self.refine == "auto"

    @property
    def marks(self) -> bool:
        """Whether trained networks decide where knots are inserted."""
        return self.refine == "adaptive"

    @property
    def estimates(self) -> bool:
        """Whether the change of the solution since the level before is measured."""
        return self.adapts or self.target.estimated_error is not None

    def precision_on(self, level: int) -> Precision | None:
        """Type of a level by name, ``None`` where it is the run's own."""
        return None if self.precision is None else on_level(self.precision, level)

    def steps_of(self, phase: Phase, level: int) -> int:
        """Steps of a phase on a level; a budget without work skips the level."""
        return phase.steps_on(level) if self.work is None or self.work.on(level) else 0

    def steps_on(self, level: int) -> int:
        """Steps of all phases on a level."""
        return sum(self.steps_of(phase, level) for phase, _ in self.stages)

    @property
    def stages(self) -> tuple[tuple[Phase, float | None], ...]:
        """What is done on a level, in order: phases, each with the penalty's weight if any."""
        weights = (None,) if self.smoothing is None else self.smoothing.values
        return tuple((phase, weight) for weight in weights for phase in self.phases)

    def first_stage(self, chosen: float | None) -> int:
        """The stage a level begins with: stronger penalties than that chosen before it are done."""
        weights = [weight for _, weight in self.stages]
        return weights.index(chosen) if chosen in weights else 0
