"""Coming back to a run: its solution, and the problem it was solved for."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from kanpinn.api.preparation import AnyProblem
from kanpinn.config import parse_config
from kanpinn.errors import ProblemError
from kanpinn.problem import Problem
from kanpinn.provenance import file_sha256
from kanpinn.registry import build_problem
from kanpinn.solution import Solution


def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    problem: AnyProblem | None = None,
    trust: bool = False,
) -> Solution:
    """The solution of a run, from its folder or its checkpoint.

    It is rebuilt from what the checkpoint states, and runs no code of the problem.

    Args:
        path: run folder or checkpoint file.
        device: where it is to be evaluated.
        dtype: floating-point type to evaluate in, by default that of every level.
        problem: the problem it should be a solution of: checked.
        trust: whether the stored problem, a user's file for instance, may be imported: it is, and
            checked.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
        DeviceError: if there is no such device.
        ProblemError: if the problem is another one than was solved.
    """
    solution = Solution.load(path, device, dtype)
    if problem is not None or trust:
        problem_of(solution, problem, trust)
    return solution


def problem_of(
    solution: Solution, problem: AnyProblem | None = None, trust: bool = False
) -> Problem:
    """The problem that a solution belongs to, for its reference and its residual.

    Args:
        solution: of a run.
        problem: the problem itself, where it is at hand.
        trust: whether the user's file that defined it may be executed; registered problems are
            installed packages and need no such word.

    Raises:
        ProblemError: if it cannot be had, may not be imported, or is another one.
    """
    if problem is not None:
        found = problem() if isinstance(problem, type) else problem
    else:
        _check_source(solution, trust)
        config = parse_config(solution.config, "the run's config")
        found = build_problem(config.problem)
    fields, names = tuple(found.fields), tuple(found.domain.names)
    if sorted(fields) != sorted(solution.fields) or names != solution.coordinates:
        raise ProblemError(
            f"problem {type(found).__name__} has {', '.join(fields)} of ({', '.join(names)}), the "
            f"solution {', '.join(solution.fields)} of ({', '.join(solution.coordinates)})"
        )
    return found


def _check_source(solution: Solution, trust: bool) -> None:
    """A user's file must be trusted, there, and what it was."""
    name, source = solution.problem.get("name"), solution.problem.get("source")
    if source is None:
        return
    path = Path(source["path"])
    if not trust:
        raise ProblemError(
            f"problem {name}: the code in {path} is not imported unless told to (in Python "
            "trust=True, on the command line --trust)"
        )
    if not path.is_file():
        raise ProblemError(f"problem {name}: {path} is no longer there")
    if file_sha256(path) != source["sha256"]:
        raise ProblemError(f"problem {name}: {path} has changed since the run (SHA-256 differs)")
