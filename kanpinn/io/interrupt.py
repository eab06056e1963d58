"""Stopping a run by a signal: the first asks, the second acts at once."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

STOPPING = b"\nstopping after this step, with a checkpoint; once more to stop at once\n"


class StopSignals:
    """Catches SIGINT and SIGTERM while it is entered.

    The first one sets ``requested`` and restores what Python and the system do by themselves, so
    that a second one ends the program at once. SIGINT is caught even where it came ignored (a job
    that a script started in the background), since whoever sends it to this process means it. In
    a thread that cannot catch signals nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give the signals back to whoever had them before."""
        for number, handler in self._before.items():
            # None: a handler that was not set from Python, and cannot be set again from there.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.requested

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # Not print: the signal may have come in the midst of one, and streams are not re-entrant.
        with suppress(OSError):
            os.write(2, STOPPING)
