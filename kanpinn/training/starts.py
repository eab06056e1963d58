"""Choosing among random initial networks: each is trained on the first levels, the best goes on.

The loss of a network has many minima, and which of them a run is drawn to is decided on its first
levels, where steps cost little. While networks are tried the run's state is that of the trial under
way, and its :class:`~kanpinn.training.state.Trials` hold what has come of those before: a run can
stop, and go on, in the midst of a trial like anywhere else.
"""

from __future__ import annotations

from kanpinn.training.state import RunState, Trials

SUMS = ("wall_s", "evaluations", "operations")


def after_trial(state: RunState, met: bool) -> RunState:
    """What follows on a trial that is done: the next one, or the one with the best held-out score.

    That accounts for all of them: what they cost is counted with its first level, as if it had been
    spent before.

    Args:
        state: of the trial.
        met: whether it met the target: it is then the best, and the last one.
    """
    trials = state.trials
    assert trials is not None
    state.trials = None
    better = met or trials.best is None or state.score < trials.best.score
    trials.scores.append(state.score)
    if not better:
        _give_up(trials, state)
    else:
        if trials.best is not None:
            _give_up(trials, trials.best)
        trials.best = state
    if met or trials.number == trials.count:
        return _accountable(trials, state.elapsed)
    return RunState(elapsed=state.elapsed, trials=trials)


def in_words(trials: Trials, chosen: RunState) -> str:
    """Which network goes on, and the scores that it was chosen by."""
    shown = ", ".join(f"{score:.2e}" for score in trials.scores)
    number = chosen.levels[0].record.start + 1
    return (
        f"initial network {number} of {trials.number} chosen; held-out scores after the trials: "
        f"{shown}"
    )


def _give_up(trials: Trials, state: RunState) -> None:
    """Of a trial that is not the best only what it cost is kept."""
    for name in SUMS:
        spent = sum(getattr(level.record, name) for level in state.levels)
        setattr(trials, name, getattr(trials, name) + spent)


def _accountable(trials: Trials, elapsed: float) -> RunState:
    """The best trial, with what the others cost before its own, ``elapsed`` seconds in all."""
    chosen = trials.best
    assert chosen is not None
    first = chosen.levels[0].record
    for name in SUMS:
        setattr(first, name, getattr(first, name) + getattr(trials, name))
    for row in chosen.history:
        row["evaluations"] += trials.evaluations
        row["operations"] += trials.operations
        row["wall_s"] += elapsed - chosen.elapsed
    chosen.elapsed = elapsed
    return chosen
