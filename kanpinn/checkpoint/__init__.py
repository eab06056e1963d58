"""Checkpoints: a whole run in one HDF5 file, written all or nothing, and read with suspicion.

``docs/checkpoint.md`` describes the file dataset by dataset. It is readable by any HDF5 tool.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kanpinn.checkpoint.content import RunContent
from kanpinn.checkpoint.envelope import read_sealed, write_sealed
from kanpinn.checkpoint.schema import SCHEMA_VERSION, from_file, to_image
from kanpinn.checkpoint.systems import describe_run, rebuild_run
from kanpinn.errors import CheckpointError, DeviceError, KanpinnError
from kanpinn.training import LevelRecord, RunState

__all__ = [
    "SCHEMA_VERSION",
    "Checkpoint",
    "read_checkpoint",
    "restore_state",
    "write_checkpoint",
]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: plain numbers and text, checked, on no device yet.

    Attributes:
        path: where it was read.
        content: everything in it.
    """

    path: Path
    content: RunContent

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config."""
        return self.content.config

    @property
    def problem(self) -> dict[str, Any]:
        """What was solved."""
        return self.content.problem

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, machine, time."""
        return self.content.provenance

    @property
    def history(self) -> list[dict[str, Any]]:
        """One dictionary per logged line; while networks are tried, of the best one so far."""
        return self.content.outcome.history

    @property
    def levels(self) -> list[LevelRecord]:
        """Records of the levels begun so far, likewise."""
        return [level.record for level in self.content.outcome.levels]

    @property
    def finished(self) -> bool:
        """Whether the run was done when this was written."""
        return self.content.training.finished


def write_checkpoint(
    path: str | os.PathLike[str],
    state: RunState,
    config: Mapping[str, Any],
    problem: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Write the state of a run between two steps, durably and all or nothing.

    Args:
        path: the file; its folder exists.
        state: the run.
        config: the resolved config, of mappings, lists, text, numbers, flags and ``None``.
        problem: what is solved, see :func:`kanpinn.provenance.describe_problem`.
        provenance: see :func:`kanpinn.provenance.gather`.

    Raises:
        CheckpointError: if something cannot be stored or the file cannot be written; an earlier
            file of that name is then untouched.
    """
    try:
        image = to_image(describe_run(state, config, problem, provenance))
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from error
    write_sealed(path, image)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read and check a checkpoint; no code runs, and no problem is imported.

    Raises:
        CheckpointError: naming the file and the reason, if it is missing, a folder, truncated,
            corrupted, of a newer schema, or inconsistent.
        ForeignFileError: a CheckpointError, too, if it is of another program.
    """
    try:
        return Checkpoint(Path(path), from_file(read_sealed(path)))
    except CheckpointError as error:
        raise type(error)(f"checkpoint {path}: {error}") from error


def restore_state(
    checkpoint: Checkpoint,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> RunState:
    """The run's state, bit for bit, from the declarative content alone.

    Args:
        checkpoint: as read.
        device: where the networks go.
        dtype: floating-point type, by default that stored by level. In another one the optimiser's
            state is left out: the phase that was going on starts its optimiser anew.

    Raises:
        DeviceError: if there is no such device.
        CheckpointError: if the stored knots or formulas are not admissible.
    """
    target = _device(device)
    try:
        return rebuild_run(checkpoint.content, target, dtype)
    except (KanpinnError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint {checkpoint.path}: {error}") from error


def _device(name: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(f"device {str(name)!r} is not available here: {reason}") from error
