"""Optimisers behind one interface, found by the name in their options."""

from __future__ import annotations

from typing import TypeAlias

from kanpinn.errors import ConfigError
from kanpinn.optimisers.adam import Adam, AdamOptions
from kanpinn.optimisers.base import (
    Condition,
    LeastSquaresObjective,
    Objective,
    Optimiser,
    OptimiserOptions,
    ParameterLayout,
    State,
    StepResult,
    StopReason,
)
from kanpinn.optimisers.lbfgs import LBFGS, LBFGSOptions
from kanpinn.optimisers.levenberg_marquardt import LevenbergMarquardt, LevenbergMarquardtOptions
from kanpinn.optimisers.schedules import (
    BaseSchedule,
    ConstantSchedule,
    CosineSchedule,
    CyclicSchedule,
    ExponentialSchedule,
    Schedule,
    StepSchedule,
)
from kanpinn.optimisers.self_scaled import (
    SelfScaledBFGS,
    SelfScaledBFGSOptions,
    SelfScaledBroyden,
    SelfScaledBroydenOptions,
)

AnyOptimiserOptions: TypeAlias = (
    AdamOptions
    | LBFGSOptions
    | SelfScaledBFGSOptions
    | SelfScaledBroydenOptions
    | LevenbergMarquardtOptions
)
"""The options of all registered optimisers, told apart by their field ``optimiser``."""

OPTIMISERS: dict[str, type[Optimiser]] = {
    "adam": Adam,
    "lbfgs": LBFGS,
    "ssbfgs": SelfScaledBFGS,
    "ssbroyden": SelfScaledBroyden,
    "lm": LevenbergMarquardt,
}
"""Optimiser classes by the name in their options; each takes its options as only argument."""


def build_optimiser(options: OptimiserOptions) -> Optimiser:
    """The optimiser with these options.

    Raises:
        ConfigError: no optimiser is registered under ``options.optimiser``.
    """
    if options.optimiser not in OPTIMISERS:
        raise ConfigError(
            f"unknown optimiser '{options.optimiser}'; the optimisers are {', '.join(OPTIMISERS)}"
        )
    return OPTIMISERS[options.optimiser](options)  # type: ignore[call-arg]


__all__ = [
    "LBFGS",
    "OPTIMISERS",
    "Adam",
    "AdamOptions",
    "AnyOptimiserOptions",
    "BaseSchedule",
    "Condition",
    "ConstantSchedule",
    "CosineSchedule",
    "CyclicSchedule",
    "ExponentialSchedule",
    "LBFGSOptions",
    "LeastSquaresObjective",
    "LevenbergMarquardt",
    "LevenbergMarquardtOptions",
    "Objective",
    "Optimiser",
    "OptimiserOptions",
    "ParameterLayout",
    "Schedule",
    "SelfScaledBFGS",
    "SelfScaledBFGSOptions",
    "SelfScaledBroyden",
    "SelfScaledBroydenOptions",
    "State",
    "StepResult",
    "StepSchedule",
    "StopReason",
    "build_optimiser",
]
