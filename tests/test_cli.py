"""The command line: exit codes, what goes to stdout and what to stderr, and stopping by Ctrl-C."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import kanpinn
from kanpinn.cli import main
from kanpinn.cli.group import COMMANDS
from kanpinn.config import parse_yaml

PROBLEM = '''
from dataclasses import dataclass
import torch
from kanpinn import Box, Dirichlet, Problem

@dataclass
class Bump(Problem):
    """``u_xx + u_yy = f`` on a square, zero on its boundary."""
    strength: float = 1.0

    def __post_init__(self):
        self.domain = Box((-1.0, -1.0), (1.0, 1.0))
        self.conditions = (Dirichlet(value=0.0, weight=10.0),)

    def residual(self, p):
        return p.u.xx + p.u.yy + 2 * self.strength * (2 - p.x**2 - p.y**2)

    def reference(self, x):
        return self.strength * (1 - x[:, 0] ** 2) * (1 - x[:, 1] ** 2)

    def evaluation_points(self):
        return self.domain.evaluation_grid((11, 11))[0]
'''

CONFIG = """
problem: {name: "problem.py:Bump", strength: 1.5}
model: {width: 3, intervals: 2, order: 4}
sampling: {interior: 60, boundary: 20, held_out: 40}
training:
  levels: 2
  phases:
    - {optimiser: adam, steps: 8, learning_rate: 1e-2}
    - {optimiser: lbfgs, steps: 8}
  log_every: 4
  checkpoint_every: 10
device: cpu
threads: 1
figures: false
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a config and its problem."""
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_inputs(folder: Path) -> None:
    (folder / "problem.py").write_text(PROBLEM)
    (folder / "tiny.yaml").write_text(CONFIG)


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result: Result, *words: str, code: int = 2) -> str:
    """The one line that says what is wrong."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[0]
    return lines[0]


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("solved")
    write_inputs(folder)
    result = call("solve", folder / "tiny.yaml", "--out", folder / "run", "-q")
    assert result.exit_code == 0, result.output
    return folder / "run"


def parameters(folder: Path) -> torch.Tensor:
    model = kanpinn.load(folder).last.model
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


# --- solve --------------------------------------------------------------------------------------
def test_solve(here: Path) -> None:
    result = call("solve", "tiny.yaml")
    assert result.exit_code == 0, result.output
    assert "completed" in result.stdout
    assert "relative L2 error" in result.stdout
    assert "device cpu (1 thread), float64" in result.stderr
    (folder,) = (here / "runs" / "tiny").iterdir()
    assert f"runs/tiny/{folder.name}" in result.stdout
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "checkpoint.h5", "metrics.jsonl", "summary.json", "run.log")
    }
    rows = [line for line in result.stderr.splitlines() if line.startswith("level 1  step")]
    assert len(rows) == len(range(16, 33, 4))
    for word in ("loss", "held-out", "rel_l2", " s"):
        assert word in rows[0]


def test_json_is_the_summary_and_nothing_else(here: Path) -> None:
    result = call("solve", "tiny.yaml", "--json", "--out", "run")
    summary = json.loads(result.stdout, parse_constant=pytest.fail)
    assert summary == json.loads((here / "run" / "summary.json").read_text())
    assert "step" in result.stderr
    quiet = call("solve", "tiny.yaml", "--json", "--out", "other", "-q")
    assert quiet.stderr == ""
    assert json.loads(quiet.stdout)["rel_l2"] == summary["rel_l2"]


def test_options_and_overrides_stand_for_keys(here: Path) -> None:
    given = ["model.width=4", "seed=5", "training.phases=[{optimiser: adam, steps: 2}]"]
    options = ["--seed", "6", "--dtype", "float32", "--threads", "1", "--device", "cpu"]
    result = call("solve", "tiny.yaml", *given, *options, "--out", "run", "--json")
    summary = json.loads(result.stdout)
    assert (summary["seed"], summary["dtype"], summary["device"]) == (6, "float32", "cpu")
    saved = parse_yaml((here / "run" / "config.yaml").read_text(), "config.yaml")
    assert (saved["model"]["width"], saved["seed"], saved["threads"]) == (4, 6, 1)
    assert saved["problem"]["name"] == f"{here / 'problem.py'}:Bump"


