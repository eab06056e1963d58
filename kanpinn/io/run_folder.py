"""The run folder: what a run leaves on disk, and the observer that writes it.

A folder holds ``config.yaml`` (resolved), ``checkpoint.h5``, ``metrics.jsonl`` (one JSON object per
logged step), ``summary.json``, ``run.log`` and ``figures/``. Nothing of an earlier run is ever
written over; a run is only continued in its own folder, by one process at a time.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from kanpinn.errors import (
    EXIT_DIVERGED,
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TARGET_MISSED,
    RunFolderError,
)

if TYPE_CHECKING:
    from kanpinn.io.progress import Display
    from kanpinn.training import RunState

CONFIG, CHECKPOINT, METRICS = "config.yaml", "checkpoint.h5", "metrics.jsonl"
SUMMARY, LOG, FIGURES = "summary.json", "run.log", "figures"


class Status(StrEnum):
    """How a run ended; the ``status`` of ``summary.json``."""

    COMPLETED = "completed"
    """All levels done, and no target was asked for."""
    TIME_LIMIT = "time_limit"
    """The budget in seconds is spent, and no target was asked for."""
    TARGET_REACHED = "target_reached"
    """The accuracy asked for is met."""
    TARGET_MISSED = "target_missed"
    """The budget in steps or seconds is spent before the accuracy asked for was met."""
    INTERRUPTED = "interrupted"
    """The user stopped the run, which can be continued."""
    DIVERGED = "diverged"
    """The loss became non-finite, and no restart recovered it."""
    FAILED = "failed"
    """An error ended the run, which can be continued from its last checkpoint."""

    @property
    def exit_code(self) -> int:
        """What the command line returns."""
        return _EXIT_CODES[self]

    @property
    def final(self) -> bool:
        """Whether nothing is left to continue, with budget and target as they were."""
        return self not in (Status.INTERRUPTED, Status.FAILED)


_EXIT_CODES = {
    Status.COMPLETED: EXIT_OK,
    Status.TIME_LIMIT: EXIT_OK,
    Status.TARGET_REACHED: EXIT_OK,
    Status.TARGET_MISSED: EXIT_TARGET_MISSED,
    Status.INTERRUPTED: EXIT_INTERRUPTED,
    Status.DIVERGED: EXIT_DIVERGED,
    Status.FAILED: EXIT_FAILURE,
}


def strict_json(value: Any) -> Any:
    """The value with NaN and infinities, which JSON does not know, as null."""
    if isinstance(value, Mapping):
        return {str(key): strict_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(entry) for entry in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text without NaN or Infinity."""
    return json.dumps(strict_json(value), indent=indent, allow_nan=False)


