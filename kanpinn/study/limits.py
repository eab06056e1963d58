"""Whether it is the optimiser, and not the knots, that limits a level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kanpinn.optimisers import StopReason
from kanpinn.training.control import LEAST_GAIN, log_fall
from kanpinn.training.loop import OPTIMISER_STOPS
from kanpinn.training.options import FIRST_LINES

# The optimiser has done what it can, or something else is known to limit the level.
SETTLED = frozenset({*OPTIMISER_STOPS, StopReason.KNOTS, StopReason.POINTS})


def limited_by_optimiser(
    record: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], fixed_loss: bool = True
) -> bool | None:
    """Whether more steps, or a better optimiser, would have lowered the level's error.

    By the first of these that applies:

    * a level that ended by ``optimiser`` is limited by it;
    * where both parts of the training residual are known, it is the optimiser's if that is the
      larger one;
    * a level whose optimiser stopped by itself, or that ended by its knots or points, is not;
    * a level that was ended from outside (steps, work, time, a target) is if its training residual,
      the root of the loss, still fell: by more than a tenth over the second half of its lines.
      Where the loss itself changes, its values do not compare, and the held-out score, which has
      fixed weights and no penalty, counts in its place.

    ``None`` where there are fewer than four lines, so that nobody can tell.

    Args:
        record: of the level, from the summary.
        lines: logged on it.
        fixed_loss: whether all losses are of one objective: with attention, balance, causal weights
            or penalties they are not (:attr:`~kanpinn.training.TrainingOptions.reweighting`).
    """
    reason = record["stop_reason"]
    if reason == StopReason.OPTIMISER:
        return True
    within, beyond = record.get("optimisation_error"), record.get("discretisation_error")
    if within is not None and beyond is not None:
        return bool(within > beyond)
    if reason in SETTLED:
        return False
    name = "loss" if fixed_loss else "heldout_score"
    known = [line for line in lines if line.get(name) is not None]
    if len(known) < FIRST_LINES:
        return None
    return log_fall(known, name) > math.log(LEAST_GAIN)
