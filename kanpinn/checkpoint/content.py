"""What a checkpoint holds, as plain records of numbers and text: no tensors, no networks, no files.

A run has *parts* (sub-networks; one set of them for each time window), parts have levels, levels
have layers, and every layer has two iterates: the last one, which training continues from, and the
best one by the held-out score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kanpinn.models import Inputs, OutputMap
from kanpinn.training import LevelRecord

Arrays = Mapping[str, NDArray[Any]]
Iterate = Literal["last", "best"]
ITERATES: tuple[Iterate, Iterate] = ("last", "best")

WEIGHTS = ("attention", "balance", "causal")
"""Kinds of weights that change with training: the fields of :class:`kanpinn.training.Weights`."""

NETWORKS = {"kan": "b-spline", "multichannel": "power-relu", "mlp": "affine"}
"""Kinds of network, and the basis of their layers."""


@dataclass(frozen=True)
class KnotStructure:
    """Knots of a layer but for their places.

    Attributes:
        order: ``r``.
        intervals: ``n`` per input channel.
        uniform: whether every channel is equally spaced.
        free: whether the interior knots are trained.
        floor: least share of the mean spacing a free interval keeps.
        squash: map in front of the basis, or ``None``.
        base: function of the base branch, or ``None``.
    """

    order: int
    intervals: tuple[int, ...]
    uniform: bool
    free: bool
    floor: float
    squash: str | None
    base: str | None

    @property
    def ragged(self) -> bool:
        """Whether the channels differ in their number of intervals."""
        return len(set(self.intervals)) > 1

    def shapes(self, out_width: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the arrays of an iterate."""
        channels, n, r = len(self.intervals), self.intervals[0], self.order
        knots: tuple[int, ...] = (channels, n + 1)
        coefficients: tuple[int, ...] = (out_width, channels, n + r - 1)
        if self.ragged:
            knots = (sum(n + 1 for n in self.intervals),)
            coefficients = (out_width, sum(n + r - 1 for n in self.intervals))
        result = {"breakpoints": knots, "coefficients": coefficients}
        if self.free:
            result |= {"knot_logits": (sum(self.intervals),), "knot_offsets": knots}
        if self.base:
            result["base_weights"] = (out_width, channels)
        return result

    def split_knots(self, breakpoints: NDArray[Any]) -> list[NDArray[Any]]:
        """Breakpoints per channel, each ``(n + 1,)``."""
        ends = np.cumsum([n + 1 for n in self.intervals])[:-1]
        return np.split(breakpoints.reshape(-1), ends)


@dataclass(frozen=True)
class LayerContent:
    """One layer on one level.

    Attributes:
        in_width: inputs.
        out_width: outputs.
        knots: structure of the knots; ``None`` for an affine layer.
        last: arrays of the last iterate.
        best: arrays of the best iterate.
    """

    in_width: int
    out_width: int
    knots: KnotStructure | None
    last: Arrays
    best: Arrays

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the arrays of an iterate."""
        if self.knots is not None:
            return self.knots.shapes(self.out_width)
        return {"weights": (self.out_width, self.in_width), "bias": (self.out_width,)}


@dataclass(frozen=True)
class PartContent:
    """One field network: how its inputs and outputs are made, and its layers per level.

    Attributes:
        network: kind of network, a key of :data:`NETWORKS`.
        fields: names of the outputs.
        inputs: coordinates, their bounds, and the input maps.
        outputs: built-in constraint and scaling per field.
        activation: of an MLP, else ``None``.
        frequency: frequency factor of its activation.
        window: number of the time window it belongs to.
        levels: layers by number of the level.
    """

    network: str
    fields: tuple[str, ...]
    inputs: Inputs
    outputs: tuple[OutputMap, ...]
    levels: Mapping[int, tuple[LayerContent, ...]]
    activation: str | None = None
    frequency: float = 1.0
    window: int = 0


def part_key(network: str, window: int) -> str:
    """The name in a checkpoint of a network's part in a time window."""
    return f"{network}@{window}" if window else network


def network_name(key: str, window: int) -> str:
    """The network behind a part's name."""
    return key.removesuffix(f"@{window}") if window else key


@dataclass(frozen=True)
class LevelContent:
    """What is kept of a level beside its layers: its record and its scalars."""

    record: LevelRecord
    best_score: float
    best_step: int
    last: Arrays
    best: Arrays


@dataclass(frozen=True)
class SystemContent:
    """How the parts belong together.

    Attributes:
        coordinates: their names.
        spatial: indices of those that are space.
        parts: names of the parts, in order; see :func:`part_key`.
        scalars: names of the trainable scalars, in order.
    """

    coordinates: tuple[str, ...]
    spatial: tuple[int, ...]
    parts: tuple[str, ...]
    scalars: tuple[str, ...]


@dataclass(frozen=True)
class TrainingContent:
    """Where training stands; the fields are those of :class:`kanpinn.training.RunState`
    and of its :class:`kanpinn.training.Weights`.
    """

    phase: int = 0
    step: int = 0
    total_steps: int = 0
    elapsed: float = 0.0
    restarts: int = 0
    finished: bool = False
    optimiser: Arrays = field(default_factory=dict)
    attention: Arrays = field(default_factory=dict)
    balance: Arrays = field(default_factory=dict)
    causal: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class TrialsContent:
    """Where the choice among initial networks stands: see :class:`kanpinn.training.Trials`.

    Attributes:
        count: networks to be tried.
        scores: of those that are done.
        wall_s: seconds spent on those done that are not the best.
        evaluations: likewise.
        operations: likewise.
        best: the run as the best one of them left it, ``None`` before one is done.
        decides: whether the best one is better than the one under way, too.
    """

    count: int
    scores: tuple[float, ...]
    wall_s: float
    evaluations: int
    operations: int
    best: RunContent | None
    decides: bool


@dataclass(frozen=True)
class RunContent:
    """A whole run.

    Attributes:
        system: how the parts belong together.
        parts: the field networks by name.
        levels: records of the levels begun so far, in that order.
        training: where training stands.
        history: one dictionary per logged line.
        config: the resolved config.
        problem: what was solved.
        provenance: versions, machine, time.
        trials: while initial networks are tried, those before the one that the rest is of.
    """

    system: SystemContent
    parts: Mapping[str, PartContent]
    levels: tuple[LevelContent, ...]
    training: TrainingContent
    history: list[dict[str, Any]]
    config: dict[str, Any]
    problem: dict[str, Any]
    provenance: dict[str, Any]
    trials: TrialsContent | None = None

    @property
    def outcome(self) -> RunContent:
        """What the run's result is of: see :attr:`kanpinn.training.RunState.outcome`."""
        trials = self.trials
        return trials.best if trials and trials.best and trials.decides else self

    def parameters(self, level: LevelContent) -> Iterator[NDArray[Any]]:
        """All arrays of a level's parameters, knots and scalars, of both iterates."""
        for part in self.parts.values():
            if part.window == level.record.window:
                for layer in part.levels[level.record.level]:
                    yield from layer.last.values()
                    yield from layer.best.values()
        yield from level.last.values()
        yield from level.best.values()