def test_target_missed(here: Path) -> None:
    result = call("solve", "tiny.yaml", "training.target.rel_l2=1e-9", "--json", "-q")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["status"] == "target_missed"


def test_diverged(here: Path) -> None:
    changes = ["training.phases=[{optimiser: adam, steps: 9, learning_rate: 1e300}]",
               "training.max_restarts=0"]  # fmt: skip
    result = call("solve", "tiny.yaml", *changes, "--json", "-q")
    assert result.exit_code == 3
    assert json.loads(result.stdout, parse_constant=pytest.fail)["status"] == "diverged"


def test_dry_run_writes_nothing(here: Path) -> None:
    before = sorted(here.rglob("*"))
    result = call("solve", "tiny.yaml", "--dry-run", "model.width=4", "--out", "run")
    assert result.exit_code == 0, result.output
    config, _, table = result.stdout.partition("\nlevel")
    assert parse_yaml(config, "stdout")["model"]["width"] == 4
    assert "MiB" in table
    assert "equation 60" in table
    plan = json.loads(call("solve", "tiny.yaml", "--dry-run", "--json").stdout)
    assert [level["n_intervals"] for level in plan["levels"]] == [[2, 2], [4, 4]]
    # 3 splines per interval-channel pair: (2 + 3) in 2 channels to 3, and in 3 channels to 1.
    assert plan["levels"][0]["n_params"] == 5 * 2 * 3 + 5 * 3
    assert plan["memory_mib"] > 0
    after = [path for path in sorted(here.rglob("*")) if "__pycache__" not in str(path)]
    assert after == before


# --- a user's mistakes --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("solve", "missing.yaml"), ("missing.yaml", "no such file")),
        (("solve", "tiny.yml"), ("did you mean 'tiny.yaml'",)),
        (("solve", "tiny.yaml", "model.widht=3"), ("model.widht", "did you mean 'width'")),
        (("solve", "tiny.yaml", "model.width=nan"), ("model.width", "nan")),
        (("solve", "tiny.yaml", "model.width"), ("model.width", "KEY=VALUE")),
        (("solve", "tiny.yaml", "--device", "tpu"), ("device", "tpu", "auto, cpu")),
        (("solve", "tiny.yaml", "--device", "cuda:99"), ("device", "cuda:99")),
        (("solve", "tiny.yaml", "--threads", "-1"), ("threads", "-1")),
        (("solve", "tiny.yaml", "--threads", "nan"), ("threads", "nan")),
        (("solve", "tiny.yaml", "--seed", "x"), ("seed", "'x'")),
        (("solve", "tiny.yaml", "--dtype", "float16"), ("dtype", "float64")),
        (("solve", "tiny.yaml", "--out", "tiny.yaml"), ("tiny.yaml", "is a file")),
        (("solve", "tiny.yaml", "--resume"), ("no unfinished run",)),
        (("solve", "tiny.yaml", "--resume", "--dry-run"), ("exclude each other",)),
        (("solve", "tiny.yaml", "--resmue"), ("--resmue", "--resume", "--help")),
        (("solve",), ("CONFIG",)),
        (("sovle", "tiny.yaml"), ("sovle",)),
        (("compare", "run"), ("compare",)),
        (("validate", "tiny.yaml", "problem=nonesuch"), ("nonesuch",)),
        (("validate", "tiny.yaml", "problem=problem.py:Bmup"), ("did you mean 'Bump'",)),
        (("validate", "tiny.yaml", "model.order=2"), ("model.order",)),
        (("validate", "tiny.yaml", "training.refine=[3]"), ("training.refine",)),
        (("validate", "tiny.yaml", "model.widths=[2, 3, 2]"), ("model.widths",)),
        (("list", "cats"), ("cats", "problems")),
        (("evaluate", ".", "--out", "x.csv"), (".: holds no checkpoint.h5; a run folder or",)),
    ],
)
def test_mistakes_are_one_line(here: Path, arguments: tuple[str, ...], words: Any) -> None:
    before = sorted(here.iterdir())
    refused(call(*arguments), *words)
    assert [path for path in sorted(here.iterdir()) if path.name != "__pycache__"] == before


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b"a: [1", b"- 1", b"a: !!python/none x"])
def test_a_config_that_is_none(here: Path, content: bytes) -> None:
    (here / "bad.yaml").write_bytes(content)
    refused(call("solve", "bad.yaml"), "bad.yaml")


