"""Solving from Python: what comes back, what is left on disk, and going on where a run stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import kanpinn
from kanpinn import api
from kanpinn.checkpoint import read_checkpoint
from kanpinn.conditions import Dirichlet
from kanpinn.config import read_yaml, to_dict
from kanpinn.errors import CheckpointError, ConfigError, ProblemError, RunFolderError
from kanpinn.geometry import Box, FixedPoints, Points
from kanpinn.io.progress import Silent
from kanpinn.io.run_folder import RunFolder, Status
from kanpinn.problem import Problem, Scaling
from kanpinn.residuals import ResidualBlock, Site

CONTRACT_KEYS = {
    *("status", "problem", "rel_l2", "linf", "heldout_residual", "loss", "wall_s", "n_params"),
    *("device", "dtype", "seed", "version", "levels", "metrics"),
}
LEVEL_KEYS = {
    *("level", "n_intervals", "n_params", "n_points", "steps", "wall_s", "loss", "rel_l2"),
    *("loss_before_prolongation", "loss_after_prolongation", "stop_reason"),
}


@dataclass
class Bump(Problem):
    """``u_xx + u_yy = -2 c (2 - x^2 - y^2)``, solved by ``c (1 - x^2) (1 - y^2)``."""

    strength: float = 1.0

    def __post_init__(self) -> None:
        self.domain = Box((-1.0, -1.0), (1.0, 1.0))
        self.conditions = (Dirichlet(value=0.0, weight=10.0),)

    def residual(self, p: Site) -> Tensor:
        return p.u.xx + p.u.yy + 2 * self.strength * (2 - p.x**2 - p.y**2)

    def reference(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.strength * (1 - x[:, 0] ** 2) * (1 - x[:, 1] ** 2)

    def evaluation_points(self) -> Tensor:
        return self.domain.evaluation_grid((11, 11))[0]

    def metrics(self, predict: Callable[[Tensor], Tensor]) -> dict[str, float]:
        return {"centre": float(predict(torch.zeros(1, 2, dtype=torch.float64)))}


def tiny(**changes: Any) -> dict[str, Any]:
    """A run of two levels, on each of them 4 steps of Adam and 4 of L-BFGS: 16 in all."""
    training = {
        "levels": 2,
        "phases": [{"optimiser": "adam", "steps": 4}, {"optimiser": "lbfgs", "steps": 4}],
        "log_every": 2,
        **changes.pop("training", {}),
    }
    return {
        "name": "tiny",
        "model": {"width": 3, "intervals": 2, "order": 4},
        "sampling": {"interior": 60, "boundary": 20, "held_out": 40},
        "training": training,
        "device": "cpu",
        "threads": 1,
        "figures": False,
        **changes,
    }


def run(out: Path | None = None, **options: Any) -> api.SolveResult:
    config = options.pop("config", None) or tiny(**options.pop("changes", {}))
    return api.solve(config, out=out, problem=options.pop("problem", Bump), **options)


def stop_after(steps: int) -> Callable[[], bool]:
    """Asks to stop after that many steps, as Ctrl-C would."""
    counter: Iterator[int] = iter(range(1, 10**9))
    return lambda: next(counter) >= steps


def parameters(folder: Path) -> Tensor:
    """All parameters of the last iterate of all levels."""
    solution = kanpinn.load(folder)
    systems = [solution.level(n, "last").model for n in range(len(solution.levels))]
    return torch.cat([p.detach().reshape(-1) for s in systems for p in s.parameters()])


def rows(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> api.SolveResult:
    """An undisturbed run."""
    return run(tmp_path_factory.mktemp("whole") / "run")


# --- what a run leaves --------------------------------------------------------------------------
def test_summary_is_that_of_the_contract(whole: api.SolveResult) -> None:
    text = (whole.folder / "summary.json").read_text()
    summary = json.loads(text, parse_constant=pytest.fail)
    assert summary == whole.summary
    assert set(summary) >= CONTRACT_KEYS
    assert all(set(level) >= LEVEL_KEYS for level in summary["levels"])
    assert summary["status"] == "completed"
    assert summary["version"] == kanpinn.__version__
    assert (summary["device"], summary["dtype"], summary["seed"]) == ("cpu", "float64", 1234)
    assert [level["steps"] for level in summary["levels"]] == [8, 8]
    assert summary["peak_rss_mb"] > 10


def fit(points: int, noise: float, out: Path, **training: Any) -> list[str]:
    """The log of a fit of noisy points of a sine by 24 intervals."""
    problem = {"name": "regression", "expression": "sin(3*x)", "variables": ["x"], "lower": [-1.0],
               "upper": [1.0], "points": points, "noise": noise, "test_points": 50}  # fmt: skip
    phases = [{"optimiser": "lm", "steps": 40}]
    model = {"width": 3, "order": 4, "intervals": 12}
    config = {"problem": problem, "model": model, "training": {"phases": phases, **training}}
    kanpinn.solve({**config, "figures": False}, out=out)
    return (out / "run.log").read_text().splitlines()


def test_a_fit_far_better_on_training_rows_is_told(tmp_path: Path) -> None:
    (line,) = [x for x in fit(30, 0.05, tmp_path / "few", log_every=40) if "warning" in x]
    row = json.loads((tmp_path / "few" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["heldout_score"] > 5 * row["loss"] ** 0.5
    assert f"held out, {row['heldout_score']:.1e}, is far above" in line
    assert f"training rows, {row['loss'] ** 0.5:.1e}:" in line
    for name, points, noise in (("many", 2000, 0.05), ("exact", 2000, 0.0)):
        assert not [x for x in fit(points, noise, tmp_path / name) if "warning" in x]


def test_result_has_the_numbers(whole: api.SolveResult) -> None:
    assert whole.status is Status.COMPLETED
    assert whole.exit_code == 0
    form = r"SolveResult\(completed, rel_l2=\S+, heldout_residual=\S+, wall_s=\S+, '.*'\)"
    assert re.fullmatch(form, repr(whole))
    for name in ("rel_l2", "linf", "heldout_residual", "loss", "wall_s", "levels", "metrics"):
        assert getattr(whole, name) == whole.summary[name]


def test_numbers_are_those_of_the_default_solution(whole: api.SolveResult) -> None:
    grid = np.stack(np.meshgrid(*2 * [np.linspace(-1, 1, 11)], indexing="ij"), -1).reshape(-1, 2)
    exact = Bump().reference(grid)
    found = whole.solution(grid)[:, 0]
    assert whole.rel_l2 == pytest.approx(
        np.linalg.norm(found - exact) / np.linalg.norm(exact), rel=1e-10
    )
    assert whole.linf == pytest.approx(np.abs(found - exact).max(), rel=1e-10)
    assert whole.metrics == {"centre": pytest.approx(whole.solution(np.zeros((1, 2)))[0, 0])}
    # The residual by central differences, on points of the test's own: the same size.
    x, h = np.random.default_rng(0).uniform(-0.99, 0.99, (400, 2)), 1e-4
    e, u = np.eye(2) * h, whole.solution
    laplacian = sum((u(x + d) - 2 * u(x) + u(x - d))[:, 0] / h**2 for d in e)
    residual = laplacian + 2 * (2 - x[:, 0] ** 2 - x[:, 1] ** 2)
    assert whole.heldout_residual == pytest.approx(np.sqrt(np.mean(residual**2)), rel=0.3)


def test_provenance_is_documented(whole: api.SolveResult) -> None:
    found = kanpinn.load(whole.folder).provenance
    text = (Path(__file__).parent.parent / "docs" / "checkpoint.md").read_text()
    section = text[text.index("### Problem and provenance") :]
    assert {"command", "earlier"} < set(found)
    assert [key for key in found if f"`{key}`" not in section] == []
    assert [key for key in kanpinn.load(whole.folder).problem if f"`{key}`" not in section] == []


def test_metrics_lines_are_the_history(whole: api.SolveResult) -> None:
    assert rows(whole.folder) == read_checkpoint(whole.folder / "checkpoint.h5").history
    assert [row["step"] for row in rows(whole.folder)] == [0, 2, 4, 6, 8, 8, 10, 12, 14, 16]


def test_saved_config_solves_to_the_same_numbers(whole: api.SolveResult, tmp_path: Path) -> None:
    config = read_yaml(whole.folder / "config.yaml")
    again = run(tmp_path / "again", config=config)
    assert torch.equal(parameters(again.folder), parameters(whole.folder))
    assert read_yaml(again.folder / "config.yaml") == config


def test_another_seed_gives_other_numbers(whole: api.SolveResult, tmp_path: Path) -> None:
    other = run(tmp_path / "other", overrides=["seed=5"])
    assert not torch.equal(parameters(other.folder), parameters(whole.folder))


def test_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [run(overrides=["training.phases=[{optimiser: adam, steps: 1}]"]).folder
               for _ in range(2)]  # fmt: skip
    assert [folder.parent for folder in folders] == 2 * [tmp_path / "runs" / "tiny"]
    assert folders[0] != folders[1]


@pytest.mark.parametrize(
    ("overrides", "threads"),
    [
        ([], 1),  # a small model: its threads share the points, not every operation
        (["model.widths=[2,64,1]", "model.intervals=20", "training.levels=1"], 3),
    ],
    ids=["small", "large"],
)
def test_threads_are_given_back(overrides: list[str], threads: int, tmp_path: Path) -> None:
    seen = []

    class Watch(Silent):
        def begin(self, hierarchy: Any) -> None:
            seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    run(tmp_path / "run", overrides=["threads=3", *overrides], display=Watch(),
        stop=lambda: True, on_interrupt="return")  # fmt: skip
    assert seen == [threads]
    assert torch.get_num_threads() == before


def test_figures_are_drawn_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr("kanpinn.plotting.plot_run", lambda *given: calls.append(given))
    result = run(tmp_path / "run", overrides=["figures=true"])
    ((solution, problem, folder),) = calls
    x = np.random.default_rng(0).uniform(-1, 1, (5, 2))
    assert np.array_equal(solution(x), result.solution(x))
    assert isinstance(problem, Bump)
    assert folder == tmp_path / "run" / "figures"
    run(tmp_path / "without")
    stopped = {"stop": stop_after(1), "on_interrupt": "return"}
    run(tmp_path / "stopped", overrides=["figures=true"], **stopped)
    assert len(calls) == 1


# --- nothing is lost, nothing is written too early ----------------------------------------------
@pytest.mark.parametrize(
    ("overrides", "problem", "message"),
    [
        (["model.widht=3"], Bump, "did you mean 'width'"),
        (["model.width=-1"], Bump, "model.width"),
        (["model.order=2"], Bump, "at least 4 is needed"),
        (["training.refine=[3]"], Bump, "training.refine"),
        (["device=cuda:99"], Bump, "device"),
        (["sampling.grading=[{of: z, scale: 0.1, share: 0.5}]"], Bump, "'z'"),
        (["problem.strength=2"], Bump, "given as an object"),
        ([], object(), "allowed: a kanpinn.Problem"),
    ],
)
def test_everything_is_checked_before_a_folder_is_made(
    tmp_path: Path, overrides: list[str], problem: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", overrides=overrides, problem=problem)
    assert list(tmp_path.iterdir()) == []


ILL = "training.refine: from level 0: .* condition number"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.type=multichannel", "model.order=8", "dtype=float32"], ILL),
        (
            ["model.type=multichannel", "model.order=8", "model.intervals=64",
             "training.transfer=least_squares"],
            ILL,
        ),
        (["model.knots=free", "model.knot_floor=0.9", "training.refine=[[[-1, -0.99, 1], 4]]",
          "training.transfer=least_squares"], "training.refine: from level 0: .* below the floor"),
        (["training.refine=[3]", "training.phases=[{optimiser: adam, steps: [0, 1]}]"], None),
        (["training.refine=[3]", "training.phases=[{optimiser: adam, steps: [1, 0]}]"], None),
    ],
)  # fmt: skip
def test_refinements_are_tried_as_they_will_be_made(
    overrides: list[str], message: str | None
) -> None:
    """In the run's number type, by its transfer, between the levels that are trained."""
    if message is None:
        api.prepare(tiny(), overrides, Bump)
        return
    with pytest.raises(ConfigError, match=message):
        api.prepare(tiny(), overrides, Bump)


