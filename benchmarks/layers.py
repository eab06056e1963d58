"""Layers side by side: milliseconds and memory of values, gradients and Laplacian residuals.

Usage: python benchmarks/layers.py [--contestants A,B] [--tasks ...] [--widths 2,64,64,1] ...

Every contestant runs in a process of its own with one thread; the steps are timed in turn, so that
a busy machine slows all of them alike. Peers run with the Python of `make peers`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from case import Case

HERE = Path(__file__).parent
PEERS_PYTHON = HERE.parent / ".peers" / "bin" / "python"
OURS = ("kanpinn_network", "kanpinn_torch", "dense_kan", "tanh_mlp")
PEERS = ("pykan_network", "jaxkan_network")
JACOBIANS = ("kanpinn_network", "kanpinn_torch", "tanh_mlp")  # who makes one in reasonable time
# Without these, glibc maps and unmaps every large temporary: half of the time of some peers.
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


class Worker:
    """A contestant's process, ready to take steps."""

    def __init__(self, contestant: str, case: Case, tuned: bool) -> None:
        self.contestant = contestant
        python = str(PEERS_PYTHON) if contestant in PEERS else sys.executable
        self.process = subprocess.Popen(
            [python, str(HERE / "worker.py"), contestant, case.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ONE_THREAD, **(TUNED if tuned else {})},
        )
        self.seconds: list[float] = []
        self.memory = 0.0
        self._answer()

    def step(self) -> None:
        """Take one step and keep its time."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        answer = self._answer()
        self.seconds.append(answer["seconds"])
        self.memory = answer["memory_mb"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:  # a package may talk while it is imported
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"{self.contestant} ended with {self.process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(case: Case, contestants: list[str], repeats: int, tuned: bool) -> list[Worker]:
    """Steps of all contestants in turn."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(name, case, tuned)) for name in contestants]
        for _ in range(repeats):
            for worker in workers:
                worker.step()
        return workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    everyone = [*OURS, *(PEERS if PEERS_PYTHON.exists() else ())]
    parser.add_argument("--contestants", default=",".join(everyone))
    parser.add_argument("--tasks", default="forward,backward,jets,laplacian")
    parser.add_argument("--widths", action="append", help="2,64,64,1 by default; may be repeated")
    parser.add_argument("--intervals", default="20")
    parser.add_argument("--degrees", default="3")
    parser.add_argument("--dtypes", default="float64,float32")
    parser.add_argument("--points", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tuned", action="store_true", help="malloc settings that help the peers")
    options = parser.parse_args()
    names = options.contestants.split(",")
    print("| task | widths | degree | intervals | type | " + " | ".join(names) + " |")
    print("|---" * (5 + len(names)) + "|")
    shapes = [tuple(map(int, text.split(","))) for text in options.widths or ["2,64,64,1"]]
    cases = itertools.product(
        options.tasks.split(","),
        shapes,
        map(int, options.degrees.split(",")),
        map(int, options.intervals.split(",")),
        options.dtypes.split(","),
    )
    for task, widths, degree, intervals, dtype in cases:
        case = Case(task, widths, intervals, degree, options.points, dtype)
        taking_part = [n for n in names if task != "jacobian" or n in JACOBIANS]
        workers = measure(case, taking_part, options.repeats, options.tuned)
        found = {
            w.contestant: f"{1e3 * statistics.median(w.seconds):.3g} ms, {w.memory:.0f} MB"
            for w in workers
        }
        cells = [found.get(name, "-") for name in names]
        print(
            f"| {task} | {list(widths)} | {degree} | {intervals} | {dtype} | "
            + " | ".join(cells)
            + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
