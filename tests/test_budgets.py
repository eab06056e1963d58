"""Budgets of work: where levels end, what follows, resumed runs, plans and exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from test_multilevel import Line, StopAfter, adam, lbfgs, lm, options
from test_windows import Swing
from test_windows import options as window_options
from tiny_runs import Plain, assert_same, save

from kanpinn import api
from kanpinn.checkpoint import read_checkpoint, restore_state
from kanpinn.cli import main
from kanpinn.errors import ConfigError, RunFolderError
from kanpinn.study import Budget
from kanpinn.training import (
    MultilevelRun,
    RunOptions,
    RunState,
    TargetOptions,
    TrainingOptions,
    WorkOptions,
)
from kanpinn.training.options import StartsOptions

PHASES = (adam(4), lm(8))


def run(chosen: RunOptions, problem: Any = Line) -> RunState:
    return MultilevelRun(problem(), chosen).run()


def limited(chosen: RunOptions, **work: Any) -> RunOptions:
    return replace(chosen, training=replace(chosen.training, work=WorkOptions(**work)))


def ends(state: RunState) -> list[tuple[int, str | None]]:
    return [(entry.record.steps, entry.record.stop_reason) for entry in state.levels]


def costs(chosen: RunOptions, name: str, problem: Any = Line) -> list[int]:
    """What the first level has spent after every step, without a budget."""
    training = replace(chosen.training, levels=1, log_every=1)
    state = MultilevelRun(problem(), replace(chosen, training=training)).run()
    return [row[name] for row in state.history[1:]]


# --- where levels end -----------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["operations", "evaluations"])
@pytest.mark.parametrize("step", [2, 4, 7])
def test_a_level_ends_with_the_step_that_reaches_its_share(name: str, step: int) -> None:
    """In either of its phases, or between them; the next level has its own share."""
    chosen = options(PHASES, levels=2)
    spent = costs(chosen, name)
    assert len(spent) == 12
    exactly = run(limited(chosen, of=name, per_level=(spent[step - 1], 1e30)))
    assert ends(exactly) == [(step, "work"), (12, "steps")]
    assert getattr(exactly.levels[0].record, name) == spent[step - 1]
    less = run(limited(chosen, of=name, per_level=(spent[step - 1] - 0.5, 1e30)))
    assert_same(less, exactly)
    more = run(limited(chosen, of=name, per_level=(spent[step - 1] + 0.5, 1e30)))
    assert ends(more) == [(step + 1, "work"), (12, "steps")]


def test_the_last_step_of_all_phases_is_no_end_by_work() -> None:
    chosen = options(PHASES)
    spent = costs(chosen, "operations")
    assert ends(run(limited(chosen, per_level=spent[-1]))) == [(12, "steps")]
    assert_same(run(limited(chosen, per_level=1e30)), run(chosen))


def test_shares_follow_the_conventions_of_steps() -> None:
    chosen = options([adam(6)], levels=4)
    found = run(limited(chosen, of="evaluations", per_level=(3.0, 2.0)))
    assert ends(found) == [(3, "work"), (2, "work"), (2, "work"), (2, "work")]
    skipped = run(limited(chosen, of="evaluations", per_level=(3.0, 0.0, 2.0, 9.0, 1.0)))
    assert [entry.record.level for entry in skipped.levels] == [0, 2, 3]
    assert ends(skipped) == [(3, "work"), (2, "work"), (6, "steps")]
    rest = run(limited(chosen, of="evaluations", per_level=(3.0, 0.0)))
    assert ends(rest) == [(3, "work")]


def test_every_time_window_has_its_shares() -> None:
    chosen = limited(window_options(levels=2, windows=2), of="operations", per_level=1.0)
    state = run(chosen, Swing)
    assert [entry.record.key for entry in state.levels] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert ends(state) == [(1, "work")] * 4 and state.finished


def test_every_initial_network_has_the_share() -> None:
    chosen = options([adam(6)], levels=2, starts=StartsOptions(count=3))
    state = run(limited(chosen, of="evaluations", per_level=4.0))
    assert ends(state) == [(4, "work"), (4, "work")]
    assert [entry.record.evaluations for entry in state.levels] == [12, 4]


@pytest.mark.parametrize("levels", [(0, 1), (1, 2)])
def test_the_budget_of_a_study_is_for_all_initial_networks(levels: tuple[int, ...]) -> None:
    """Adam evaluates once a step, so that nothing is left, and no step goes beyond."""
    first, second = levels
    steps = tuple(99 if level in levels else 0 for level in range(second + 1))
    chosen = options([adam(steps)], levels=second + 1, starts=StartsOptions(count=3))
    work = Budget(of="evaluations", total=60).work(chosen.training)
    assert work["per_level"] == (0,) * first + (10, 30)
    state = run(limited(chosen, **work))
    assert [entry.record.evaluations for entry in state.levels] == [30, 30]


def test_the_budget_of_a_study_is_for_all_time_windows() -> None:
    """The initial networks are those of the first one."""
    chosen = window_options(levels=2, windows=2, starts=StartsOptions(count=3))
    chosen = replace(chosen, training=replace(chosen.training, phases=(adam(99),)))
    work = Budget(of="evaluations", total=80).work(chosen.training)
    assert work["per_level"] == (10, 20)
    state = run(limited(chosen, **work), Swing)
    found = {entry.record.key: entry.record.evaluations for entry in state.levels}
    assert found == {(0, 0): 30, (0, 1): 20, (1, 0): 10, (1, 1): 20}
    with pytest.raises(ConfigError, match=r"allowed: at least 8, one for every training"):
        Budget(of="evaluations", total=7).work(chosen.training)


def test_the_last_iterate_of_a_spent_level_is_judged() -> None:
    """Between two lines it is logged, and may be the best one, or meet the target."""
    chosen = limited(options([lm(9)], log_every=100), of="evaluations", per_level=8.0)
    state = run(chosen)
    (level,) = state.levels
    assert [row["phase"] for row in state.history] == ["start", "end"]
    assert level.record.stop_reason == "work" and level.best_step == level.record.steps < 9
    target = replace(chosen.training, target=TargetOptions(loss=1e9))
    assert run(replace(chosen, training=target)).levels[0].record.stop_reason == "target"


# --- resume ---------------------------------------------------------------------------------------
CASES: dict[str, tuple[Any, RunOptions]] = {
    "two phases": (Line, limited(options(PHASES, levels=2), per_level=(3e5, 1e6))),
    "evaluations": (
        Line,
        limited(options([lbfgs(6), adam(3)], levels=2), of="evaluations", per_level=5.0),
    ),
    "windows": (
        Swing,
        limited(window_options(steps=4, levels=2, windows=2), of="evaluations", per_level=8.0),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_interrupted_at_every_step(name: str, tmp_path: Path) -> None:
    """And written to a checkpoint there."""
    problem, chosen = CASES[name]
    whole = run(chosen, problem)
    assert "work" in {entry.record.stop_reason for entry in whole.levels}
    state = MultilevelRun(problem(), chosen, StopAfter(1)).run()
    for _ in range(whole.total_steps):
        path = save(tmp_path / "checkpoint.h5", state, problem())
        state = restore_state(read_checkpoint(path))
        state = MultilevelRun(problem(), chosen, StopAfter(1), state).run()
    assert_same(state, whole)


# --- options --------------------------------------------------------------------------------------
def test_levels_without_work_have_no_steps() -> None:
    work = WorkOptions(per_level=(1.0, 0.0))
    training = TrainingOptions(levels=3, phases=(adam((4, 5, 6)),), work=work)
    assert [training.steps_on(level) for level in range(3)] == [4, 0, 0]
    with pytest.raises(ConfigError, match=r"^training\.work\.per_level: every level with"):
        TrainingOptions(levels=2, phases=(adam((0, 5)),), work=work)
    with pytest.raises(ConfigError, match=r"^training\.work\.per_level: found an empty list"):
        WorkOptions(per_level=())
    with pytest.raises(ConfigError, match=r"2 of 3 levels have no steps"):
        TrainingOptions(levels=3, refine="adaptive", work=work)


# --- through the interface ------------------------------------------------------------------------
def config(**training: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "model": {"width": 2, "intervals": 2, "order": 4},
        "sampling": {"interior": 40, "held_out": 40},
        "training": {
            "levels": 2,
            "phases": [{"optimiser": "adam", "steps": 6}],
            "log_every": 2,
            "work": {"of": "evaluations", "per_level": [4, 3]},
            **training,
        },
        "threads": 1,
        "figures": False,
    }


def solve(out: Path, resume: bool = False, **training: Any) -> api.SolveResult:
    return api.solve(config(**training), out=out, resume=resume, problem=Plain)


def test_a_spent_budget_is_a_completed_run(tmp_path: Path) -> None:
    result = solve(tmp_path / "run")
    assert (result.status.value, result.exit_code) == ("completed", 0)
    assert [level["stop_reason"] for level in result.levels] == ["work", "work"]
    assert [level["evaluations"] for level in result.levels] == [4, 3]
    missed = solve(tmp_path / "other", target={"rel_l2": 1e-9})
    assert (missed.status.value, missed.exit_code) == ("target_missed", 4)


def test_more_work_goes_on_with_the_last_level(tmp_path: Path) -> None:
    first = solve(tmp_path / "run")
    same = solve(tmp_path / "run", resume=True)
    assert same.summary == first.summary
    more = {"of": "evaluations", "per_level": [4, 5]}
    result = solve(tmp_path / "run", resume=True, work=more)
    assert [level["steps"] for level in result.levels] == [4, 5]
    whole = solve(tmp_path / "whole", work=more)
    assert result.levels[-1]["loss"] == whole.levels[-1]["loss"]
    free = solve(tmp_path / "run", resume=True, work=None)
    assert [level["stop_reason"] for level in free.levels] == ["work", "steps"]


def test_more_work_finds_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = api.solve(config(), problem=Plain)
    with pytest.raises(RunFolderError, match="no unfinished run"):
        api.solve(config(), problem=Plain, resume=True)
    more = config(work={"of": "evaluations", "per_level": 6})
    found = api.solve(more, problem=Plain, resume=True)
    assert found.folder == first.folder
    assert [level["steps"] for level in found.levels] == [4, 6]


def test_a_plan_shows_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    work = {"of": "operations", "per_level": [2e9, 0, 5e9]}
    path.write_text(yaml.safe_dump({**config(levels=3, work=work), "problem": "poisson"}))
    runner = CliRunner()
    shown = runner.invoke(main, ["solve", str(path), "--dry-run"])
    assert shown.exit_code == 0, shown.output
    table = shown.stdout[shown.stdout.index("\nlevel") :].split("\n")
    assert "operations" in table[1]
    rows = [line.split() for line in table[2:5]]
    assert [row[4:7] for row in (rows[0], rows[2])] == [["<=", "6", "2e+09"], ["<=", "6", "5e+09"]]
    plan = json.loads(runner.invoke(main, ["solve", str(path), "--dry-run", "--json"]).stdout)
    assert [level["work"] for level in plan["levels"]] == [2e9, 0, 5e9]
    assert [level["steps"] for level in plan["levels"]] == [6, 0, 6]
    assert plan["phases"][0]["steps"] == [6, 0, 6]
    free = runner.invoke(main, ["solve", str(path), "--dry-run", "training.work=null"])
    assert "operations" not in free.stdout and "<=" not in free.stdout