def test_several_errors_are_a_line_each(here: Path) -> None:
    result = call("validate", "tiny.yaml", "model.widht=3", "seed=-1")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 2
    assert all(line.startswith("error: ") for line in result.stderr.splitlines())


def test_a_run_is_never_overwritten(solved: Path, here: Path) -> None:
    before = {path: path.read_bytes() for path in solved.iterdir()}
    refused(call("solve", "tiny.yaml", "--out", solved), "already holds a run", "--resume")
    assert {path: path.read_bytes() for path in solved.iterdir()} == before


def test_verbose_shows_the_traceback(here: Path) -> None:
    for arguments in (["-v", "model.width=0"], ["model.width=0", "--verbose"]):
        result = call("solve", "tiny.yaml", *arguments)
        assert result.exit_code == 2
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: ")


def test_a_bug_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kanpinn.registry.list_models", len)  # which wants an argument
    refused(call("list"), "TypeError", "this is a bug", "-v", code=1)
    assert "Traceback" in call("list", "-v").stderr


@pytest.mark.parametrize(
    ("old", "new", "code", "place"),
    [
        ("return self.strength * (1", "return self.wrong * (1", 2, "problem.py, line {}"),
        ("self.domain.evaluation_grid", "self.wrong.evaluation_grid", 1, "problem.py:{}"),
        ("return self.domain.evaluation", "exit('wrong')  # ", 1, "problem.py:{}"),
    ],
)
def test_an_error_in_a_users_file_names_it(
    here: Path, old: str, new: str, code: int, place: str
) -> None:
    broken = PROBLEM.replace(old, new)
    (here / "problem.py").write_text(broken)
    line = broken.splitlines().index(next(x for x in broken.splitlines() if "wrong" in x)) + 1
    text = refused(call("solve", "tiny.yaml"), "wrong", code=code)
    assert place.format(line) in text
    assert "bug in kanpinn" not in text
    assert not (here / "runs").exists()


# --- the other commands -------------------------------------------------------------------------
def test_validate(here: Path) -> None:
    result = call("validate", "tiny.yaml")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("tiny.yaml: OK (")
    # (4 + 3) splines in 2 channels to 3, and in 3 channels to 1, on the finest level.
    assert f"2 levels, {7 * 2 * 3 + 7 * 3} parameters" in result.stdout
    assert "device cpu" in result.stdout
    assert not (here / "runs").exists()


def test_inspect_runs_no_code(solved: Path, here: Path) -> None:
    (solved.parent / "problem.py").rename(here / "away.py")
    try:
        result = call("inspect", solved)
        file = call("inspect", solved / "checkpoint.h5", "--json")
    finally:
        (here / "away.py").rename(solved.parent / "problem.py")
    assert result.exit_code == 0, result.output
    for word in ("completed", "problem.py:Bump (strength=1.5)", "u of (x, y)", "adam 8, lbfgs 8"):
        assert word in result.stdout
    found = json.loads(file.stdout)
    assert [level["n_intervals"] for level in found["levels"]] == [[2, 2], [4, 4]]
    assert found["steps"] == 32
    assert found["provenance"]["versions"]["torch"] == torch.__version__


def test_list() -> None:
    found = json.loads(call("list", "--json").stdout)
    assert set(found) == {"problems", "models", "bases", "optimisers"}
    assert {"kan", "multichannel", "mlp"} <= set(found["models"])
    assert {"adam", "lbfgs"} <= set(found["optimisers"])
    text = call("list", "models", "optimisers").stdout
    assert "kan" in text
    assert "lbfgs" in text
    assert "problems" not in text


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "{}"),
        ("plot", "{}"),
        ("evaluate", "{}", "--grid", "3x3", "--out", "out.csv"),
    ],
)
@pytest.mark.parametrize(
    ("content", "code"),  # damage is a failure at run time, another file a mistake of usage
    [(b"", 1), (b"kanpinn", 1), (b"\x89HDF\r\n\x1a\n foreign", 2), (CONFIG.encode(), 2)],
)
def test_bad_checkpoints(here: Path, command: tuple[str, ...], content: bytes, code: int) -> None:
    (here / "bad.h5").write_bytes(content)
    refused(call(*(word.format("bad.h5") for word in command)), "checkpoint bad.h5", code=code)
    assert not (here / "out.csv").exists()


