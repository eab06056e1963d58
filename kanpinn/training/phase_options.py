"""Options of phases: which optimiser, how long, on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from annotated_types import Ge, Gt

from kanpinn.optimisers import (
    AdamOptions,
    LBFGSOptions,
    LevenbergMarquardtOptions,
    SelfScaledBFGSOptions,
    SelfScaledBroydenOptions,
)

Precision = Literal["float64", "float32"]
Entry = TypeVar("Entry", int, float, Precision)
Steps = Annotated[int, Ge(0)]
TrainedGroups = Annotated[
    tuple[str, ...],
    "parameter groups trained, as patterns: *, *.coefficients, *.base_weights, *.knots_free, "
    "scalars.*",
]
MOST_STEPS = 1000  # that a phase takes on a level by default


@dataclass(frozen=True, kw_only=True)
class PhaseOptions:
    """How long a phase lasts on each level, and what it trains."""

    steps: Annotated[
        Steps | tuple[Steps, ...],
        "optimiser steps on every level, or a list per level, coarsest first; 0 skips the level; "
        "the last entry holds for all further levels, entries beyond the last level are not used",
    ] = MOST_STEPS
    train: TrainedGroups = ("*",)

    def steps_on(self, level: int) -> int:
        """Steps on one level."""
        return on_level(self.steps, level)


def on_level(entries: Entry | tuple[Entry, ...], level: int) -> Entry:
    """The entry of a level; the last one holds for all further levels."""
    return entries[min(level, len(entries) - 1)] if isinstance(entries, tuple) else entries


@dataclass(frozen=True, kw_only=True)
class AutoPhase:
    """Chosen before the run, by the problem and its size; the saved config has the choice.

    See :func:`~kanpinn.training.choice.resolve_phases`.
    """

    optimiser: Annotated[
        Literal["auto"],
        "lm if every loss is a sum of squares and no other phase takes mini-batches; otherwise "
        "ssbroyden up to 2,000 parameters on the finest level, and lbfgs beyond",
    ] = "auto"
    steps: Annotated[
        Literal["auto"] | Steps | tuple[Steps, ...],
        "as for the others; auto: on every level 60 for lm (with refine: auto four times log_every "
        "if that is more) and 1000 for the others",
    ] = "auto"
    train: TrainedGroups = ("*",)

    def steps_on(self, level: int) -> int:
        """The most steps it may come to have on one level."""
        return MOST_STEPS if self.steps == "auto" else on_level(self.steps, level)


@dataclass(frozen=True, kw_only=True)
class AdamPhase(PhaseOptions, AdamOptions):
    """A phase of Adam steps."""

    batch: Annotated[
        Annotated[int, Gt(0)] | None, "rows of each block per step; all of them by default"
    ] = None


@dataclass(frozen=True, kw_only=True)
class LBFGSPhase(PhaseOptions, LBFGSOptions):
    """A phase of L-BFGS iterations on the full batch."""


@dataclass(frozen=True, kw_only=True)
class SelfScaledBFGSPhase(PhaseOptions, SelfScaledBFGSOptions):
    """A phase of self-scaled BFGS iterations on the full batch."""


@dataclass(frozen=True, kw_only=True)
class SelfScaledBroydenPhase(PhaseOptions, SelfScaledBroydenOptions):
    """A phase of self-scaled Broyden iterations on the full batch."""


@dataclass(frozen=True, kw_only=True)
class LevenbergMarquardtPhase(PhaseOptions, LevenbergMarquardtOptions):
    """A phase of Levenberg-Marquardt steps on the full batch; losses must be sums of squares."""


Phase = (
    AutoPhase
    | AdamPhase
    | LBFGSPhase
    | SelfScaledBFGSPhase
    | SelfScaledBroydenPhase
    | LevenbergMarquardtPhase
)
