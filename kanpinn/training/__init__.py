"""Training: the one loop, the multilevel engine, evaluation."""

from kanpinn.training.evaluation import Errors, ReferenceErrors, predict
from kanpinn.training.hierarchy import Hierarchy, Level, Refinement, build_hierarchy
from kanpinn.training.multilevel import MultilevelRun
from kanpinn.training.options import (
    SmoothingOptions,
    TargetOptions,
    TrainingOptions,
    WorkOptions,
)
from kanpinn.training.phase_options import (
    AdamPhase,
    AutoPhase,
    LBFGSPhase,
    LevenbergMarquardtPhase,
    Phase,
    SelfScaledBFGSPhase,
    SelfScaledBroydenPhase,
)
from kanpinn.training.run_options import RunOptions
from kanpinn.training.state import LevelRecord, LevelState, NullObserver, Observer, RunState, Trials
from kanpinn.training.weight_options import AttentionOptions, BalanceOptions, CausalOptions
from kanpinn.training.weighting import Weights

__all__ = [
    "AdamPhase",
    "AttentionOptions",
    "AutoPhase",
    "BalanceOptions",
    "CausalOptions",
    "Errors",
    "Hierarchy",
    "LBFGSPhase",
    "Level",
    "LevelRecord",
    "LevelState",
    "LevenbergMarquardtPhase",
    "MultilevelRun",
    "NullObserver",
    "Observer",
    "Phase",
    "ReferenceErrors",
    "Refinement",
    "RunOptions",
    "RunState",
    "SelfScaledBFGSPhase",
    "SelfScaledBroydenPhase",
    "SmoothingOptions",
    "TargetOptions",
    "TrainingOptions",
    "Trials",
    "Weights",
    "WorkOptions",
    "build_hierarchy",
    "predict",
]