@pytest.mark.parametrize(
    "command", [("inspect",), ("plot",), ("evaluate", "--grid", "3x3", "--out", "out.csv")]
)
def test_a_folder_of_runs(solved: Path, here: Path, command: tuple[str, ...]) -> None:
    """The newest run inside is named."""
    for number, path in enumerate(("runs/tiny/a", "runs/b", "runs/tiny/c", "runs/tiny/no")):
        (here / path).mkdir(parents=True)
        if number < 3:
            shutil.copy(solved / "checkpoint.h5", here / path)
            os.utime(here / path / "checkpoint.h5", (1000 - number, 1000 - number))
    for folder, newest in (("runs", "runs/tiny/a"), ("runs/tiny", "runs/tiny/a"), (".", "runs/b")):
        text = refused(call(*command, folder), f"{folder}: holds no checkpoint.h5")
        assert f"the newest is {newest} (see" in text
    refused(call(*command, "runs/tiny/no"), "a run folder or a checkpoint is needed")
    assert not (here / "out.csv").exists()


def test_a_name_where_a_config_is_needed(here: Path) -> None:
    (here / "configs").mkdir()
    (here / "configs" / "poisson.yaml").write_text(CONFIG)
    for name in ("poisson", "poisson.yaml"):
        refused(call("solve", name), f"{name}: no such file; did you mean 'configs/poisson.yaml'?")
    assert "did you mean" not in refused(call("solve", "burgers"), "burgers: no such file")


def test_mistakes_of_the_kind_of_file_and_command(here: Path) -> None:
    (here / "study.yaml").write_text("base: tiny.yaml\naxes: {seed: [1, 2]}\n")
    refused(call("solve", "study.yaml"), "study.yaml: the config of a study, not of a run")
    refused(call("study", "tiny.yaml"), "tiny.yaml: the config of a run, not of a study")
    refused(call("solve", "problem.py"), "problem.py: Python; allowed: a YAML file")
    refused(call("solv", "tiny.yaml"), "No such command 'solv'. Did you mean 'solve'?")
    assert "Did you mean" not in refused(call("zzz"), "No such command 'zzz'.")
    both = ["--grid", "3x3", "--points", "problem.py", "--out", "out.csv"]
    refused(call("evaluate", "problem.py", *both), "one of --points FILE and --grid NxM is needed,")


@pytest.mark.parametrize("command", ["inspect", "plot"])
def test_a_run_that_is_not_there_is_a_mistake_of_usage(here: Path, command: str) -> None:
    refused(call(command, "nowhere"), "'nowhere' does not exist")


