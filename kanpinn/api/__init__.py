"""Solving and loading, from Python and from the command line alike."""

from kanpinn.api.plan import LevelPlan, plan
from kanpinn.api.prepare import Prepared, prepare
from kanpinn.api.recall import load, problem_of
from kanpinn.api.result import SolveResult
from kanpinn.api.solve import solve

__all__ = [
    "LevelPlan",
    "Prepared",
    "SolveResult",
    "load",
    "plan",
    "prepare",
    "problem_of",
    "solve",
]
