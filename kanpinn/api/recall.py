"""Coming back to a run: its solution."""

from __future__ import annotations

import os

import torch

from kanpinn.solution import Solution
from kanpinn.solution.origin import AnyProblem, problem_of


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