# --- evaluate and plot --------------------------------------------------------------------------
def exact(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(1.5 * (1 - x[:, 0] ** 2) * (1 - x[:, 1] ** 2))


def test_evaluate_on_a_grid(solved: Path, here: Path) -> None:
    result = call("evaluate", solved, "--grid", "5x4", "--out", "grid.csv", "--trust")
    assert result.exit_code == 0, result.output
    with (here / "grid.csv").open() as file:
        header, *lines = csv.reader(file)
    assert header == ["x", "y", "u", "u_reference", "u_error"]
    table = np.array(lines, dtype=float)
    assert len(table) == 20
    x, u = table[:, :2], table[:, 2]
    assert np.array_equal(np.unique(x[:, 1]), np.linspace(-1, 1, 4))
    assert np.array_equal(u, kanpinn.load(solved)(x)[:, 0])  # all digits are kept
    assert table[:, 3] == pytest.approx(exact(x), abs=1e-14)
    assert table[:, 4] == pytest.approx(u - exact(x), abs=1e-14)
    error = np.linalg.norm(u - exact(x)) / np.linalg.norm(exact(x))
    assert f"{error:.3e}" in result.stdout


def test_evaluate_without_the_users_code(solved: Path, here: Path) -> None:
    result = call("evaluate", solved, "--grid", "3x3", "--out", "grid.npz", "--json")
    assert "not imported unless told" in result.stderr
    assert "--trust" in result.stderr
    assert json.loads(result.stdout)["points"] == 9
    with np.load(here / "grid.npz") as arrays:
        assert list(arrays) == ["x", "y", "u"]


@pytest.mark.parametrize(
    "write",
    [
        lambda p, x: p.with_suffix(".csv").write_text(
            "y;name;x\n" + "".join(f"{b!r};here;{a!r}\n" for a, b in x.tolist())
        ),
        lambda p, x: p.with_suffix(".TXT").write_text(
            "".join(f"{a!r}\t{b!r}\n" for a, b in x.tolist())
        ),
        lambda p, x: np.savez(p.with_suffix(".npz"), y=x[:, 1], x=x[:, 0], other=np.zeros(3)),
        lambda p, x: np.savez(p.with_suffix(".npz"), anything=x),
    ],
)
def test_evaluate_at_points(solved: Path, here: Path, write: Callable[[Path, Any], Any]) -> None:
    x = np.random.default_rng(1).uniform(-1, 1, (7, 2))
    write(here / "points", x)
    points = next(here.glob("points.*"))
    result = call("evaluate", solved, "--points", points, "--out", "out.npz")
    assert result.exit_code == 0, result.output
    with np.load(here / "out.npz") as arrays:
        assert np.array_equal(np.stack([arrays["x"], arrays["y"]], 1), x)
        assert np.array_equal(arrays["u"], kanpinn.load(solved)(x)[:, 0])


def test_csv_holds_the_shortest_numbers_that_read_back_the_same(solved: Path, here: Path) -> None:
    call("evaluate", solved, "--grid", "11x3", "--out", "o.csv", "--trust")
    cells = [cell for line in (here / "o.csv").read_text().splitlines()[1:]
             for cell in line.split(",")]  # fmt: skip
    assert "-0.8" in cells  # not -0.80000000000000004
    assert all(repr(float(cell)) == cell for cell in cells)


def test_evaluate_one_point_of_the_last_iterate(solved: Path, here: Path) -> None:
    (here / "p.csv").write_text("x,y\n0.25,0.5\n")
    call("evaluate", solved, "--points", "p.csv", "--out", "o.csv", "--iterate", "last")
    x, y, u = map(float, (here / "o.csv").read_text().splitlines()[1].split(","))
    assert u == kanpinn.load(solved).last(np.array([[x, y]]))[0, 0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x,y\n0,0\n2,0\n", ("row 1", "x = 2")),
        ("x,y\n0,0\nnan,0\n", ("line 3", "'nan'")),
        ("x,y\n0,zero\n", ("line 2", "'zero'")),
        ("x,y\n0\n", ("line 2", "2 are needed")),
        ("x,z\n0,0\n", ("'y'",)),
        ("0,0,0\n", ("3 columns", "2 columns (x, y)")),
        ("x,y\n", ("0 row(s) of numbers; at least 1",)),
        ("", ("empty",)),
        (b"\xff\xfe\x00", ("binary",)),
        (None, ("does not exist",)),
    ],
)
def test_points_that_cannot_be_used(
    solved: Path, here: Path, content: str | bytes | None, words: tuple[str, ...]
) -> None:
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (here / "p.csv").write_bytes(data)
    result = call("evaluate", solved, "--points", "p.csv", "--out", "o.csv", "--trust")
    refused(result, *words)
    assert not (here / "o.csv").exists()


