"""One contestant in a process of its own: times a step whenever it is asked to.

Usage: python benchmarks/worker.py CONTESTANT CASE_AS_JSON
Prints a line of JSON when the step is ready, and one for every line read.
"""

from __future__ import annotations

import importlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from case import Case

LEAST = 0.5  # seconds that a turn lasts


def peak_mb() -> float:
    """Most memory this process has held, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    name, text = sys.argv[1:]
    case = Case.from_json(text)
    contestant = importlib.import_module(f"contestants.{name}")
    step = contestant.prepare(case)
    before = peak_mb()
    step()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"seconds": timed(step), "memory_mb": peak_mb() - before}), flush=True)


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
