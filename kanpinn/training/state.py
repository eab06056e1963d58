"""What a run consists of while it goes on: everything needed to continue exactly."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from kanpinn.optimisers import StopReason
from kanpinn.residuals import System
from kanpinn.training.weighting import Weights

Parameters = dict[str, Tensor]
# Phases of logged lines that no optimiser gives a name:
EXTENDED = "extended"  # training goes on with more points
STOPPED = "stopped"  # the run was stopped between two lines; forgotten when it goes on


def key_of(row: Mapping[str, Any]) -> tuple[int, int]:
    """Time window and level of a logged line, as :attr:`LevelRecord.key`."""
    return row.get("window") or 0, row["level"]


def snapshot(system: System) -> Parameters:
    """Copies of all parameters by name."""
    return {name: p.detach().clone() for name, p in system.named_parameters()}


def restore(system: System, values: Parameters) -> None:
    """Set the parameters from a snapshot."""
    with torch.no_grad():
        for name, p in system.named_parameters():
            p.copy_(values[name])


@dataclass
class LevelRecord:
    """What the run reports of one level.

    ``operations`` are those spent on training, see :mod:`kanpinn.training.work`.
    ``loss_before_prolongation`` and ``loss_after_prolongation`` are the same loss, on this
    level's points, of the coarse and of the prolongated networks. ``max_change`` is the largest
    difference of their values at held-out points. ``smoothing`` is the weight of the penalty that
    the level's best iterate was found with. Errors are those of all times up to the end of the
    level's time window: ``rel_l2`` and ``linf`` of the values, and ``h1`` of the gradient
    (:class:`~kanpinn.training.h1_error.H1Error`), of the level's last networks. ``change`` is the
    relative L2 difference of these from the last networks of the level before. Both ``h1`` and
    ``change`` are known once the level has ended. ``extensions`` counts how often the points were
    doubled, on this level and those before. The two errors that follow are parts of the training
    residual (:class:`~kanpinn.training.control.ErrorSplit`), known with ``refine: auto``;
    ``estimated_error`` is described at :class:`~kanpinn.training.evaluation.RefinementChange`.
    ``dtype`` is the type of all its numbers (``None`` in records of earlier versions).
    ``start`` tells which of the seed's random initial networks it comes from. ``conditions`` are
    the :class:`~kanpinn.optimisers.Condition` met, with spaces between.
    """

    level: int
    n_intervals: list[int]
    n_params: int
    n_points: int
    steps: int = 0
    evaluations: int = 0
    operations: int = 0
    wall_s: float = 0.0
    loss_before_prolongation: float | None = None
    loss_after_prolongation: float | None = None
    max_change: float | None = None
    loss: float | None = None
    heldout_residual: float | None = None
    rel_l2: float | None = None
    linf: float | None = None
    h1: float | None = None
    change: float | None = None
    extensions: int = 0
    optimisation_error: float | None = None
    discretisation_error: float | None = None
    estimated_error: float | None = None
    stop_reason: str | None = None
    smoothing: float | None = None
    window: int = 0
    start: int = 0
    conditions: str = ""
    dtype: str | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Time window and level: what tells records apart."""
        return self.window, self.level

    @property
    def label(self) -> str:
        """The same in words."""
        return f"window {self.window}, level {self.level}" if self.window else f"level {self.level}"

    def meet(self, conditions: Iterable[str]) -> None:
        """Remember conditions of the level's least-squares problem."""
        self.conditions = " ".join(sorted({*self.conditions.split(), *conditions}))

    def as_dict(self) -> dict[str, Any]:
        """For the summary."""
        return {**asdict(self), "conditions": self.conditions.split()}


@dataclass
class LevelState:
    """One level in memory and in the checkpoint.

    Attributes:
        record: what is reported.
        system: the networks with the last iterate.
        best: parameters of the best iterate by held-out residual.
        best_score: its held-out score.
    """

    record: LevelRecord
    system: System
    best: Parameters
    best_score: float = float("inf")
    best_step: int = 0

    def best_system(self) -> System:
        """The system at its best iterate (shares its past alone with ``system``)."""
        shared = {id(self.system.past): self.system.past}
        system = copy.deepcopy(self.system, shared)
        restore(system, self.best)
        return system


@dataclass
class Trials:
    """Where the choice among several initial networks stands, see :mod:`kanpinn.training.starts`.

    Attributes:
        count: networks to be tried.
        scores: held-out scores of the trials that are done, in their order.
        best: the state of the best one of these.
        wall_s: seconds spent on the levels of the others that are done.
        evaluations: likewise.
        operations: likewise.
    """

    count: int
    scores: list[float] = field(default_factory=list)
    best: RunState | None = None
    wall_s: float = 0.0
    evaluations: int = 0
    operations: int = 0

    @property
    def number(self) -> int:
        """That of the trial under way, and how many are done."""
        return len(self.scores)

    @property
    def label(self) -> str:
        """The trial under way in words."""
        return f"initial network {self.number + 1} of {self.count}"