def test_a_reference_of_the_wrong_shape(tmp_path: Path) -> None:
    class Wrong(Bump):
        def reference(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.zeros((len(x), 2))

    with pytest.raises(ProblemError, match=r"reference at 121 points has the shape \(121, 2\)"):
        run(tmp_path / "run", problem=Wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"networks": {"a.b": ("u",)}}, "networks: found 'a.b'"),
        ({"networks": {"items": ("u",)}}, "networks: found 'items'"),
        ({"networks": {"": ("u",)}}, "networks: found ''"),
        ({"scalars": {"values": 1.0}}, "scalars: found 'values'"),
        ({"scalars": {"k.x": 1.0}}, "scalars: found 'k.x'"),
        ({"scalars": {"k": np.nan}}, "scalars: 'k' is nan, allowed: a number"),
        ({"scalars": {"k": "1"}}, "scalars: 'k' is '1', allowed: a number"),
        ({"fields": ("u", "u")}, r"fields: found \['u', 'u'\], allowed: different names"),
        ({"fields": "uv"}, "fields: found 'uv', allowed: names such as"),
        ({"fields": ()}, r"fields: found \(\), allowed: names such as"),
        ({"fields": ("side",)}, "fields: found 'side', allowed: .*coordinate, .*side"),
        ({"fields": ("a.b",)}, "fields: found 'a.b'"),
        ({"fields": ("_u",)}, "fields: found '_u'"),
        ({"fields": ("lambda",)}, "fields: found 'lambda'"),
        ({"scales": {"v": Scaling(scale=2.0)}}, "scales: found 'v', allowed: u"),
        ({"conditions": ("x",)}, "conditions: found str, allowed: conditions such as"),
    ],
)
def test_names_and_numbers_of_a_problem(attributes: dict[str, Any], message: str) -> None:
    class Named(Problem):
        domain = Box((-1.0,), (1.0,))

        def residual(self, p: Site) -> Tensor:
            return p.u.xx

    for name, value in attributes.items():
        setattr(Named, name, value)
    with pytest.raises(ProblemError, match=rf"^config: Named\.{message}") as caught:
        api.prepare(tiny(), problem=Named)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_reference_that_is_not_finite_is_refused(tmp_path: Path, bad: float) -> None:
    """It would pass for no reference at all: errors that are not finite are null."""

    class Gap(Bump):
        def reference(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.where((x == [0.0, -1.0]).all(1), bad, super().reference(x))

    with pytest.raises(ProblemError, match=r"Gap: the reference is \[(nan|inf)\] at \(0, -1\)"):
        run(tmp_path / "run", problem=Gap)
    assert list(tmp_path.iterdir()) == []


def test_a_reference_with_a_gap_between_the_points_tried(tmp_path: Path) -> None:
    class Gap(Bump):
        def evaluation_points(self) -> Tensor:
            return self.domain.evaluation_grid((41, 41))[0]

        def reference(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.where((x == [0.0, -0.95]).all(1), np.nan, super().reference(x))

    with pytest.raises(ProblemError, match=r"the reference is \[nan\] at \(0, -0.95\)"):
        run(tmp_path / "run", problem=Gap)
    assert RunFolder(tmp_path / "run").status is Status.FAILED


@pytest.mark.parametrize("error", [SystemExit(3), ZeroDivisionError("one too many")])
@pytest.mark.parametrize("where", ["__init__", "residual", "reference"])
def test_what_a_problem_raises_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    def fail(*given: Any, **named: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(Bump, where, fail)
    config = tiny(problem={"name": f"{__file__}:Bump"})
    monkeypatch.setattr("kanpinn.registry.problem_class", lambda *given: Bump)
    with pytest.raises(ProblemError, match=rf"{type(error).__name__}: .*test_api.py") as caught:
        api.solve(config, out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_is_never_overwritten(whole: api.SolveResult) -> None:
    before = {path: path.read_bytes() for path in whole.folder.iterdir()}
    with pytest.raises(RunFolderError, match="already holds a run"):
        run(whole.folder)
    assert {path: path.read_bytes() for path in whole.folder.iterdir()} == before


def test_failing_metrics_and_figures_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    def fail(*arguments: Any) -> NoReturn:
        raise ValueError("no ink")

    monkeypatch.setattr(Bump, "metrics", fail)
    monkeypatch.setattr("kanpinn.plotting.plot_run", fail)
    result = run(tmp_path / "run", overrides=["figures=true"], display=Notes())
    assert result.status is Status.COMPLETED
    assert result.metrics == {}
    warnings = [note for note in notes if note.startswith("warning")]
    assert len(warnings) == 2
    assert all("no ink" in warning for warning in warnings)
    assert (result.folder / "run.log").read_text().count("ValueError: no ink") == 2


def test_an_error_in_the_midst_of_it(tmp_path: Path, whole: api.SolveResult) -> None:
    class Broken(Silent):
        def row(self, row: Any, record: Any) -> None:
            if row["step"] == 12:
                raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        run(tmp_path / "run", display=Broken())
    folder = RunFolder(tmp_path / "run")
    assert folder.status is Status.FAILED
    assert set(folder.read_summary() or {}) >= CONTRACT_KEYS
    assert "the disk is full" in folder.log.read_text()
    assert run(tmp_path / "run", resume=True).status is Status.COMPLETED
    assert torch.equal(parameters(folder.path), parameters(whole.folder))


# --- how a run ends -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("training", "status", "code"),
    [
        ({"target": {"rel_l2": 1e3}}, "target_reached", 0),
        ({"target": {"rel_l2": 1e-9}}, "target_missed", 4),
        ({"target": {"rel_l2": 1e-9}, "time_limit": 1e-6}, "target_missed", 4),
        ({"time_limit": 1e-6}, "time_limit", 0),
    ],
)
def test_budgets_and_targets(
    tmp_path: Path, training: dict[str, Any], status: str, code: int
) -> None:
    result = run(tmp_path / "run", changes={"training": training})
    assert (result.summary["status"], result.exit_code) == (status, code)


def test_a_target_met_by_the_last_step_counts(tmp_path: Path, whole: api.SolveResult) -> None:
    # Logged nowhere but at the end, where the loop itself looks at no target.
    training = {"target": {"rel_l2": rows(whole.folder)[-1]["rel_l2"]}, "log_every": 1000}
    assert run(tmp_path / "run", changes={"training": training}).status is Status.TARGET_REACHED


def test_diverged(tmp_path: Path) -> None:
    phases = [{"optimiser": "adam", "steps": 20, "learning_rate": 1e300}]
    result = run(tmp_path / "run", changes={"training": {"phases": phases, "max_restarts": 0}})
    assert (result.status, result.exit_code) == (Status.DIVERGED, 3)
    summary = json.loads((result.folder / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["rel_l2"] is not None  # of the best iterate, before it all went wrong
    assert any(row["loss"] is None for row in rows(result.folder))


# --- going on -----------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [1, 4, 7, 8, 13])
def test_resumed_run_is_bitwise_the_same(
    tmp_path: Path, whole: api.SolveResult, steps: int
) -> None:
    folder = tmp_path / "run"
    first = run(folder, stop=stop_after(steps), on_interrupt="return")
    assert (first.status, first.exit_code) == (Status.INTERRUPTED, 130)
    assert first.summary["steps"] == steps
    second = run(folder, resume=True)
    assert second.status is Status.COMPLETED
    assert torch.equal(parameters(folder), parameters(whole.folder))
    clock = {"wall_s": 0.0}  # all that may differ
    expected = [row | clock for row in rows(whole.folder)]
    assert [row | clock for row in rows(folder)] == expected
    assert second.rel_l2 == whole.rel_l2
    assert second.wall_s > first.wall_s
    assert [level["steps"] for level in second.levels] == [8, 8]


def test_stopped_before_the_first_line_is_due(tmp_path: Path) -> None:
    """Reported and loaded is the iterate it was stopped at, not the untrained network."""
    changes = {"training": {"log_every": 1000, "phases": [{"optimiser": "lm", "steps": 9}]}}
    folder, undisturbed = tmp_path / "run", run(tmp_path / "whole", changes=changes)
    stopped = run(folder, changes=changes, stop=stop_after(7), on_interrupt="return")
    start, end = rows(folder)
    assert (start["step"], end["step"], end["phase"]) == (0, 7, "stopped")
    for name in ("rel_l2", "linf", "loss", "heldout_residual"):
        assert stopped.summary[name] == end[name] != start[name]
    assert stopped.summary["best_step"] == 7 and stopped.rel_l2 < 0.5 * start["rel_l2"]
    solution = kanpinn.load(folder)
    x = np.random.default_rng(0).uniform(-1, 1, (50, len(solution.coordinates)))
    assert np.array_equal(solution(x), solution.last(x))
    assert np.array_equal(solution.best(x), solution.last(x))
    assert not np.array_equal(solution(x), solution.levels[0](x))
    done = run(folder, changes=changes, resume=True)
    assert [row["phase"] for row in rows(folder)] == [
        row["phase"] for row in rows(undisturbed.folder)
    ]
    assert done.summary["best_step"] == undisturbed.summary["best_step"]
    assert np.array_equal(kanpinn.load(folder)(x), undisturbed.solution(x))


def test_twice_interrupted(tmp_path: Path, whole: api.SolveResult) -> None:
    folder = tmp_path / "run"
    for resume in (False, True, True):
        run(folder, resume=resume, stop=stop_after(5), on_interrupt="return")
    run(folder, resume=True)
    assert torch.equal(parameters(folder), parameters(whole.folder))
    earlier = kanpinn.load(folder).provenance["earlier"]
    assert len(earlier) == 3


class Killed(BaseException):
    """Like SIGKILL: nothing gets to clean up."""


def kill_after(steps: int) -> Callable[[], bool]:
    ask = stop_after(steps)

    def stop() -> bool:
        if ask():
            raise Killed
        return False

    return stop


def test_killed_run_goes_on_from_its_checkpoint(tmp_path: Path, whole: api.SolveResult) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        run(folder, stop=kill_after(15), changes={"training": {"checkpoint_every": 5}})
    assert not (folder / "summary.json").exists()
    assert rows(folder)[-1]["step"] == 14
    saved = read_checkpoint(folder / "checkpoint.h5").history[-1]["step"]
    assert saved == 10  # so that lines must be taken back
    run(folder, resume=True)
    steps = [row["step"] for row in rows(folder)]
    assert steps == [row["step"] for row in rows(whole.folder)]
    assert torch.equal(parameters(folder), parameters(whole.folder))


def test_killed_before_the_first_checkpoint(tmp_path: Path, whole: api.SolveResult) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        run(folder, stop=kill_after(2))
    (folder / "checkpoint.h5").unlink()
    run(folder, resume=True)
    assert torch.equal(parameters(folder), parameters(whole.folder))


def test_killed_between_checkpoint_and_summary(tmp_path: Path, whole: api.SolveResult) -> None:
    folder = tmp_path / "run"
    run(folder)
    (folder / "summary.json").unlink()
    assert run(folder, resume=True).summary["levels"] is not None
    summary = RunFolder(folder).read_summary()
    assert summary is not None
    assert summary["status"] == "completed"
    assert summary["levels"][-1]["stop_reason"] == whole.levels[-1]["stop_reason"]


def test_resume_of_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    result = run(tmp_path / "run", changes={"training": {"target": {"rel_l2": 1e-9}}})
    files = ("checkpoint.h5", "metrics.jsonl", "summary.json", "config.yaml")
    before = [(result.folder / name).read_bytes() for name in files]
    again = run(tmp_path / "run", changes={"training": {"target": {"rel_l2": 1e-9}}}, resume=True)
    assert (again.status, again.summary) == (result.status, result.summary)
    assert again.exit_code == 4
    assert [(result.folder / name).read_bytes() for name in files] == before
    assert "already finished" in (result.folder / "run.log").read_text()


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["seed=7"], ["seed"]),
        (
            ["model.width=4", "training.phases.0.learning_rate=0.5"],
            ["model.width", "training.phases.0.learning_rate"],
        ),
        (["sampling.interior=61"], ["sampling.interior"]),
    ],
)
def test_resume_refuses_another_config(
    tmp_path: Path, overrides: list[str], keys: list[str]
) -> None:
    run(tmp_path / "run", stop=stop_after(3), on_interrupt="return")
    before = (tmp_path / "run" / "checkpoint.h5").read_bytes()
    with pytest.raises(ConfigError, match="another config") as caught:
        run(tmp_path / "run", resume=True, overrides=overrides)
    assert ", ".join(keys) in str(caught.value)
    assert (tmp_path / "run" / "checkpoint.h5").read_bytes() == before
    allowed = ["training.log_every=3", "training.checkpoint_every=7"]
    assert run(tmp_path / "run", resume=True, overrides=allowed).status is Status.COMPLETED
    saved = read_yaml(tmp_path / "run" / "config.yaml")
    assert saved["training"]["checkpoint_every"] == 7


def test_resume_refuses_another_problem(tmp_path: Path) -> None:
    run(tmp_path / "run", stop=stop_after(3), on_interrupt="return")
    with pytest.raises(ConfigError, match=r"problem\.strength"):
        run(tmp_path / "run", resume=True, problem=Bump(strength=2.0))


def test_resume_finds_the_newest_unfinished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunFolderError, match="no unfinished run"):
        run(resume=True)
    stopped = [run(stop=stop_after(n), on_interrupt="return").folder for n in (3, 5)]
    other = run(stop=stop_after(2), on_interrupt="return", overrides=["seed=8"]).folder
    finished = run().folder
    assert run(resume=True).folder == stopped[1]
    assert run(resume=True).folder == stopped[0]
    with pytest.raises(ConfigError, match=r"another config.*different: seed;") as caught:
        run(resume=True)
    assert other.name in str(caught.value)
    assert run(resume=True, overrides=["seed=8"]).folder == other
    with pytest.raises(RunFolderError, match=f"newest, {finished.name}, is completed"):
        run(resume=True)


def test_resume_of_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run"):
        run(tmp_path / "nothing", resume=True)


def test_resume_of_a_damaged_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, stop=stop_after(3), on_interrupt="return")
    (folder / "checkpoint.h5").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="checkpoint"):
        run(folder, resume=True)
    assert (folder / "checkpoint.h5").read_bytes() == b"garbage"


