"""``optimiser: auto``: what it becomes, who is told, and that a resumed run keeps it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import kanpinn
from kanpinn import api
from kanpinn.checkpoint import read_checkpoint
from kanpinn.cli import main
from kanpinn.conditions import Dirichlet
from kanpinn.config import read_yaml
from kanpinn.errors import ConfigError
from kanpinn.geometry import Box
from kanpinn.models import KANOptions
from kanpinn.optimisers import LevenbergMarquardt
from kanpinn.problem import Problem
from kanpinn.residuals import ResidualBlock, Site
from kanpinn.sampling import SamplingOptions
from kanpinn.training import (
    AdamPhase,
    AutoPhase,
    LBFGSPhase,
    LevenbergMarquardtPhase,
    MultilevelRun,
    RunOptions,
    SelfScaledBroydenPhase,
    TrainingOptions,
)

SQUARES = "the losses are sums of squares"


class Line(Problem):
    """``u'' = 1`` on [-1, 1], its ends penalised."""

    domain = Box((-1.0,), (1.0,))
    conditions = (Dirichlet(value=0.0),)

    def residual(self, p: Site) -> Tensor:
        return p.u.xx - 1.0


class Robust(Line):
    """The same with a loss that is no sum of squares: ``log cosh``."""

    def blocks(self) -> tuple[ResidualBlock, ...]:
        def log_cosh(rows: Tensor) -> Tensor:
            return torch.log(torch.cosh(rows)).sum(-1)

        equation, *others = super().blocks()
        return (replace(equation, loss=log_cosh), *others)


def resolved(problem: Problem, *phases: Any, width: int = 3, **training: Any) -> MultilevelRun:
    given: Any = {"phases": phases} if phases else {}
    chosen = TrainingOptions(**given, **training)
    sampling = SamplingOptions(interior=30, boundary=2, held_out=30)
    model = KANOptions(width=width, order=4, intervals=2)
    return MultilevelRun(problem, RunOptions(model, chosen, sampling))


# --- the rule -----------------------------------------------------------------------------------
def test_default_is_least_squares_where_losses_are_squares() -> None:
    run = resolved(Line(), levels=2)
    assert run.options.training.phases == (LevenbergMarquardtPhase(steps=60),)
    assert run.reasons == {0: SQUARES}
    assert [level.steps for level in run.hierarchy.levels] == [(60,), (60,)]


def test_another_loss_has_the_self_scaled_method() -> None:
    run = resolved(Robust())
    assert run.options.training.phases == (SelfScaledBroydenPhase(steps=1000),)
    assert run.reasons == {0: "'equation' has a loss that is no sum of squares"}
    assert run.hierarchy.levels[0].steps == (1000,)


def test_many_parameters_on_the_finest_trained_level_have_the_one_without_a_matrix() -> None:
    # Two layers of n + 3 splines for each of 120 channels, n = 2, 4, 8.
    sizes = [
        level.n_parameters for level in resolved(Robust(), levels=3, width=120).hierarchy.levels
    ]
    assert sizes == [1200, 1680, 2640]
    run = resolved(Robust(), levels=3, width=120)
    assert run.options.training.phases == (LBFGSPhase(steps=1000),)
    assert "2,640 parameters" in run.reasons[0]
    run = resolved(Robust(), AutoPhase(steps=(5, 5, 0)), levels=3, width=120)
    assert run.options.training.phases == (SelfScaledBroydenPhase(steps=(5, 5, 0)),)
    run = resolved(Line(), levels=3, width=120)
    assert isinstance(run.options.training.phases[0], LevenbergMarquardtPhase)


def test_mini_batches_forbid_least_squares() -> None:
    adam = AdamPhase(steps=3, batch=8)
    run = resolved(Line(), adam, AutoPhase())
    assert run.options.training.phases == (adam, SelfScaledBroydenPhase(steps=1000))
    assert run.reasons == {1: "phase 0 takes mini-batches"}
    whole = AdamPhase(steps=3)
    run = resolved(Line(), whole, AutoPhase())
    assert run.options.training.phases == (whole, LevenbergMarquardtPhase(steps=60))


def test_what_is_given_is_kept() -> None:
    phase = AutoPhase(steps=(7, 5), train=("*.coefficients",))
    wanted = LevenbergMarquardtPhase(steps=(7, 5), train=("*.coefficients",))
    assert resolved(Line(), phase, levels=2).options.training.phases == (wanted,)
    explicit = (LBFGSPhase(steps=4), LevenbergMarquardtPhase(steps=2))
    run = resolved(Line(), *explicit)
    assert run.options.training.phases == explicit
    assert run.reasons == {}


@pytest.mark.parametrize(("log_every", "steps"), [(5, 60), (50, 200)])
def test_refine_auto_has_the_lines_it_needs(log_every: int, steps: int) -> None:
    run = resolved(Line(), levels=2, refine="auto", log_every=log_every)
    assert run.options.training.phases == (LevenbergMarquardtPhase(steps=steps),)


def test_errors_name_the_phase() -> None:
    with pytest.raises(ConfigError, match=r"training\.phases\.train: 'knots' matches no parameter"):
        resolved(Line(), AutoPhase(train=("knots",)))
    with pytest.raises(ConfigError, match=r"training\.phases\.0\.steps: found an empty list"):
        resolved(Line(), AutoPhase(steps=()))
    with pytest.raises(ConfigError, match=r"phases\.0\.history: unknown key for optimiser auto"):
        api.prepare({"training": {"phases": [{"optimiser": "auto", "history": 3}]}}, (), Line)


# --- who is told ----------------------------------------------------------------------------------
CONFIG = """
problem: {name: poisson, dimension: 1}
model: {width: 3, order: 4, intervals: 2}
sampling: {interior: 36, held_out: 30}
training:
  levels: 3
  phases: [{optimiser: auto, steps: 3}]
  log_every: 1
