"""The runs of a study: processes of their own, and what becomes of them."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kanpinn.io.interrupt import StopSignals
from kanpinn.io.run_folder import RunFolder
from kanpinn.study import Case

POLL = 0.05  # seconds between looks at the processes
PATIENCE = 5.0  # seconds for processes that were told to stop at once

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """A case to be run.

    Attributes:
        case: which.
        config: its resolved config, a file.
        run: where it goes.
    """

    case: Case
    config: Path
    run: RunFolder


@dataclass(frozen=True)
class _Process:
    job: Job
    process: subprocess.Popen[bytes]
    errors: IO[bytes]


class StudyRunner:
    """Runs jobs as ``kanpinn solve``, some at a time.

    The first Ctrl-C or SIGTERM sends SIGINT to every process, once, and waits until they have
    saved; the second one is passed on, too, and ends everything at once.

    Args:
        at_once: processes at a time.
        tell: hears of every case that ends.
    """

    def __init__(self, at_once: int, tell: Tell) -> None:
        self.at_once, self.tell = at_once, tell
        self.errors: dict[str, str] = {}  # by folder of the case
        self._running: list[_Process] = []
        self._progress = Progress(0, 0)

    def run(self, jobs: Sequence[Job], done: int = 0) -> dict[str, str]:
        """Run all jobs; by the case's folder, what those said that failed.

        Args:
            jobs: in this order.
            done: cases of the study that had a result before.

        Raises:
            KeyboardInterrupt: once the cases under way have saved what they had.
        """
        waiting = deque(jobs)
        self._progress = Progress(done, len(jobs))
        with StopSignals() as stop:
            try:
                asked = False
                while waiting or self._running:
                    if stop() and not asked:
                        asked = True
                        waiting.clear()
                        self._signal()
                    while waiting and len(self._running) < self.at_once:
                        self._running.append(self._start(waiting.popleft()))
                    time.sleep(POLL)
                    self._gather(quietly=asked)
            except BaseException:
                self._abandon()
                raise
        if stop.requested:
            raise KeyboardInterrupt
        return self.errors

    def _start(self, job: Job) -> _Process:
        run = job.run
        if run.holds_run and run.status is None and not run.checkpoint.exists():
            shutil.rmtree(run.path)  # killed before anything was trained: its files may be cut off
        command = [sys.executable, "-m", "kanpinn", "solve", str(job.config)]
        command += ["--out", str(run.path), "-q"]
        if run.holds_run:
            command.append("--resume")
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # the terminal's Ctrl-C is for this process, which passes it on
        )
        return _Process(job, process, errors)

    def _gather(self, quietly: bool) -> None:
        """Take the processes that have ended; after a request to stop that is nothing to tell."""
        for entry in [e for e in self._running if e.process.poll() is not None]:
            self._running.remove(entry)
            status = entry.job.run.status
            error = None if status is not None and status.final else _complaint(entry)
            entry.errors.close()
            if quietly and error:
                continue
            if error:
                self.errors[entry.job.case.folder] = error
            summary = entry.job.run.read_summary() or {}
            self.tell(self._progress.line(f"{entry.job.case.title}: {error or in_brief(summary)}"))

    def _signal(self) -> None:
        for entry in self._running:
            with suppress(OSError):
                entry.process.send_signal(signal.SIGINT)

    def _abandon(self) -> None:
        """Stop all processes at once."""
        self._signal()
        deadline = time.monotonic() + PATIENCE
        for entry in self._running:
            try:
                entry.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                entry.process.kill()
                entry.process.wait()
            entry.errors.close()


class Progress:
    """How far a study has come, and how long it may still take.

    Args:
        done: cases that had a result before.
        count: cases to be run.
        clock: seconds.
    """

    def __init__(self, done: int, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.done, self.count, self.clock = done, count, clock
        self.started, self.ended = clock(), 0

    def line(self, text: str) -> str:
        """One more case has ended, of which the text tells."""
        self.ended += 1
        line = f"[{self.done + self.ended}/{self.done + self.count}] {text}"
        left = self.count - self.ended
        if left:
            seconds = (self.clock() - self.started) / self.ended * left
            line += f"; about {duration(seconds)} left"
        return line


def duration(seconds: float) -> str:
    """Roughly: ``40 s``, ``4 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def in_brief(summary: dict[str, Any]) -> str:
    """How a run ended, how good it is, and how long it took."""
    error = summary.get("rel_l2")
    shown = "" if error is None else f", relative L2 {error:.1e}"
    status = str(summary["status"])
    start = "" if status == "completed" and shown else status
    return f"{start}{shown}".removeprefix(", ") + f" in {duration_of(summary)}"


def duration_of(summary: dict[str, Any]) -> str:
    """Seconds of training in words."""
    seconds = float(summary["wall_s"])
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _complaint(entry: _Process) -> str:
    """What a process said that failed."""
    code = entry.process.returncode
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; the same command continues it"
    entry.errors.seek(0)
    lines = [line for line in entry.errors.read().decode(errors="replace").splitlines() if line]
    return lines[-1].removeprefix("error: ") if lines else f"ended with {code}"
