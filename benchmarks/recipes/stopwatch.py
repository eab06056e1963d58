"""A clock that stands still while errors are evaluated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[float, float], None]
SHARE, LEAST = 0.05, 0.5  # of the time so far, and in seconds: from one report to the next


class Stopwatch:
    """Seconds of training, and reports of the error.

    Args:
        seconds: that may be spent.
        report: called with the seconds so far and the error.
        error: evaluates it.
    """

    def __init__(self, seconds: float, report: Report, error: Callable[[], float]) -> None:
        self.seconds, self._report, self._error = seconds, report, error
        self._started, self._stopped = time.perf_counter(), 0.0
        self._due, self._last = LEAST, -1.0

    @property
    def elapsed(self) -> float:
        """Seconds since the start, without pauses."""
        return time.perf_counter() - self._started - self._stopped

    @property
    def spent(self) -> bool:
        """Whether the time is over."""
        return self.elapsed >= self.seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._stopped += time.perf_counter() - began

    def look(self) -> bool:
        """To be called after every step: report if that is due; whether the time is over."""
        now = self.elapsed
        if now >= self._due or now >= self.seconds:
            self._tell(now)
        return now >= self.seconds

    def finish(self) -> None:
        """Report the end, unless it has been."""
        now = self.elapsed
        if now > self._last + 0.01:
            self._tell(now)

    def _tell(self, now: float) -> None:
        with self.paused():
            error = self._error()
            self._report(now, error if math.isfinite(error) else math.inf)
        self._last, self._due = now, now + max(LEAST, SHARE * now)