@dataclass
class RunState:
    """The whole state of a run between two steps.

    Attributes:
        levels: those begun so far; the last one is being trained.
        phase: index of the phase on the current level.
        step: steps done in that phase.
        total_steps: steps done in all.
        optimiser: the optimiser's flat state, empty before a phase starts.
        weights: those that change while a level is trained.
        history: one dictionary per logged line.
        elapsed: seconds spent in all sessions of the run.
        restarts: restarts after non-finite losses on this level.
        finished: whether the last level is done.
        trials: while initial networks are tried, those before: the rest is of the one under way.
    """

    levels: list[LevelState] = field(default_factory=list)
    phase: int = 0
    step: int = 0
    total_steps: int = 0
    optimiser: dict[str, Tensor] = field(default_factory=dict)
    weights: Weights = field(default_factory=Weights)
    history: list[dict[str, Any]] = field(default_factory=list)
    elapsed: float = 0.0
    restarts: int = 0
    finished: bool = False
    trials: Trials | None = None

    @property
    def current(self) -> LevelState:
        """The level being trained."""
        return self.levels[-1]

    @property
    def best_level(self) -> LevelState:
        """The best level of the last time window, whose systems know those before."""
        return self.best_of(self.current.record.window)

    @property
    def solution(self) -> tuple[LevelState, Literal["last", "best"]]:
        """The level and its iterate that are the run's result: the best one by held-out residual.

        Where the run was stopped between two lines, so is the iterate it was stopped at, if that is
        better, or meets the target.
        """
        level, stopped = self.best_level, self.stopped
        if stopped is not None:
            met = self.current.record.stop_reason == StopReason.TARGET.value
            if met or stopped["heldout_score"] < level.best_score:
                return self.current, "last"
        return level, "best"

    @property
    def score(self) -> float:
        """The held-out score of the solution; infinite where no iterate has a finite one."""
        (level, iterate), stopped = self.solution, self.stopped
        last = stopped is not None and iterate == "last"
        score: float = stopped["heldout_score"] if stopped and last else level.best_score
        return score if math.isfinite(score) else math.inf

    @property
    def outcome(self) -> RunState:
        """The state that the run's result is of: this, or while networks are tried, the best."""
        best = self.trials.best if self.trials else None
        if best is None or (self.levels and self.score < best.score):
            return self
        return best

    @property
    def stopped(self) -> dict[str, Any] | None:
        """The line of the last iterate, where the run was stopped between two lines."""
        last = self.history[-1] if self.history else None
        return last if last is not None and last["phase"] == STOPPED else None

    def reopen(self) -> None:
        """Forget where the run was stopped: it goes on like one that never was."""
        if self.stopped is not None:
            self.history.pop()

    def best_of(self, window: int) -> LevelState:
        """A window's level with the best iterate by held-out residual; the finer one where equal.

        A level that has met the target is the best: that is what the run was for.
        """
        levels = [level for level in self.levels if level.record.window == window]
        if levels[-1].record.stop_reason == StopReason.TARGET.value:
            return levels[-1]
        return min(reversed(levels), key=lambda level: level.best_score)

    def before(self, key: tuple[int, int]) -> LevelState | None:
        """The last level trained before that of a key in its time window, if there is one."""
        levels = {level.record.key: level for level in self.levels}
        window, number = key
        earlier = [levels[window, k] for k in range(number) if (window, k) in levels]
        return earlier[-1] if earlier else None

    def extensions_to(self, level: int) -> int:
        """How often points were doubled up to a level, by its number: a level inherits them."""
        begun = [entry.record for entry in self.levels if entry.record.level <= level]
        return begun[-1].extensions if begun else 0

    def join_windows(self) -> None:
        """Give every system its past: the best one of the window before."""
        past: dict[int, System | None] = {0: None}
        for level in self.levels:
            window = level.record.window
            if window not in past:
                past[window] = self.best_of(window - 1).best_system()
            level.system.follow(past[window])


class Observer(Protocol):
    """What the training loop reports to: logs, progress bars, stores."""

    def on_network(self, state: RunState) -> None:
        """Another initial network is turned to: lines so far give way to ``state.history``."""

    def on_level(self, state: RunState) -> None:
        """A level begins; its record is ``state.current.record``."""

    def on_log(self, row: dict[str, Any], state: RunState) -> None:
        """A line was logged."""

    def on_checkpoint(self, state: RunState) -> None:
        """The state is to be made durable."""

    def on_note(self, message: str) -> None:
        """Something beside the normal course happened."""

    def stop_requested(self) -> bool:
        """Whether the user asked to stop."""


class NullObserver:
    """Reports nothing, stops never."""

    def on_network(self, state: RunState) -> None:
        """Do nothing."""

    def on_level(self, state: RunState) -> None:
        """Do nothing."""

    def on_log(self, row: dict[str, Any], state: RunState) -> None:
        """Do nothing."""

    def on_checkpoint(self, state: RunState) -> None:
        """Do nothing."""

    def on_note(self, message: str) -> None:
        """Do nothing."""

    def stop_requested(self) -> bool:
        """Never."""
        return False
