"""Solving and loading, from Python and from the command line alike."""

from kanpinn.api.inspection import in_words, inspect
from kanpinn.api.planning import LevelPlan, PhasePlan, phase_plans, plan
from kanpinn.api.preparation import Prepared, prepare
from kanpinn.api.recall import load
from kanpinn.api.result import SolveResult
from kanpinn.api.run_report import write_run_report
from kanpinn.api.session import solve
from kanpinn.api.studies import StudyPlan, plan_study, run_study
from kanpinn.api.study_analyses import failures
from kanpinn.api.study_report import write_report
from kanpinn.api.study_results import CaseResult, Study, load_study
from kanpinn.solution.origin import problem_of

__all__ = [
    "CaseResult",
    "LevelPlan",
    "PhasePlan",
    "Prepared",
    "SolveResult",
    "Study",
    "StudyPlan",
    "failures",
    "in_words",
    "inspect",
    "load",
    "load_study",
    "phase_plans",
    "plan",
    "plan_study",
    "prepare",
    "problem_of",
    "run_study",
    "solve",
    "write_report",
    "write_run_report",
]
