"""Choosing among random initial networks: each is trained on the first levels, the best goes on.

The loss of a network has many minima, and which of them a run is drawn to is decided on its first
levels, where steps cost little.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from kanpinn.optimisers import StopReason
from kanpinn.training.state import NullObserver, Observer, RunState, key_of


class TrialObserver(NullObserver):
    """Of a trial's observer only the user's request to stop is asked."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer

    def stop_requested(self) -> bool:
        """Whether the user asked to stop."""
        return self.observer.stop_requested()


def best_trial(
    count: int, train: Callable[[int, RunState], StopReason], observer: Observer, elapsed: float
) -> RunState | None:
    """Train from ``count`` initial networks; the state of the one with the best held-out score.

    It accounts for all of them: what they cost is counted with its first level. A trial that meets
    the target is the best and the last one; one that the time limit ends is the last one.

    Args:
        count: trials.
        train: trains the state of a trial, by its number.
        observer: is told of the choice.
        elapsed: seconds spent before.

    Returns:
        ``None`` if the user asked to stop: what is not decided is done anew when the run goes on.
    """
    trials: list[RunState] = []
    for number in range(count):
        trial = RunState(elapsed=trials[-1].elapsed if trials else elapsed)
        trials.append(trial)
        reason = train(number, trial)
        if reason is StopReason.INTERRUPTED:
            return None
        if reason in (StopReason.TARGET, StopReason.TIME):
            break
    scores = [_score(trial) for trial in trials]
    met = reason is StopReason.TARGET
    number = len(trials) - 1 if met else min(range(len(trials)), key=scores.__getitem__)
    shown = ", ".join(f"{score:.2e}" for score in scores)
    observer.on_note(
        f"initial network {number + 1} of {len(trials)} chosen; held-out scores after the trials: "
        f"{shown}"
    )
    return _accountable(trials[number], trials)


def _score(trial: RunState) -> float:
    score = trial.best_level.best_score
    return score if math.isfinite(score) else math.inf


def _accountable(chosen: RunState, trials: list[RunState]) -> RunState:
    """The chosen trial, with what the others cost before its own."""
    first = chosen.levels[0].record
    before = trials[-1].elapsed - chosen.elapsed
    others = [level.record for trial in trials if trial is not chosen for level in trial.levels]
    for name in ("evaluations", "operations"):
        spent = sum(getattr(record, name) for record in others)
        setattr(first, name, getattr(first, name) + spent)
        for row in chosen.history:
            row[name] += spent
    first.wall_s += sum(record.wall_s for record in others)
    chosen.elapsed += before
    for row in chosen.history:
        row["wall_s"] += before
    return chosen


def replay(state: RunState, observer: Observer) -> None:
    """Tell an observer of levels and lines as if they came only now."""
    levels, rows = state.levels, state.history
    state.levels, state.history = [], []
    for level in levels:
        state.levels.append(level)
        observer.on_level(state)
        for row in rows:
            if key_of(row) == level.record.key:
                state.history.append(row)
                observer.on_log(row, state)
