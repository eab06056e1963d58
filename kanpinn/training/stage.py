"""Where a level stands: the objective of its stage as it is now, and the line that tells of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kanpinn.sampling import batch_indices
from kanpinn.training.context import LevelContext
from kanpinn.training.objective import SystemObjective
from kanpinn.training.options import TrainingOptions
from kanpinn.training.parameters import ParameterPack
from kanpinn.training.phase_options import AdamPhase, Phase
from kanpinn.training.replay import Recorder, Recordings, ReplayedObjective
from kanpinn.training.smoothing import Penalty
from kanpinn.training.state import RunState
from kanpinn.training.weighting import Weighting


class Stage:
    """The current stage: a phase, or with penalties to choose from, a phase with one of them.

    Args:
        options: the stages.
        context: networks, points, and what judges them.
        state: says which stage it is; never changed here.
        weighting: weights that change with training.
    """

    def __init__(
        self,
        options: TrainingOptions,
        context: LevelContext,
        state: RunState,
        weighting: Weighting,
    ) -> None:
        self.options, self.context, self.state = options, context, state
        self.weighting = weighting
        self._recordings: tuple[int, Recordings] | None = None  # and the phase they are of

    @property
    def weight(self) -> float | None:
        """Weight of the stage's penalty; behind the last stage, still the last one's."""
        stages = self.options.stages
        return stages[min(self.state.phase, len(stages) - 1)][1]

    @property
    def penalty(self) -> Penalty | None:
        """The stage's penalty."""
        weight, roughness = self.weight, self.context.roughness
        return None if weight is None or roughness is None else Penalty(weight, roughness)

    def objective(self, phase: Phase, pack: ParameterPack) -> SystemObjective:
        """What the next step of a phase minimises: all points, or its mini-batch."""
        kind: Callable[..., SystemObjective] = SystemObjective
        if self.context.recorder is not None:
            kind = partial(ReplayedObjective, self._recordings_now(self.context.recorder))
        return kind(
            self.context.system,
            pack,
            self.context.data,
            self.state.weights.attention,
            self._batch(phase),
            self.context.workers,
            self.weighting.factors(),
            penalty=self.penalty,
        )

    def _recordings_now(self, recorder: Recorder) -> Recordings:
        """The phase's recordings; those of the one before are dropped, with their memory."""
        if self._recordings is None or self._recordings[0] != self.state.phase:
            self._recordings = self.state.phase, Recordings(recorder)
        return self._recordings[1]

    def _batch(self, phase: Phase) -> dict[str, Tensor]:
        """Rows of the next step's mini-batch by block, where it is not all of them."""
        if not isinstance(phase, AdamPhase) or phase.batch is None:
            return {}
        chosen = {}
        for data in self.context.data:
            if data.n_rows > phase.batch and data.block.group == 1:
                step, name = self.state.total_steps, data.block.name
                rows = batch_indices(data.n_rows, phase.batch, self.context.seed, step, name)
                chosen[name] = _sent(rows, data.points[0].x.device)
        return chosen

    def loss(self) -> float:
        """The whole objective at the current iterate."""
        pack = ParameterPack(self.context.system)
        weights, factors = self.state.weights.attention, self.weighting.factors()
        objective = SystemObjective(
            self.context.system,
            pack,
            self.context.data,
            weights,
            factors=factors,
            penalty=self.penalty,
        )
        return float(objective.loss(pack.read()))

    def line(self, loss: float, phase: str | None, elapsed: Callable[[], float]) -> dict[str, Any]:
        """Held-out residual and error of the current iterate, as a line of the history.

        Args:
            loss: its loss.
            phase: what the line calls the phase.
            elapsed: reads the run's clock, once all is evaluated.
        """
        state, system = self.state, self.context.system
        residual, score = self.context.held_out.evaluate(system)
        errors = self.context.errors.evaluate(system)
        change = self.context.change
        row = {
            "level": state.current.record.level,
            "phase": phase,
            "step": state.total_steps,
            "evaluations": sum(entry.record.evaluations for entry in state.levels),
            "operations": sum(entry.record.operations for entry in state.levels),
            "loss": loss,
            "heldout_residual": residual,
            "heldout_score": score,
            "rel_l2": errors.rel_l2 if errors else None,
            "linf": errors.linf if errors else None,
            "wall_s": elapsed(),
        }
        if self.options.windows > 1:
            row["window"] = state.current.record.window
        if self.weight is not None:
            row["smoothing"] = self.weight
        if self.options.estimates:
            row["estimated_error"] = change.evaluate(system, score) if change else None
        for name, value in system.scalars.items():
            row[f"scalar.{name}"] = float(value.detach())
        return row


def _sent(rows: Tensor, device: torch.device) -> Tensor:
    """Row numbers on a device, which the host does not wait for."""
    if device.type == "cuda":
        rows = rows.pin_memory()
    return rows.to(device, non_blocking=True)