def test_more_time_goes_on(tmp_path: Path, whole: api.SolveResult) -> None:
    limited = {"training": {"time_limit": 1e-6}}
    result = run(tmp_path / "run", changes=limited)
    assert result.summary["steps"] == 1
    assert run(tmp_path / "run", changes=limited, resume=True).summary == result.summary
    assert run(tmp_path / "run", resume=True).status is Status.COMPLETED
    assert torch.equal(parameters(tmp_path / "run"), parameters(whole.folder))


def test_more_time_or_a_stricter_target_finds_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: api.SolveResult
) -> None:
    """Without its folder being named; with the same budget there is nothing to continue."""
    monkeypatch.chdir(tmp_path)
    limited = {"training": {"time_limit": 1e-6}}
    stopped = run(changes=limited)
    with pytest.raises(RunFolderError, match=f"newest, {stopped.folder.name}, is time_limit"):
        run(changes=limited, resume=True)
    loose, strict = ({"training": {"target": {"rel_l2": value}}} for value in (1e3, 1e-9))
    reached = run(changes=loose)
    with pytest.raises(RunFolderError, match="is target_reached"):
        run(changes={"training": {**limited["training"], **loose["training"]}}, resume=True)
    missed = run(changes=strict, resume=True)  # the newer of the two
    assert (missed.folder, missed.status) == (reached.folder, Status.TARGET_MISSED)
    again = run(resume=True)
    assert (again.folder, again.status) == (stopped.folder, Status.COMPLETED)
    for folder in (stopped.folder, reached.folder):
        assert torch.equal(parameters(folder), parameters(whole.folder))
    with pytest.raises(RunFolderError, match="no unfinished run"):
        run(resume=True)
    (stopped.folder / "summary.json").write_text('{"status": "time_limit", "levels": []}')
    with pytest.raises(RunFolderError, match="no unfinished run"):
        run(resume=True)


