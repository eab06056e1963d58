"""One contestant in a process of its own: times a step whenever it is asked to.

Usage: python benchmarks/worker.py CONTESTANT CASE_AS_JSON
Prints a line of JSON when the step is ready, and one for every line read.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from case import Case

LEAST = 0.5  # seconds that a turn lasts


def status_mb(name: str) -> float:
    """A line of the process's status that counts memory, MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def settled_mb() -> float:
    """Memory held once what is free has been given back, MB; the peak is counted from here on.

    Freed memory of the imports would hide what a step takes: it fits in there.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status_mb("VmRSS")


def main() -> None:
    name, text = sys.argv[1:]
    case = Case.from_json(text)
    contestant = importlib.import_module(f"contestants.{name}")
    step = contestant.prepare(case)
    before = settled_mb()
    step()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        seconds = timed(step)
        memory = status_mb("VmHWM") - before
        print(json.dumps({"seconds": seconds, "memory_mb": memory}), flush=True)


def timed(step: Callable[[], object]) -> float:
    """Seconds of a step; the median of several where they are short.

    While others had their turn this process slept, and its first step finds cold caches.
    """
    seconds: list[float] = []
    while sum(seconds) < LEAST:
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