@pytest.mark.parametrize("trust", [True, False])
def test_points_outside(solved: Path, here: Path, trust: bool) -> None:
    x = np.array([[0.5, 0.25], [1.5, 0.0], [-0.5, 1.0]])
    np.savetxt(here / "p.csv", x, delimiter=",", header="x,y", comments="")
    arguments = ["evaluate", solved, "--points", "p.csv", *["--trust"][:trust], "--out"]
    result = call(*arguments, "o.npz")
    assert result.exit_code == 2
    for word in ("p.csv: points: row 1: x = 1.5", "--outside nan or extend"):
        assert word in result.stderr.splitlines()[-1]
    solution = kanpinn.load(solved)
    for outside in ("nan", "extend"):
        result = call(*arguments, f"{outside}.npz", "--outside", outside, "--json")
        assert result.exit_code == 0, result.output
        with np.load(here / f"{outside}.npz") as arrays:
            found = dict(arrays)
        assert found["u"][[0, 2]] == pytest.approx(solution(x[[0, 2]])[:, 0], abs=1e-14)
        value = solution(x[1:2], outside="extend")[0, 0] if outside == "extend" else np.nan
        assert found["u"][1] == pytest.approx(value, abs=1e-12, nan_ok=True)
        if trust:
            error = found["u"] - found["u_reference"]
            assert np.isnan(found["u_reference"]).tolist() == [False, True, False]
            assert found["u_reference"][[0, 2]] == pytest.approx(exact(x[[0, 2]]), abs=1e-14)
            assert json.loads(result.stdout)["linf"] == np.abs(error[[0, 2]]).max()
    refused(call(*arguments, "q.npz", "--outside", "no"), "--outside")


def test_evaluate_needs_points_or_a_grid(solved: Path, here: Path) -> None:
    refused(call("evaluate", solved, "--out", "x.csv"), "--points", "--grid")


def test_evaluate_writes_nothing_over(solved: Path, here: Path) -> None:
    (here / "o.csv").write_text("precious")
    arguments = ("evaluate", solved, "--grid", "3x3", "--out", "o.csv", "--trust")
    refused(call(*arguments), "o.csv", "--force")
    assert (here / "o.csv").read_text() == "precious"
    assert call(*arguments, "--force").exit_code == 0
    assert (here / "o.csv").read_text().startswith("x,y,u")
    for out, word in (("o.xlsx", "'.xlsx'"), ("no/o.csv", "no folder"), (".", "suffix")):
        refused(call("evaluate", solved, "--grid", "3x3", "--out", out), word)
    for grid in ("3", "3x3x3", "3by3", "1x3", "-3x3", "0x0"):
        refused(call("evaluate", solved, f"--grid={grid}", "--out", "p.csv", "--trust"), "grid")


def test_plot(solved: Path, here: Path) -> None:
    result = call("plot", solved, "--out", here / "pictures", "--trust")
    assert result.exit_code == 0, result.output
    paths = [Path(line) for line in result.stdout.splitlines()]
    assert "fields.png" in {path.name for path in paths}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert "device cpu" in result.stderr


def test_plot_does_not_replace_figures_by_poorer_ones(solved: Path, here: Path) -> None:
    """Without the user's code there is neither reference nor residual to show."""
    folder = here / "pictures"
    assert call("plot", solved, "--out", folder, "--trust").exit_code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    text = refused(call("plot", solved, "--out", folder), "pictures", "--trust", "problem.py")
    assert "without reference and residuals" in text
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    poorer = call("plot", solved, "--out", "elsewhere")
    assert poorer.exit_code == 0
    assert "--trust" in poorer.stderr
    assert (here / "elsewhere" / "fields.png").read_bytes() != before["fields.png"]
    assert call("plot", solved, "--out", folder, "--trust").exit_code == 0


def test_plot_into_a_file(solved: Path, here: Path) -> None:
    (here / "figures").write_text("precious")
    refused(call("plot", solved, "--out", "figures"), "figures: is a file; a folder")
    assert (here / "figures").read_text() == "precious"


# --- the program --------------------------------------------------------------------------------
KANPINN = [sys.executable, "-m", "kanpinn"]