def test_a_stricter_target_goes_on(tmp_path: Path, whole: api.SolveResult) -> None:
    loose, strict = ({"training": {"target": {"rel_l2": value}}} for value in (1e3, 1e-9))
    assert run(tmp_path / "run", changes=loose).summary["steps"] < 16
    assert run(tmp_path / "run", changes=strict, resume=True).status is Status.TARGET_MISSED
    assert torch.equal(parameters(tmp_path / "run"), parameters(whole.folder))


def test_more_steps_before_the_end_but_not_after(tmp_path: Path) -> None:
    more = ["training.phases.1.steps=6"]
    run(tmp_path / "run", stop=stop_after(3), on_interrupt="return")
    assert run(tmp_path / "run", resume=True, overrides=more).summary["steps"] == 20
    with pytest.raises(RunFolderError, match=r"has finished.*training\.phases\.1\.steps"):
        run(tmp_path / "run", resume=True, overrides=["training.phases.1.steps=50"])


def test_ctrl_c_in_a_script(tmp_path: Path) -> None:
    counter = stop_after(5)

    def press() -> bool:
        if counter():
            os.kill(os.getpid(), signal.SIGINT)
        return False

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", stop=press)
    finally:
        signal.signal(signal.SIGINT, before)
    # Saved all the same: pressed once or twice, what was written before is whole.
    assert read_checkpoint(tmp_path / "run" / "checkpoint.h5").history


