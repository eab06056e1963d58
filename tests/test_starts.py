"""Several initial networks, of which the best goes on."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from tiny_runs import MODELS, Plain, options, same_tensors, save

from kanpinn import api
from kanpinn.checkpoint import read_checkpoint, restore_state
from kanpinn.checkpoint.envelope import USER_BLOCK, write_sealed
from kanpinn.config import parse_config
from kanpinn.errors import CheckpointError, ConfigError
from kanpinn.io.progress import Lines
from kanpinn.residuals import Site
from kanpinn.sampling import AdaptiveSampling
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
    assert f"initial network {every.index(best) + 1} of {COUNT} chosen" in observer.notes[-1]


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


def test_points_by_residual_are_those_of_the_network_under_way() -> None:
    run = chosen_from(levels=2)
    sampling = replace(run.sampling, adaptive=AdaptiveSampling())
    run = replace(run, sampling=sampling)
    state = MultilevelRun(Plain(), run).run()
    best = alone(run, state.levels[0].record.start)
    assert state.levels[0].record.start != COUNT - 1  # the last trial leaves no points behind
    same_tensors(state.current.best, best.current.best)


class Told(Notes):
    """Keeps all that is told, and copies of the state at every checkpoint and level."""

    def __init__(self) -> None:
        super().__init__()
        self.networks: list[int | None] = []
        self.rows: list[tuple[int, int]] = []
        self.kept: list[RunState] = []

    def on_network(self, state: RunState) -> None:
        self.networks.append(state.trials.number if state.trials else None)

    def on_level(self, state: RunState) -> None:
        self.kept.append(copy.deepcopy(state))

    def on_checkpoint(self, state: RunState) -> None:
        self.kept.append(copy.deepcopy(state))

    def on_log(self, row: dict[str, Any], state: RunState) -> None:
        self.rows.append((state.current.record.start, row["step"]))


def test_trials_are_told_of_as_they_come() -> None:
    told = Told()
    state = MultilevelRun(Plain(), chosen_from(), told).run()
    every = [[row["step"] for row in alone(chosen_from(), start).history] for start in range(COUNT)]
    trial = [row["step"] for row in state.history if row["level"] == 0]
    expected = [(start, step) for start in range(COUNT) for step in every[start][: len(trial)]]
    chosen = state.levels[0].record.start
    assert told.rows == expected + [(chosen, step) for step in every[chosen][len(trial) :]]
    assert told.networks == [0, 1, 2, None]
    labels = [note for note in told.notes if note.startswith("initial network")]
    assert labels[:-1] == [f"initial network {k + 1} of {COUNT}" for k in range(COUNT)]


def test_notes_of_trials_are_passed_on() -> None:
    class Pole(Plain):
        def residual(self, p: Site) -> torch.Tensor:
            return p.u.laplacian / 0.0

    told = Told()
    state = MultilevelRun(Pole(), chosen_from(), told).run()
    assert state.current.record.stop_reason == "non_finite"
    starts = [note for note in told.notes if "starts with a loss that is not finite" in note]
    assert len(starts) == COUNT


def same_run(found: RunState, expected: RunState) -> None:
    """Assert that two runs are the same but for the clock."""
    for one, other in zip(found.levels, expected.levels, strict=True):
        same_tensors(one.best, other.best)
        same_tensors(dict(one.system.named_parameters()), dict(other.system.named_parameters()))
        assert replace(one.record, wall_s=0.0) == replace(other.record, wall_s=0.0)
        assert (one.best_score, one.best_step) == (other.best_score, other.best_step)
    rows = [[{**row, "wall_s": 0} for row in state.history] for state in (found, expected)]
    assert rows[0] == rows[1]
    assert found.trials is None and expected.trials is None


MORE_LEVELS = [pytest.param(levels, marks=pytest.mark.slow) for levels in (2, 3)]


@pytest.mark.parametrize("levels", [1, *MORE_LEVELS])
def test_every_saved_state_goes_on_to_the_same_end(levels: int, tmp_path: Path) -> None:
    run, told = chosen_from(levels=levels), Told()
    whole = MultilevelRun(Plain(), run, told).run()
    numbers = [state.trials.number if state.trials else None for state in told.kept]
    assert all(number in numbers for number in (0, 1, 2, None))
    for k, state in enumerate(told.kept):
        back = restore_state(read_checkpoint(save(tmp_path / f"{k}.h5", state)))
        assert (back.trials is None) == (state.trials is None)
        if back.trials and state.trials:
            assert replace(back.trials, best=None) == replace(state.trials, best=None)
            assert (back.trials.best is None) == (state.trials.best is None)
            if back.trials.best and state.trials.best:
                same_run(back.trials.best, state.trials.best)
        if not state.finished:
            same_run(MultilevelRun(Plain(), run, state=back).run(), whole)


def test_seconds_of_all_trials_count() -> None:
    told = Told()
    MultilevelRun(Plain(), chosen_from(), told).run()
    clock = [state.elapsed for state in told.kept]
    assert clock == sorted(clock)
    later = [state for state in told.kept if state.trials and state.trials.number == 2]
    for state in later:
        assert state.trials is not None and state.trials.best is not None
        done = state.trials.wall_s + sum(x.record.wall_s for x in state.trials.best.levels)
        own = state.levels[0].record.wall_s
        assert state.elapsed == pytest.approx(done + own, rel=1e-6) and own < state.elapsed


def fewer(trials: h5py.Group) -> None:
    trials.attrs.modify("count", 2)


def no_sum(trials: h5py.Group) -> None:
    del trials.attrs["evaluations"]


def no_best(trials: h5py.Group) -> None:
    del trials["best"]


def no_part(trials: h5py.Group) -> None:
    del trials["best/parts/main"]


def no_level(trials: h5py.Group) -> None:
    del trials["best/parts/main/levels/0"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (fewer, "/trials/scores: "),
        (no_sum, "/trials@evaluations: "),
        (no_best, "/trials/best: is missing"),
        (no_part, "/trials/best/parts/main: is missing"),
        (no_level, "/trials/best/parts/main/levels: has"),
    ],
)
def test_trials_that_do_not_fit_are_refused(
    change: Callable[[h5py.Group], None], reason: str, tmp_path: Path
) -> None:
    told = Told()
    MultilevelRun(Plain(), chosen_from(), told).run()
    state = next(state for state in told.kept if state.trials and state.trials.number == 2)
    path = save(tmp_path / "c.h5", state)
    image = io.BytesIO(path.read_bytes())
    with h5py.File(image, "r+") as file:
        change(file["trials"])
    write_sealed(path, image.getvalue()[USER_BLOCK:])
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(path)


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


def same_folder(found: Path, expected: Path) -> None:
    """Assert that two folders hold the same run but for the clock."""
    for one, other in zip(history(found), history(expected), strict=True):
        assert {**one, "wall_s": 0} == {**other, "wall_s": 0}
    same_run(*(restore_state(read_checkpoint(f / "checkpoint.h5")) for f in (found, expected)))


@pytest.mark.parametrize("asked", [0, 3, 5, 9, 11, 14])
def test_interrupted_runs_go_on_as_if_they_never_were(asked: int, tmp_path: Path) -> None:
    whole = api.solve(CONFIG, out=tmp_path / "whole")
    out = tmp_path / "run"
    first = api.solve(CONFIG, out=out, stop=StopAfter(asked), on_interrupt="return")
    assert first.status == "interrupted"
    state = restore_state(read_checkpoint(out / "checkpoint.h5"))
    assert (state.trials.number if state.trials else 3, state.total_steps) == (
        (asked // 4, asked % 4 + 1) if asked < 12 else (3, asked - 12 + 4 + 1)
    )
    assert first.wall_s == state.elapsed
    again = api.solve(CONFIG, out=out, resume=True)
    assert again.status == "completed" and again.loss == whole.loss
    same_folder(out, tmp_path / "whole")


def test_a_run_stopped_after_every_step_is_the_same(tmp_path: Path) -> None:
    api.solve(CONFIG, out=tmp_path / "whole")
    out = tmp_path / "run"
    status = api.solve(CONFIG, out=out, stop=StopAfter(0), on_interrupt="return").status
    sessions = 1
    while status == "interrupted" and sessions < 30:
        stop = StopAfter(0)
        status = api.solve(CONFIG, out=out, resume=True, stop=stop, on_interrupt="return").status
        sessions += 1
    assert 16 <= sessions < 30  # of four steps on the first level, three times, and on the second
    same_folder(out, tmp_path / "whole")


def test_on_time_nothing_is_chosen_and_the_trials_go_on(tmp_path: Path) -> None:
    whole, out = api.solve(CONFIG, out=tmp_path / "whole"), tmp_path / "run"
    api.solve(CONFIG, out=out, stop=StopAfter(8), on_interrupt="return")  # in the last trial
    limited = api.solve(CONFIG, ["training.time_limit=1e-6"], out=out, resume=True)
    assert limited.status == "time_limit" and limited.summary["stop_reason"] == "time"
    state = restore_state(read_checkpoint(out / "checkpoint.h5"))
    assert state.trials is not None and state.trials.number == 2 and state.total_steps == 2
    best = min([*state.trials.scores, state.score])
    assert state.outcome.score == best < max(*state.trials.scores, state.score)
    assert state.outcome is state.trials.best  # one after four steps
    rows = [row for row in history(out) if row["heldout_score"] == best]
    assert limited.loss == rows[-1]["loss"] == limited.solution.history["loss"][-1]
    assert limited.levels[0]["stop_reason"] != "time"
    assert limited.wall_s == state.elapsed > state.outcome.elapsed
    again = api.solve(CONFIG, out=out, resume=True)
    assert again.status == "completed" and again.loss == whole.loss
    same_folder(out, tmp_path / "whole")


def test_the_newest_run_with_trials_left_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = api.solve(CONFIG, stop=StopAfter(8), on_interrupt="return")
    limited = api.solve(CONFIG, ["training.time_limit=1e-6"], resume=True)
    again = api.solve(CONFIG, resume=True)
    assert first.folder == limited.folder == again.folder
    assert (limited.status, again.status) == ("time_limit", "completed")


def test_lines_say_which_network_they_are_of(tmp_path: Path) -> None:
    stream = io.StringIO()
    api.solve(CONFIG, out=tmp_path / "run", display=Lines(stream))
    lines = stream.getvalue().splitlines()
    for number in (1, 2, 3):
        place = lines.index(f"initial network {number} of 3")
        assert lines[place + 1].startswith(f"network {number}, level 0: ")
        steps = [line for line in lines if line.startswith(f"network {number}, level 0  step ")]
        assert len(steps) == 3  # steps 0, 2 and 4
    assert sum(line.startswith("level 1  step ") for line in lines) == 3


def test_one_start_is_no_choice() -> None:
    with pytest.raises(ConfigError, match=r"training.starts.count: found 1"):
        parse_config({**CONFIG, "training": {"starts": {"count": 1}}}, "c.yaml", None, ())


def test_the_plan_says_how_many_networks_take_the_steps() -> None:
    levels = api.plan(api.prepare(CONFIG))
    assert [level.starts for level in levels] == [3, 1]
