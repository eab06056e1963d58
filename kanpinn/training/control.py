"""What limits a level, judged by residuals alone: the rules of ``refine: auto``.

``T`` is the training residual, the root of the loss, and ``H`` the held-out score, the root of the
same weighted sum of squares at held-out points. Rules compare the first half of the lines that a
phase has logged with all of them, so that none depends on the unit of a step; and they are asked
after 4, 6, 8, 12, 16, 24, ... lines, so that they cost little. All they read is the history.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kanpinn.optimisers import StopReason
from kanpinn.optimisers.linear_models import pivoted_rank
from kanpinn.residuals import System
from kanpinn.training.block_data import BlockData
from kanpinn.training.objective import SystemObjective
from kanpinn.training.options import FIRST_LINES
from kanpinn.training.parameters import ParameterPack
from kanpinn.training.state import EXTENDED, RunState

LARGEST_RATIO = 2.0  # of H to T, while the points are enough
LEAST_FOLLOWING = 0.5  # share of the fall of log T that log H must have, too, above that ratio
LEAST_GAIN = 1.1  # fall of T over the second half of the lines, below which it has stalled
EXTENSION = 2  # factor on the points of an extended level

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ErrorSplit:
    """The training residual split in two orthogonal parts: ``T^2 = optimisation^2 + knots^2``.

    With ``J`` the Jacobian of the residuals ``r``, ``|r| = T``: ``discretisation`` is
    ``min_d |J d + r|``, what no change of the parameters removes to first order, and
    ``optimisation`` is the norm of the rest, the projection of ``r`` onto the range of ``J``.
    """

    optimisation: float
    discretisation: float


def split_errors(system: System, data: Sequence[BlockData], workers: int = 1) -> ErrorSplit:
    """Both errors at the current parameters; as dear as one Levenberg-Marquardt step.

    The triangle of ``[J | r]`` stands for both; QR with column pivoting tells the range of ``J``
    from directions that are in it by round-off alone.
    """
    pack = ParameterPack(system)
    objective = SystemObjective(system, pack, data, workers=workers)
    triangle = objective.triangle(pack.read())
    last = triangle[:, -1].double().cpu().numpy()
    columns = triangle[:-1, :-1].cpu().numpy()  # below them the triangle is zero
    from scipy.linalg import qr_multiply  # when needed, as everywhere

    rotated, upper, _ = qr_multiply(columns, last[:-1], pivoting=True)
    rank = pivoted_rank(upper, torch.finfo(triangle.dtype).eps)
    within, beyond = rotated[:rank], np.append(rotated[rank:], last[-1])
    return ErrorSplit(float(np.linalg.norm(within)), float(np.linalg.norm(beyond)))


def judged_lines(state: RunState) -> list[Row]:
    """The lines of the current phase on the current level and its current points.

    The state counts the steps of the phase: two in a row may be of one optimiser.
    """
    before = state.total_steps - state.step
    lines: list[Row] = []
    for row in reversed(state.history):
        if row["step"] <= before or row["phase"] == EXTENDED:
            break
        lines.append(row)
    return lines[::-1]


def is_due(lines: int) -> bool:
    """Whether to judge after so many lines: 4, 6, 8, 12, 16, 24, 32, ..."""
    power = 1 << max(lines.bit_length() - 1, 0)
    return lines >= FIRST_LINES and lines in (power, power + power // 2)


def verdict(lines: Sequence[Row], split: Callable[[], ErrorSplit | None]) -> StopReason | None:
    """What limits the level now, or ``None`` while its residual goes on falling.

    * ``POINTS``: ``H`` is above twice ``T``, and has stopped following it, or ``T`` has stalled;
    * ``KNOTS``: the optimisation error is at or below the discretisation error;
    * ``OPTIMISER``: ``T`` has stalled above that.

    Args:
        lines: see :func:`judged_lines`; an even number.
        split: of the errors now, ``None`` where that is too dear.
    """
    gain, followed = (log_fall(lines, name) for name in ("loss", "heldout_score"))
    stalled = gain < math.log(LEAST_GAIN)
    if points_are_few(lines[-1]) and (stalled or followed < LEAST_FOLLOWING * gain):
        return StopReason.POINTS
    return limit_of_training(split()) or (StopReason.OPTIMISER if stalled else None)


def points_are_few(row: Row) -> bool:
    """Whether the held-out score is far above the training residual."""
    return bool(row["heldout_score"] > LARGEST_RATIO * _size(row, "loss"))


def limit_of_training(errors: ErrorSplit | None) -> StopReason | None:
    """``KNOTS`` if the optimisation error is the smaller one."""
    if errors is not None and errors.optimisation <= errors.discretisation:
        return StopReason.KNOTS
    return None


def log_fall(lines: Sequence[Row], name: str) -> float:
    """Fall of the logarithm of the least residual, from the first half of the lines to all."""
    sizes = [_size(row, name) for row in lines]
    return math.log(min(sizes[: len(sizes) // 2]) / min(sizes))


def _size(row: Row, name: str) -> float:
    """A residual of a line, above zero."""
    value = float(row[name])
    value = math.sqrt(abs(value)) if name == "loss" else abs(value)
    return max(value, math.sqrt(torch.finfo(torch.float64).tiny))
