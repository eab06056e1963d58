"""What one level is trained on, and judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kanpinn.residuals import System
from kanpinn.training.block_data import UNBOUNDED, BlockData
from kanpinn.training.evaluation import (
    HeldOut,
    ReferenceErrors,
    RefinementChange,
    SolutionChange,
    predict,
)
from kanpinn.training.h1_error import H1Error
from kanpinn.training.hierarchy import in_type
from kanpinn.training.memory import Memory
from kanpinn.training.objective import SystemObjective
from kanpinn.training.parameters import ParameterPack
from kanpinn.training.replay import Recorder
from kanpinn.training.smoothing import Roughness
from kanpinn.training.state import LevelRecord


@dataclass
class LevelContext:
    """What a level is trained on.

    Attributes:
        system: networks and scalars.
        data: residual blocks with their points.
        held_out: judges iterates.
        errors: against the reference.
        change: since the level before, where it is asked for.
        h1: error of the gradient.
        since: change since the last networks of the level before, if there is one.
        seed: of mini-batches.
        workers: threads that share the chunks of points.
        roughness: what a penalty weighs, if there is one.
        memory: what evaluations may take.
        recorder: records evaluations that are replayed then, where a device has that.
    """

    system: System
    data: tuple[BlockData, ...]
    held_out: HeldOut
    errors: ReferenceErrors
    change: RefinementChange | None
    h1: H1Error
    since: SolutionChange | None
    seed: int
    workers: int = 1
    roughness: Roughness | None = None
    memory: Memory = UNBOUNDED
    recorder: Recorder | None = None

    def compare(self, coarse: System, record: LevelRecord) -> None:
        """Record the loss before and after the prolongation, on these points, and the change.

        Both in this level's type.
        """
        coarse = in_type(coarse, next(self.system.parameters()).dtype)
        data = tuple(
            BlockData(d.block, d.points, coarse, d.size, d.memory, keep=False) for d in self.data
        )
        record.loss_before_prolongation = _loss(coarse, data)
        record.loss_after_prolongation = _loss(self.system, self.data)
        x = self.held_out.data[0].points[0].x
        fine, before = (predict(s, x, memory=self.memory) for s in (self.system, coarse))
        record.max_change = float((fine - before).abs().max())


def _loss(system: System, data: Sequence[BlockData]) -> float:
    pack = ParameterPack(system)
    return float(SystemObjective(system, pack, data).loss(pack.read()))
