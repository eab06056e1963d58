"""Several initial networks, of which the best goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import MODELS, Plain, options, same_tensors

from kanpinn import api
from kanpinn.config import parse_config
from kanpinn.errors import ConfigError
from kanpinn.training import MultilevelRun, NullObserver, RunOptions, RunState
from kanpinn.training.options import StartsOptions, TargetOptions

COUNT = 3


CONFIG: dict[str, Any] = {
    "problem": {"name": "poisson", "dimension": 1},
    "model": {"width": 2, "order": 4, "intervals": 2},
    "sampling": {"interior": 32, "held_out": 32},
    "training": {
        "levels": 2,
        "starts": {"count": 3},
        "log_every": 2,
        "phases": [{"optimiser": "lm", "steps": 4}],
    },
    "figures": False,
}


class Notes(NullObserver):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, message: str) -> None:
        self.notes.append(message)


def chosen_from(count: int = COUNT, levels: int = 1, **training: Any) -> RunOptions:
    """A tiny run over three levels with several starts."""
    run = options(MODELS["kan"], levels=3)
    starts = StartsOptions(count=count, levels=levels)
    return replace(run, training=replace(run.training, starts=starts, **training))


def alone(run: RunOptions, start: int) -> RunState:
    """The run of one of the starts, without a choice."""
    training = replace(run.training, starts=None)
    return MultilevelRun(Plain(), replace(run, training=training, start=start)).run()


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_run_is_that_of_the_best_start(levels: int) -> None:
    run = chosen_from(levels=levels)
    observer = Notes()
    state = MultilevelRun(Plain(), run, observer).run()
    every = [alone(run, start) for start in range(COUNT)]

    def score(single: RunState) -> float:
        return min(level.best_score for level in single.levels[:levels])

    best = min(every, key=score)
    assert len({score(single) for single in every}) == COUNT
    for found, expected in zip(state.levels, best.levels, strict=True):
        same_tensors(found.best, expected.best)
        assert found.record.loss == expected.record.loss
    for name in ("evaluations", "operations"):
        tried = [sum(getattr(x.record, name) for x in single.levels[:levels]) for single in every]
        others = sum(tried) - tried[every.index(best)]
        assert state.history[-1][name] == best.history[-1][name] + others > others > 0
        first, own = (getattr(s.levels[0].record, name) for s in (state, best))
        assert first == own + others
    assert [row["step"] for row in state.history] == [row["step"] for row in best.history]
    clock = [row["wall_s"] for row in state.history]
    assert clock == sorted(clock)
    assert f"initial network {every.index(best) + 1} of {COUNT} chosen" in observer.notes[0]


def test_the_first_start_is_that_of_a_run_without() -> None:
    run = chosen_from()
    plain = MultilevelRun(Plain(), replace(run, training=replace(run.training, starts=None))).run()
    same_tensors(alone(run, 0).current.best, plain.current.best)


def test_later_windows_go_on_from_the_choice_in_the_first(tmp_path: Path) -> None:
    windows = {**CONFIG["training"], "windows": 2}
    config = {**CONFIG, "problem": "reaction_diffusion", "training": windows}
    result = api.solve(config, out=tmp_path / "run")
    keys = [(level["window"], level["level"]) for level in result.summary["levels"]]
    assert keys == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_trial_that_meets_the_target_is_the_last() -> None:
    run = chosen_from(target=TargetOptions(loss=1e3))
    state = MultilevelRun(Plain(), run).run()
    assert len(state.levels) == 1 and state.current.record.stop_reason == "target"
    assert state.current.record.evaluations == alone(run, 0).current.record.evaluations


def test_the_time_limit_ends_trials_too() -> None:
    state = MultilevelRun(Plain(), chosen_from(time_limit=1e-6)).run()
    assert [level.record.stop_reason for level in state.levels] == ["time"]
    assert state.total_steps == 1


class StopAfter:
    """Asks to stop at the n-th time it is asked."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def history(folder: Path) -> list[dict[str, Any]]:
    """The logged lines of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("asked", [0, 3, 9, 11, 14])
def test_interrupted_runs_go_on_as_if_they_never_were(asked: int, tmp_path: Path) -> None:
    whole = api.solve(CONFIG, out=tmp_path / "whole")
    out = tmp_path / "run"
    first = api.solve(CONFIG, out=out, stop=StopAfter(asked), on_interrupt="return")
    assert first.status == "interrupted"
    again = api.solve(CONFIG, out=out, resume=True)
    assert again.status == "completed" and again.loss == whole.loss
    lines = [
        (tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("run", "whole")
    ]
    found, expected = ([json.loads(line) for line in part] for part in lines)
    for one, other in zip(found, expected, strict=True):
        assert {**one, "wall_s": 0} == {**other, "wall_s": 0}


def test_one_start_is_no_choice() -> None:
    with pytest.raises(ConfigError, match=r"training.starts.count: found 1"):
        parse_config({**CONFIG, "training": {"starts": {"count": 1}}}, "c.yaml", None, ())


def test_the_plan_says_how_many_networks_take_the_steps() -> None:
    levels = api.plan(api.prepare(CONFIG))
    assert [level.starts for level in levels] == [3, 1]
