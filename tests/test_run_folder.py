"""The run folder, its status, the signals that stop a run, and what is shown of its progress."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from kanpinn.errors import RunFolderError
from kanpinn.io.interrupt import StopSignals
from kanpinn.io.progress import Bars, Display, Lines, Silent, display_for
from kanpinn.io.run_folder import (
    RunFolder,
    RunObserver,
    RunWriter,
    Status,
    new_folder,
    run_folders,
    timestamp,
    to_json,
    write_atomically,
)
from kanpinn.training import Hierarchy, Level, LevelRecord, RunState

NOON = datetime(2026, 3, 4, 12, 0, 1, tzinfo=UTC)
ROW = {"level": 0, "step": 50, "loss": 0.25, "heldout_residual": 0.5, "rel_l2": 0.1, "wall_s": 2.0}


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=refuse)


def test_json_knows_no_nan() -> None:
    value = {"a": float("nan"), "b": [float("inf"), 1.5], "c": (np.float64("-inf"), None), "d": "x"}
    assert strict(to_json(value)) == {"a": None, "b": [None, 1.5], "c": [None, None], "d": "x"}


def test_exit_codes_are_those_of_the_contract() -> None:
    assert {status.value: status.exit_code for status in Status} == {
        "completed": 0,
        "time_limit": 0,
        "target_reached": 0,
        "target_missed": 4,
        "interrupted": 130,
        "diverged": 3,
        "failed": 1,
    }
    assert [s.value for s in Status if not s.final] == ["interrupted", "failed"]


# --- creating -----------------------------------------------------------------------------------
def test_create_writes_the_config(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new" / "run")
    folder.create("seed: 1\n")
    assert folder.config.read_text() == "seed: 1\n"
    assert folder.holds_run


@pytest.mark.parametrize(
    "name", ["config.yaml", "checkpoint.h5", "metrics.jsonl", "summary.json", "run.log", "figures"]
)
def test_a_run_is_never_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir() if name == "figures" else (tmp_path / name).write_text("precious")
    with pytest.raises(RunFolderError, match=r"already holds a run.*--resume"):
        RunFolder(tmp_path).create("seed: 1\n")
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert name == "figures" or (tmp_path / name).read_text() == "precious"


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path).create("seed: 1\n")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder(tmp_path / "file").create("seed: 1\n")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(RunFolderError, match=r"cannot be written|in the way"):
        RunFolder(tmp_path / "file" / "run").create("seed: 1\n")


def test_out_that_cannot_be_created() -> None:
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc, where nobody can create folders")
    with pytest.raises(RunFolderError, match="cannot be written"):
        RunFolder("/proc/kanpinn/run").create("seed: 1\n")


def test_out_that_is_read_only(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match="cannot be written"):
        RunFolder(tmp_path).create("seed: 1\n")
    tmp_path.chmod(0o700)


def test_folders_of_one_second_get_numbers_and_sort_by_time(tmp_path: Path) -> None:
    made = []
    for _ in range(12):
        folder = new_folder(tmp_path, NOON)
        folder.create("seed: 1\n")
        made.append(folder.path.name)
    assert made[:2] == ["20260304T120001Z", "20260304T120001Z-2"]
    later = RunFolder(tmp_path / timestamp(NOON.replace(hour=13)))
    later.create("seed: 1\n")
    (tmp_path / "20270101T000000Z").mkdir()  # holds no run
    found = [folder.path.name for folder in run_folders(tmp_path)]
    assert found == [later.path.name, *reversed(made)]


def test_new_folder_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(RunFolderError, match="cannot be written"):
        new_folder(tmp_path / "runs")


def test_no_runs_at_all(tmp_path: Path) -> None:
    assert run_folders(tmp_path / "nowhere") == []


# --- writing ------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.create("seed: 1\n")
    return made


def test_metrics_are_on_disk_line_by_line(folder: RunFolder) -> None:
    with RunWriter(folder) as writer:
        for step in range(3):
            writer.row({"step": step, "loss": float("nan") if step == 1 else 0.5})
            lines = folder.metrics.read_text().splitlines()  # without waiting for the end
            assert len(lines) == step + 1
    assert [strict(line)["loss"] for line in lines] == [0.5, None, 0.5]


def test_metrics_are_cut_back_to_the_checkpoint(folder: RunFolder) -> None:
    with RunWriter(folder) as writer:
        for step in range(5):
            writer.row({"step": step})
    with RunWriter(folder) as writer:
        writer.restart_metrics([{"step": 0}, {"step": 1}])
        writer.row({"step": 2})
    steps = [strict(line)["step"] for line in folder.metrics.read_text().splitlines()]
    assert steps == [0, 1, 2]


def test_log_is_kept_and_dated(folder: RunFolder) -> None:
    for text in ("first", "second\nthird"):
        with RunWriter(folder) as writer:
            writer.log(text)
    lines = folder.log.read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["first", "second", "third"]
    assert all(datetime.fromisoformat(line.split()[0]).tzinfo for line in lines)


def test_one_process_at_a_time(folder: RunFolder) -> None:
    with RunWriter(folder), pytest.raises(RunFolderError, match="another process"):
        RunWriter(folder)
    with RunWriter(folder):
        pass  # the lock is gone with the first writer


def test_a_crash_leaves_the_old_summary(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(folder.summary, '{"status": "interrupted"}')

    def crash(*paths: Any) -> NoReturn:
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        write_atomically(folder.summary, '{"status": "completed"}')
    assert folder.status is Status.INTERRUPTED
    assert sorted(p.name for p in folder.path.iterdir()) == ["config.yaml", "summary.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "perhaps"}', "{}", "\x00"])
def test_a_damaged_summary_is_none(folder: RunFolder, text: str) -> None:
    folder.summary.write_text(text)
    assert folder.status is None


def test_observer_writes_and_saves(folder: RunFolder) -> None:
    stream = io.StringIO()
    saved: list[RunState] = []
    state = RunState(levels=[level_state()])
    with RunWriter(folder) as writer:
        observer = RunObserver(writer, saved.append, Lines(stream), lambda: True)
        observer.on_level(state)
        observer.on_log(dict(ROW), state)
        observer.on_note("restarted")
        observer.on_checkpoint(state)
        assert observer.stop_requested()
    assert saved == [state, state]
    assert strict(folder.metrics.read_text()) == ROW
    assert "level 1: intervals 4/4, 81 parameters, 100 points" in folder.log.read_text()
    assert "2.000000e+00 before, 1.000000e+00 after" in folder.log.read_text()
    assert "restarted" in folder.log.read_text()
    level, row, note = stream.getvalue().splitlines()
    assert "81 parameters" in level
    for word in ("level 0", "50", "2.500e-01", "5.000e-01", "1.000e-01", "2.0 s"):
        assert word in row
    assert note == "restarted"


def level_state() -> Any:
    from kanpinn.training import LevelState

    record = LevelRecord(1, [4, 4], 81, 100)
    record.loss_before_prolongation, record.loss_after_prolongation = 2.0, 1.0
    return LevelState(record, torch.nn.Linear(1, 1), {})  # type: ignore[arg-type]


# --- display ------------------------------------------------------------------------------------
class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(display: Display) -> None:
    hierarchy = Hierarchy((Level(0, (100,), None, (2, 2), 63), Level(1, (100,), None, (4, 4), 81)))
    record = LevelRecord(0, [2, 2], 63, 100, steps=50)
    with display:
        display.begin(hierarchy)
        display.level(record)
        display.row(ROW, record)
        display.note("a [note]")


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    terminal = Terminal()
    display = display_for(terminal)
    assert isinstance(display, Bars)
    show(display)
    assert "50/100" in terminal.getvalue()
    assert "2.5e-01" in terminal.getvalue()
    assert "━" in terminal.getvalue()
    assert "a [note]" in terminal.getvalue()


def test_lines_elsewhere_and_silence() -> None:
    stream = io.StringIO()
    assert isinstance(display_for(stream), Lines)
    assert isinstance(display_for(Terminal(), quiet=True), Silent)
    show(display_for(stream, quiet=True))
    assert stream.getvalue() == ""
    show(display_for(stream))
    assert len(stream.getvalue().splitlines()) == 3


def test_no_error_where_none_is_known() -> None:
    stream = io.StringIO()
    Lines(stream).row({**ROW, "rel_l2": None}, LevelRecord(0, [], 1, 1))
    assert "rel_l2" not in stream.getvalue()


# --- signals ------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with StopSignals() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert "once more" in capfd.readouterr().err


def test_the_second_signal_acts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # a signal is seen between two instructions, not within one
            pass
        raise AssertionError("the second signal was ignored")


def test_other_threads_cannot_catch_signals() -> None:
    seen: list[bool] = []

    def work() -> None:
        with StopSignals() as stop:
            seen.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