def test_help_and_version_are_quick() -> None:
    """They import neither torch nor anything else that is heavy."""
    code = (
        "import sys; from kanpinn.cli import main\n"
        "try: main(['{}'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {{'torch', 'numpy', 'scipy', 'h5py', 'matplotlib', 'pydantic', 'yaml', 'rich'}}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    for option, word in (("--help", "evaluate"), ("--version", kanpinn.__version__)):
        done = subprocess.run(
            [sys.executable, "-c", code.format(option)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert word in done.stdout


def test_no_description_is_cut() -> None:
    lines = call("--help").stdout.partition("Commands:\n")[2].splitlines()
    assert len(lines) == len(COMMANDS)
    assert all(line.endswith(".") and not line.endswith("...") for line in lines), lines


def test_every_command_has_help() -> None:
    assert isinstance(main, click.Group)
    for name in main.list_commands(click.Context(main)):
        result = call(name, "--help")
        assert result.exit_code == 0
        assert name in result.stdout


def test_a_reader_that_goes_away(here: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [*KANPINN, "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


class Process:
    """The program in a process of its own; its stderr is read line by line."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*KANPINN, *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + 120
        assert self.process.stderr is not None
        while not any(text in line for line in self.lines):
            assert time.monotonic() < end, self.lines
            assert self.process.poll() is None, self.lines
            time.sleep(0.01)

    def finish(self) -> tuple[int, str]:
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        code = self.process.wait(120)
        self.reader.join()
        self.process.stdout.close()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code, out


LONG = "training.phases=[{optimiser: adam, steps: 200}]"


def test_ctrl_c_and_resume_end_where_an_undisturbed_run_ends(here: Path) -> None:
    arguments = ["solve", "tiny.yaml", LONG, "training.log_every=10", "training.levels=1"]
    process = Process(here, *arguments, "--out", "run", "--json")
    process.wait_for("step     20")
    process.process.send_signal(signal.SIGINT)
    code, out = process.finish()
    assert code == 130, process.lines
    summary = json.loads(out)
    assert summary["status"] == "interrupted"
    assert 20 <= summary["steps"] < 200
    assert any("continue" in line for line in process.lines)
    done = call(*arguments, "--out", "run", "--resume", "--json", "-q")
    assert (done.exit_code, json.loads(done.stdout)["steps"]) == (0, 200)
    call(*arguments, "--out", "whole", "-q")
    assert torch.equal(parameters(here / "run"), parameters(here / "whole"))


def test_resume_says_what_has_changed(here: Path) -> None:
    kanpinn.solve("tiny.yaml", out="run", stop=lambda: True, on_interrupt="return")
    changes = ["training.phases.0.steps=9", "training.log_every=2"]
    done = call("solve", "tiny.yaml", *changes, "--out", "run", "--resume")
    said = "changed since: training.phases.0.steps 8 -> 9, training.log_every 4 -> 2"
    assert said in done.stderr.splitlines()
    assert said in (here / "run" / "run.log").read_text()
    kanpinn.solve("tiny.yaml", out="other", stop=lambda: True, on_interrupt="return")
    same = call("solve", "tiny.yaml", "--out", "other", "--resume")
    assert "continued from step 1" in same.stderr
    assert "changed since" not in same.stderr


@pytest.mark.parametrize("threads", [1, 2])
def test_log_and_inspect_count_the_same_threads(here: Path, threads: int) -> None:
    done = call("solve", "tiny.yaml", "--threads", threads, "--out", "run")
    words = f"{threads} thread{'s' if threads > 1 else ''}"
    assert f"device cpu ({words})," in done.stderr
    assert f"cpu, float64, {words}\n" in call("inspect", "run").stdout


def test_twice_ctrl_c_stops_at_once(here: Path) -> None:
    (here / "problem.py").write_text(
        PROBLEM + "\n    calls = 0\n"
        "    def residual(self, p):\n"
        "        import sys, time\n"
        "        Bump.calls += 1\n"
        "        if Bump.calls == 50:\n"
        "            print('asleep', file=sys.stderr, flush=True)\n"
        "            time.sleep(60)\n"
        "        return p.u.xx + p.u.yy\n"
    )
    often = ["training.log_every=1", "training.checkpoint_every=5"]
    process = Process(here, "solve", "tiny.yaml", LONG, *often, "--out", "run")
    process.wait_for("asleep")
    process.process.send_signal(signal.SIGINT)
    process.wait_for("once more")
    process.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    code, _ = process.finish()
    assert time.monotonic() - began < 30
    assert code == 130
    assert process.lines[-1].startswith("error: stopped at once")
    assert kanpinn.load(here / "run").history["step"][-1] >= 0  # the checkpoint is whole