threads: 1
figures: false
"""
LINE = f"optimiser lm (auto: {SQUARES}), 3 steps a level; linear solver dense, then dual"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Any:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result


def test_choice_is_shown_before_a_run(here: Path) -> None:
    assert LINE in call("validate", "own.yaml").stdout.splitlines()
    assert LINE in call("solve", "own.yaml", "--dry-run").stdout.splitlines()
    found = json.loads(call("solve", "own.yaml", "--dry-run", "--json").stdout)
    assert found["config"]["training"]["phases"][0]["optimiser"] == "lm"
    assert [level["solvers"] for level in found["levels"]] == [["dense"], ["dual"], ["dual"]]
    wanted = {"optimiser": "lm", "steps": [3, 3, 3], "reason": SQUARES}
    assert found["phases"] == [{**wanted, "solvers": ["dense", "dual", "dual"]}]


def test_solvers_are_those_that_the_run_takes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan counts residuals and parameters; the optimiser is asked what it met."""
    met: list[tuple[int, str]] = []
    choose = LevenbergMarquardt.choose

    def watched(self: LevenbergMarquardt, rows: int, columns: int, itemsize: int) -> Any:
        choice = choose(self, rows, columns, itemsize)
        met.append((columns, choice.solver))
        return choice

    prepared = api.prepare("own.yaml")
    planned = [(level.n_params, level.solvers[0]) for level in api.plan(prepared)]
    monkeypatch.setattr(LevenbergMarquardt, "choose", watched)
    prepared.run.run()
    assert list(dict.fromkeys(met)) == planned


def test_choice_is_part_of_what_a_run_leaves(here: Path) -> None:
    result = call("solve", "own.yaml", "--out", "run")
    assert LINE in result.stderr.splitlines()
    assert LINE in Path("run/run.log").read_text()
    summary = json.loads(Path("run/summary.json").read_text())
    assert [(p["optimiser"], p["reason"]) for p in summary["phases"]] == [("lm", SQUARES)]
    assert read_yaml(Path("run/config.yaml"))["training"]["phases"][0]["optimiser"] == "lm"
    assert read_checkpoint("run/checkpoint.h5").config["training"]["phases"][0]["steps"] == 3
    assert any(
        line.split() == ["phases", "lm", "3"] for line in call("inspect", "run").stdout.splitlines()
    )


def test_nothing_is_said_of_what_the_config_names(here: Path) -> None:
    named = "training.phases=[{optimiser: lm, steps: 3}]"
    result = call("solve", "own.yaml", named, "--out", "named")
    assert "auto" not in result.stderr + Path("named/run.log").read_text()
    assert "auto" not in call("validate", "own.yaml", named).stdout
    summary = json.loads(Path("named/summary.json").read_text())
    assert [(p["optimiser"], p["reason"]) for p in summary["phases"]] == [("lm", None)]
    call("solve", "own.yaml", "--out", "chosen", "-q")
    assert losses("chosen") == losses("named")


# --- going on with a run --------------------------------------------------------------------------
def losses(folder: str) -> list[float]:
    lines = Path(folder, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def stop_after(steps: int) -> Any:
    counter: Iterator[int] = iter(range(1, 1000))
    return lambda: next(counter) >= steps


@pytest.mark.parametrize("again", ["own.yaml", "run/config.yaml"])
def test_resumed_run_is_the_undisturbed_one(here: Path, again: str) -> None:
    kanpinn.solve("own.yaml", out="whole")
    kanpinn.solve("own.yaml", out="run", stop=stop_after(4), on_interrupt="return")
    result = kanpinn.solve(again, out="run", resume=True)
    assert result.status == "completed"
    assert losses("run") == losses("whole")
    ends = [kanpinn.load(folder).last.model.state_dict() for folder in ("run", "whole")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_choice_never_changes_within_a_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version with another rule does not go on with another optimiser."""
    kanpinn.solve("own.yaml", out="run", stop=stop_after(4), on_interrupt="return")
    before = Path("run/checkpoint.h5").read_bytes()
    monkeypatch.setattr("kanpinn.training.choice._obstacle_to_squares", lambda *_: "another rule")
    assert api.prepare("own.yaml").config.training.phases == (SelfScaledBroydenPhase(steps=3),)
    with pytest.raises(ConfigError, match=r"another config.*training\.phases\.0\.optimiser"):
        kanpinn.solve("own.yaml", out="run", resume=True)
    assert Path("run/checkpoint.h5").read_bytes() == before
    assert kanpinn.solve("run/config.yaml", out="run", resume=True).status == "completed"


def test_steps_may_grow_when_a_run_goes_on(here: Path) -> None:
    kanpinn.solve("own.yaml", out="run", stop=stop_after(2), on_interrupt="return")
    more = ["training.phases.0.steps=4"]
    result = kanpinn.solve("own.yaml", more, out="run", resume=True)
    assert [level["steps"] for level in result.levels] == [4, 4, 4]
