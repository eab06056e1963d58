"""Solving and loading, from Python and from the command line alike."""

from kanpinn.api.planning import LevelPlan, PhasePlan, phase_plans, plan
from kanpinn.api.preparation import Prepared, prepare
from kanpinn.api.recall import load, problem_of
from kanpinn.api.result import SolveResult
from kanpinn.api.session import solve

__all__ = [
    "LevelPlan",
    "PhasePlan",
    "Prepared",
    "SolveResult",
    "load",
    "phase_plans",
    "plan",
    "prepare",
    "problem_of",
    "solve",
]