def test_ctrl_c_while_figures_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kanpinn.plotting.plot_run", press)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "script", overrides=["figures=true"])
    done = run(tmp_path / "run", overrides=["figures=true"], on_interrupt="return")
    assert done.status.final
    assert read_checkpoint(tmp_path / "script" / "checkpoint.h5").history
    log = (tmp_path / "run" / "run.log").read_text()
    assert f"stopped: `kanpinn plot {tmp_path / 'run'}` draws the figures" in log


# --- a problem of one's own ---------------------------------------------------------------------
OWN = """
from dataclasses import dataclass
from kanpinn import Box, Initial, Problem

@dataclass
class Decay(Problem):
    rate: float = 1.0
    domain = Box([0.0], [1.0], names=("t",), time="t")
    conditions = (Initial(value=1.0, exact=True),)

    def residual(self, p):
        return p.u.t + self.rate * p.u
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_own_problem_from_a_file(tmp_path: Path, own: Path) -> None:
    config = tiny(problem={"name": f"{own}:Decay", "rate": 2.0})
    result = api.solve(config, out=tmp_path / "run")
    assert result.rel_l2 is None
    assert result.linf is None
    solution = kanpinn.load(tmp_path / "run")
    assert solution(np.zeros((1, 1))) == pytest.approx(1.0)
    assert solution.problem["source"]["path"] == str(own)
    with pytest.raises(ProblemError, match="not imported unless told"):
        api.problem_of(solution)
    assert type(api.problem_of(solution, trust=True)).__name__ == "Decay"
    assert kanpinn.load(tmp_path / "run", trust=True).fields == ("u",)
    with pytest.raises(ProblemError, match=r"Bump has u of \(x, y\), the solution u of \(t\)"):
        kanpinn.load(tmp_path / "run", problem=Bump)
    own.write_text(OWN + "# changed\n")
    with pytest.raises(ProblemError, match="has changed since the run"):
        kanpinn.load(tmp_path / "run", trust=True)
    own.unlink()
    with pytest.raises(ProblemError, match="no longer there"):
        kanpinn.load(tmp_path / "run", trust=True)


def test_a_changed_file_is_another_problem(tmp_path: Path, own: Path) -> None:
    config = tiny(problem=f"{own}:Decay")
    api.solve(config, out=tmp_path / "run", stop=stop_after(3), on_interrupt="return")
    own.write_text(OWN.replace("p.u.t +", "p.u.t -"))
    with pytest.raises(ConfigError, match="has changed since this run began"):
        api.solve(config, out=tmp_path / "run", resume=True)


def test_own_problem_as_an_object(tmp_path: Path, whole: api.SolveResult) -> None:
    by_class, by_object = whole, run(tmp_path / "run", problem=Bump(strength=1.0))
    assert torch.equal(parameters(by_class.folder), parameters(by_object.folder))
    stored = kanpinn.load(by_object.folder).problem
    assert stored["name"] == f"{Path(__file__).resolve()}:Bump"
    assert stored["parameters"] == {"strength": 1.0}
    assert stored["source"]["path"] == str(Path(__file__).resolve())
    stronger = run(tmp_path / "other", problem=Bump(strength=2.0))
    assert kanpinn.load(stronger.folder).problem["parameters"] == {"strength": 2.0}
    assert not torch.equal(parameters(stronger.folder), parameters(whole.folder))


def test_problem_of_a_function_cannot_be_named_by_a_file(tmp_path: Path) -> None:
    class Local(Bump):
        pass

    config = api.prepare(tiny(), problem=Local).config
    assert config.problem.name.endswith("<locals>.Local")
    assert config.name == "tiny"


def test_config_as_an_object_and_overrides() -> None:
    first = api.prepare(tiny(), problem=Bump).config
    assert api.prepare(first, problem=Bump).config == first
    changed = api.prepare(first, ["model.width=5"], problem=Bump).config
    assert to_dict(changed) == {**to_dict(first), "model": {**to_dict(first)["model"], "width": 5}}


class Fit(Problem):
    """Values at nine points, all of them trained on."""

    domain = Box((-1.0,), (1.0,))

    def residual(self, p: Site) -> Tensor:
        result: Tensor = p.u - torch.sin(3 * p.x)
        return result

    def blocks(self) -> tuple[ResidualBlock, ...]:
        given = FixedPoints(Points(torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]))
        return (ResidualBlock("data", given, self.residual, equation=True),)


def test_given_points_have_no_held_out_residual(tmp_path: Path) -> None:
    """None rather than that of the points trained on; iterates are judged all the same."""
    result = run(tmp_path / "run", problem=Fit, changes={"figures": True})
    assert result.heldout_residual is None and result.summary["heldout_residual"] is None
    assert all(level["heldout_residual"] is None for level in result.levels)
    history = rows(result.folder)
    assert all(row["heldout_residual"] is None for row in history)
    assert history[-1]["heldout_score"] == pytest.approx(np.sqrt(history[-1]["loss"]), rel=1e-9)
    best = min(history, key=lambda row: row["heldout_score"])
    assert result.summary["best_step"] == best["step"] > 0
    assert "no held-out residual" in (result.folder / "run.log").read_text()
    assert (result.folder / "figures" / "convergence.png").is_file()
    assert np.isnan(result.solution.history["heldout_residual"]).all()
    assert repr(result.solution)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("heldout_residual", "no points that are not trained on"),
        ("rel_l2", "the problem has no reference"),
    ],
)
def test_a_target_that_nothing_measures_is_refused(
    tmp_path: Path, target: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"training\.target\.{target}: found 0.1, .*{message}"):
        run(tmp_path / "run", problem=Fit, overrides=[f"training.target.{target}=0.1"])
    assert not (tmp_path / "run").exists()
    assert api.prepare(tiny(), ["training.target.loss=0.1"], Fit)


# --- what is to come ----------------------------------------------------------------------------
@pytest.mark.parametrize("per_parameter", [None, 2.0])
def test_plan_is_what_happens(tmp_path: Path, per_parameter: float | None) -> None:
    sampling = {"interior": 60, "boundary": 20, "held_out": 40, "growth": 1.5}
    changes = {"sampling": {**sampling, "per_parameter": per_parameter}}
    planned = api.plan(api.prepare(tiny(**changes), problem=Bump))
    result = run(tmp_path / "run", changes=changes)
    assert len(planned) == len(result.levels) == 2
    for level, record in zip(planned, result.levels, strict=True):
        assert sum(level.n_points.values()) == record["n_points"]
        assert level.n_params == record["n_params"]
        assert list(level.n_intervals) == record["n_intervals"]
        assert level.steps == record["steps"]


def test_memory_grows_with_the_points() -> None:
    def memory(points: int) -> float:
        changes = {"sampling": {"interior": points, "boundary": 20, "held_out": 40}}
        least_squares = {"phases": [{"optimiser": "lm", "steps": 1}]}  # keeps features of powers
        config = tiny(training=least_squares, **changes)
        config["model"]["type"] = "multichannel"
        return api.plan(api.prepare(config, problem=Bump))[-1].memory_mib

    small, large = memory(10_000), memory(20_000)
    # Powers of order 4 on 4 intervals in two channels: 14 features; jets of 5 components.
    features = 10_000 * 14 * 5 * 8 / 2**20
    assert large - small == pytest.approx(features, rel=0.5)


WIDE = ["model.width=64", "model.intervals=64"]
MULTICHANNEL = ["model.type=multichannel", "model.order=4", "model.width=32", "model.intervals=32"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted otherwise")
@pytest.mark.parametrize(
    ("optimiser", "model"),
    [
        ("adam", WIDE),
        ("lbfgs", WIDE),
        ("adam", [*MULTICHANNEL, "model.hidden_layers=3"]),
        ("lm", ["model.width=16", "model.intervals=32"]),
        ("lm, solver: iterative", ["model.width=40", "model.intervals=32"]),
        ("lm, solver: dual", ["model.width=40", "model.intervals=32"]),
    ],
)
def test_memory_is_about_what_was_estimated(
    tmp_path: Path, optimiser: str, model: list[str]
) -> None:
    """Peaks of whole processes, less that of a run that takes next to nothing."""
    config = Path(__file__).parent.parent / "configs" / "poisson.yaml"
    common = [
        *("training.levels=1", "figures=false", "threads=1"),
        f"training.phases=[{{optimiser: {optimiser}, steps: 1}}]",
    ]

    def call(*options: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "kanpinn", "solve", str(config), *common, *options]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    small = ["sampling.interior=50", "sampling.boundary=10", "sampling.held_out=20"]
    least = call("model.width=2", *small, "--out", str(tmp_path / "small"))["peak_rss_mb"]
    peak = call(*model, "--out", str(tmp_path / "wide"))["peak_rss_mb"] - least
    (level,) = call(*model, "--dry-run")["levels"]
    shared = 10.0  # the small run evaluates its errors, too
    assert 0.5 * peak <= level["memory_mib"] <= 2.0 * peak + shared


@pytest.mark.parametrize("value", ["1/x", float("nan")])
def test_a_condition_that_is_not_finite_is_refused_before_anything_is_written(
    value: str | float, tmp_path: Path
) -> None:
    class Flat(kanpinn.Problem):
        domain = kanpinn.Box((0.0,), (1.0,), names=("x",))
        conditions = (kanpinn.Dirichlet(value=value),)

        def residual(self, p: kanpinn.Site) -> Any:
            return p.u.xx

    with pytest.raises(ProblemError, match=r"not finite") as caught:
        kanpinn.solve({"model": {"order": 4}}, problem=Flat, out=tmp_path / "run")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()
