"""Studies in processes of their own: stopped, killed, diverged, at work twice, and how long yet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import kanpinn
from kanpinn.api.study_runner import Progress, duration
from kanpinn.cli import main
from kanpinn.config import parse_yaml
from kanpinn.errors import RunFolderError
from kanpinn.io.run_folder import RunFolder, lock

pytestmark = pytest.mark.usefixtures("blank_pictures")

LONG = """
base:
  problem: {name: poisson, dimension: 1}
  model: {width: 2, order: 4, intervals: 2}
  sampling: {interior: 16, held_out: 16}
  training: {phases: [{optimiser: adam, steps: 3000}], log_every: 100}
  threads: 1
  figures: false
axes: {seed: [1, 2]}
variants: {quick: {axes: {seed: [1]}, set: {training.phases.0.steps: 3}}}
"""
LIMIT = 60.0  # seconds that any of this may take
PROBLEM = """
import os, signal
from pathlib import Path
from kanpinn_problems.poisson import Poisson

class Fatal(Poisson):
    def residual(self, p):
        if not Path(__file__).with_name("mended").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().residual(p)
"""


def written(folder: Path, text: str) -> Path:
    (folder / "long.yaml").write_text(text)
    return folder / "long.yaml"


def started(config: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """The command, alone in a process group as in a terminal."""
    command = [sys.executable, "-m", "kanpinn", "study", str(config), "--out", str(out), *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_lines(folder: Path, count: int) -> None:
    """Wait until so many runs of a study have logged something."""
    deadline = time.monotonic() + LIMIT
    while sum(p.stat().st_size > 0 for p in folder.glob("cases/*/metrics.jsonl")) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_study_that_is_stopped_goes_on_with_the_same_command(
    tmp_path: Path, number: signal.Signals
) -> None:
    config, out = written(tmp_path, LONG), tmp_path / "out"
    process = started(config, out, "--jobs", "2")
    wait_for_lines(out, 2)
    os.killpg(process.pid, number)  # as a terminal does; the runs hear of it through the study
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, errors
    assert "the same command goes on from here" in errors
    stopped = [RunFolder(path.parent) for path in sorted(out.glob("cases/*/checkpoint.h5"))]
    assert len(stopped) == 2
    steps = []
    for run in stopped:
        found = run.read_summary()
        assert found is not None and found["status"] == "interrupted"
        steps.append(found["steps"])
    assert all(0 <= count < 3000 for count in steps) and any(steps)
    if number == signal.SIGTERM:
        return  # what was left behind is the same
    study = kanpinn.run_study(config, out, jobs=2)
    assert not study.missing
    for run, count in zip(stopped, steps, strict=True):
        assert f"continued from step {count}" in run.log.read_text()
        assert (run.read_summary() or {})["steps"] == 3000


def test_two_studies_do_not_share_a_folder(tmp_path: Path) -> None:
    config, out = written(tmp_path, LONG), tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("a") as file:
        lock(file, out, "study")
        result = CliRunner().invoke(main, ["study", str(config), "--out", str(out)])
    assert result.exit_code == 2
    assert f"{out}: another process is at work on this study" in result.stderr
    assert not (out / "study.yaml").exists()


def test_a_killed_case_is_told_of_and_run_again(tmp_path: Path) -> None:
    """And so is one that was killed so early that its files are cut off."""
    (tmp_path / "own.py").write_text(PROBLEM)
    text = LONG.replace("axes: {seed: [1, 2]}", "axes: {problem.name: ['own.py:Fatal', poisson]}")
    config, out = written(tmp_path, text.replace("axes: {seed: [1]}, ", "")), tmp_path / "out"
    told: list[str] = []
    study = kanpinn.run_study(config, out, variant="quick", tell=told.append)
    missing, other = study.cases
    assert missing.error == "killed by SIGKILL; the same command continues it"
    assert "[1/2] problem.name=own.py:Fatal: killed by SIGKILL" in told[0]
    assert "[2/2] problem.name=poisson: relative L2 " in told[1]
    (tmp_path / "mended").touch()
    run = RunFolder(other.folder)
    run.checkpoint.unlink()
    run.summary.unlink()
    run.config.write_text("problem: {na")
    assert not kanpinn.run_study(config, out, variant="quick", jobs=2).missing


def test_a_case_that_diverges_is_counted_and_kept_out(tmp_path: Path) -> None:
    rate = "training.phases.0.learning_rate"
    text = LONG.replace(
        "axes: {seed: [1, 2]}",
        f"axes: {{seed: [1], rate: {{low: {{{rate}: 1e-3}}, high: {{{rate}: 1e300}}}}}}",
    )
    study = kanpinn.run_study(written(tmp_path, text), tmp_path / "out", variant="quick", jobs=2)
    counts = {row["rate"]: (row["runs"], row["left_out"]) for row in study.medians()}
    assert counts == {"low": (1, 0), "high": (0, 1)} and not study.missing
    high = next(row for row in study.medians() if row["rate"] == "high")
    assert high["rel_l2"] is None


def test_a_variant_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside where it is run; paths in the study are relative to its file."""
    (tmp_path / "own.py").write_text(PROBLEM)
    (tmp_path / "mended").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    written(tmp_path, LONG.replace("name: poisson", "name: 'own.py:Fatal'"))
    result = CliRunner().invoke(main, ["study", "../long.yaml", "--variant", "quick"])
    assert result.exit_code == 0, result.output
    folder = Path("runs/studies/long-quick")
    study = kanpinn.load_study(folder)
    assert study.design.variant == "quick" and len(study.cases) == 1
    assert (study.cases[0].summary or {})["steps"] == 3
    with pytest.raises(RunFolderError, match=r"holds the variant 'quick', not the study itself"):
        kanpinn.run_study("../long.yaml", folder)
    result = CliRunner().invoke(main, ["study", "../long.yaml", "--variant", "quik"])
    assert result.exit_code == 2 and "did you mean 'quick'?" in result.stderr


def test_progress_over_the_whole_study() -> None:
    now = iter([0.0, 100.0, 240.0, 300.0])
    progress = Progress(9, 3, clock=lambda: next(now))
    assert progress.line("a") == "[10/12] a; about 3 min left"
    assert progress.line("b") == "[11/12] b; about 2 min left"
    assert progress.line("c") == "[12/12] c"
    assert [duration(s) for s in (0.2, 40, 240, 9000)] == ["1 s", "40 s", "4 min", "2.5 h"]


def test_a_budget_is_the_same_work_for_all_cases(tmp_path: Path) -> None:
    text = LONG.replace("steps: 3000}], log_every: 100", "steps: 100000}], log_every: 20")
    cases = "cases: {two: {training.levels: 2}, one: {training.levels: 1}}"
    text = text.replace("axes: {seed: [1, 2]}", cases).partition("variants:")[0]
    text += "budget: {of: evaluations, total: 200}\n"
    study = kanpinn.run_study(written(tmp_path, text), tmp_path / "out", jobs=2)
    assert [row["evaluations"] for row in study.finals()] == [200, 200]
    assert [(row.level, row.evaluations, row.ended_by) for row in study.rows()] == [
        (0, 100, "work"),
        (1, 200, "work"),
        (0, 200, "work"),
    ]
    two, one = (parse_yaml(found.config, "")["training"]["work"] for found in study.cases)
    assert (two["per_level"], one["per_level"]) == (100, 200)