def write_atomically(path: Path, text: str) -> None:
    """Write through a temporary file and a rename: a crash leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


class RunFolder:
    """The paths of a run, and what can be read of it.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config, self.checkpoint = self.path / CONFIG, self.path / CHECKPOINT
        self.metrics, self.summary = self.path / METRICS, self.path / SUMMARY
        self.log, self.figures = self.path / LOG, self.path / FIGURES

    @property
    def holds_run(self) -> bool:
        """Whether anything of a run is in the folder."""
        files = (self.config, self.checkpoint, self.metrics, self.summary, self.log, self.figures)
        return any(file.exists() for file in files)

    def read_summary(self) -> dict[str, Any] | None:
        """The summary, or ``None`` if the run has none (yet)."""
        try:
            found = json.loads(self.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def read_metrics(self) -> list[dict[str, Any]]:
        """The logged lines so far; none if there are none yet."""
        try:
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return []
        rows = []
        for line in lines:
            with suppress(ValueError):  # the last line of a run that was killed
                rows.append(json.loads(line))
        return rows

    @property
    def last_words(self) -> str | None:
        """The last line of the log, without its time: of a run that failed, what went wrong."""
        try:
            lines = self.log.read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError):
            return None
        return next((line.partition(" ")[2] for line in reversed(lines) if line.strip()), None)

    @property
    def status(self) -> Status | None:
        """How the run ended, or ``None`` if it never came to an end."""
        try:
            return Status(str((self.read_summary() or {}).get("status")))
        except ValueError:
            return None

    def check_free(self) -> None:
        """Check that a run can be started here, without writing anything.

        Raises:
            RunFolderError: if the path is a file, or holds a run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path}: is a file; a folder that holds no run is needed")
        if self.holds_run:
            raise RunFolderError(
                f"{self.path}: already holds a run, which is never overwritten; "
                "continue it with --resume, or choose another folder"
            )

    def create(self, config_text: str) -> None:
        """Create the folder and save the resolved config.

        Raises:
            RunFolderError: if the path is a file, holds a run, or cannot be written.
        """
        self.check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # "x": of two runs started at once in one folder, only one gets it.
            with self.config.open("x", encoding="utf-8") as file:
                file.write(config_text)
        except FileExistsError:
            self.check_free()
            raise RunFolderError(f"{self.path}: a file is in the way of this folder") from None
        except OSError as error:
            raise _unwritable(self.path, error) from error


def _unwritable(path: Path, error: OSError) -> RunFolderError:
    reason = error.strerror or type(error).__name__
    return RunFolderError(f"{path}: cannot be written ({reason}); choose another folder")


def timestamp(moment: datetime | None = None) -> str:
    """UTC time as a folder's name: sorts by time, and has no characters a shell minds."""
    return (moment or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")


def new_folder(runs: Path, moment: datetime | None = None) -> RunFolder:
    """A new, empty folder of this moment under ``runs``; of runs begun at once each gets its own.

    Raises:
        RunFolderError: if it cannot be created.
    """
    name = timestamp(moment)
    for count in itertools.count(1):
        folder = RunFolder(runs / (name if count == 1 else f"{name}-{count}"))
        try:
            folder.path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise _unwritable(folder.path, error) from error
        return folder
    raise AssertionError("numbers do not end")


def run_folders(runs: Path) -> list[RunFolder]:
    """The folders under ``runs`` that hold a run, newest first."""
    try:
        found = [RunFolder(path) for path in runs.iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted((f for f in found if f.config.is_file()), key=_age, reverse=True)


def _age(folder: RunFolder) -> tuple[str, int]:
    name, _, count = folder.path.name.partition("-")
    return name, int(count) if count.isdigit() else 0


class RunWriter:
    """Writes log and metrics of one run while it is open; the log is locked meanwhile.

    Args:
        folder: an existing run folder.

    Raises:
        RunFolderError: if another process has the run open, or its log cannot be written.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        try:
            with ExitStack() as opened:
                self._log = opened.enter_context(folder.log.open("a", encoding="utf-8"))
                lock(self._log, folder.path, "run")
                self._metrics = opened.enter_context(folder.metrics.open("a", encoding="utf-8"))
                opened.pop_all()  # all is well: the files stay open
        except OSError as error:
            raise _unwritable(folder.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._metrics.close()
        self._log.close()

    def log(self, text: str) -> None:
        """Add to ``run.log``, with the time in UTC."""
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._log.write("".join(f"{moment} {line}\n" for line in text.splitlines()))
        self._log.flush()

    def row(self, row: Mapping[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``."""
        self._metrics.write(to_json(row) + "\n")
        self._metrics.flush()

    def restart_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Cut ``metrics.jsonl`` back to the rows of the checkpoint a run is continued from."""
        self._metrics.close()
        write_atomically(self.folder.metrics, "".join(to_json(row) + "\n" for row in rows))
        self._metrics = self.folder.metrics.open("a", encoding="utf-8")

    def write_config(self, text: str) -> None:
        """Replace the resolved config (a continued run may have larger budgets)."""
        write_atomically(self.folder.config, text)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        write_atomically(self.folder.summary, to_json(summary, indent=2) + "\n")


def lock(file: TextIO, path: Path, what: str) -> None:
    """Lock an open file until it is closed, or refuse: somebody is at work on ``what`` in a folder.

    Raises:
        RunFolderError: if another process has locked it.
    """
    if sys.platform == "win32":  # no fcntl there
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunFolderError(f"{path}: another process is at work on this {what}") from None
    except OSError:  # a file system without locks: the run goes on without this guard
        return


class RunObserver:
    """What the training loop reports to: writes the run folder and drives the display.

    Args:
        writer: of the run folder.
        save: writes the checkpoint.
        display: progress on the terminal.
        stop: whether the user asked to stop.
    """

    def __init__(
        self,
        writer: RunWriter,
        save: Callable[[RunState], None],
        display: Display,
        stop: Callable[[], bool],
    ) -> None:
        self.writer, self.save, self.display, self.stop = writer, save, display, stop

    def on_network(self, state: RunState) -> None:
        """Another initial network is turned to: the metrics are then those of its state."""
        self.writer.restart_metrics(state.history)
        self.display.network("" if state.trials is None else f"network {state.trials.number + 1}")

    def on_level(self, state: RunState) -> None:
        """A level begins: log it and make it durable."""
        record = state.current.record
        intervals = "/".join(str(n) for n in record.n_intervals) or "none"
        text = (
            f"{record.label}: intervals {intervals}, {record.n_params} parameters, "
            f"{record.n_points} points, {record.dtype}"
        )
        before, after = record.loss_before_prolongation, record.loss_after_prolongation
        if before is not None and after is not None:
            text += f"; loss {before:.6e} before, {after:.6e} after the refinement"
        self.writer.log(text)
        self.display.level(record)
        self.save(state)

    def on_log(self, row: dict[str, Any], state: RunState) -> None:
        """A line was logged."""
        self.writer.row(row)
        self.display.row(row, state.current.record)

    def on_checkpoint(self, state: RunState) -> None:
        """Write the checkpoint."""
        self.save(state)

    def on_note(self, message: str) -> None:
        """Log something beside the normal course, and show it."""
        self.writer.log(message)
        self.display.note(message)

    def stop_requested(self) -> bool:
        """Whether the user asked to stop."""
        return self.stop()
