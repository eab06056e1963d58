"""How the cost of a Laplacian residual's gradient grows, and a large evaluation.

Usage: python benchmarks/scaling.py [--dtype float64] [--repeats 5] [--series NAME,NAME]

One thread. Each line changes one size of [2, 64, 64, 1], cubic, 20 intervals, 4096 random points;
the exponent is that of the power of the size fitted to the last three times.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from case import Case
from contestants import kanpinn_network


def median_seconds(step: Callable[[], object], repeats: int) -> float:
    """Of some steps behind a first one."""
    step()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of the last three points in the logarithms."""
    return float(np.polyfit(np.log(sizes[-3:]), np.log(seconds[-3:]), 1)[0])


def evaluate(case: Case, points: int) -> None:
    """Time the values at many points, chunk by chunk; say how much memory the process took."""
    network = kanpinn_network.build(case)
    x = torch.rand(points, case.widths[0], dtype=next(network.parameters()).dtype)
    values = torch.empty(points, case.widths[-1], dtype=x.dtype)
    start = time.perf_counter()
    with torch.no_grad():
        pairs = zip(*(t.split(kanpinn_network.CHUNK) for t in (x, values)), strict=True)
        for part, out in pairs:
            out.copy_(network(part))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{points:,} values in {seconds:.1f} s; the process peaked at {peak:.0f} MB\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--evaluate", type=int, default=10_000_000, help="points evaluated")
    parser.add_argument("--series", help="some of the lines, by name with commas between")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = Case(dtype=options.dtype)
    series: dict[str, tuple[Sequence[int], Callable[[int], Case]]] = {
        "points": ((1024, 4096, 16384, 65536), lambda n: replace(base, points=n)),
        "intervals": ((8, 16, 32, 64, 128, 256, 512), lambda n: replace(base, intervals=n)),
        "intervals (points in order)": (
            (8, 16, 32, 64, 128, 256, 512),
            lambda n: replace(base, intervals=n, ordered=True),
        ),
        "width": ((8, 16, 32, 64, 128, 256), lambda n: replace(base, widths=(2, n, n, 1))),
        "hidden layers": ((1, 2, 4, 8), lambda n: replace(base, widths=(2, *(64,) * n, 1))),
        "order": ((4, 5, 6, 7, 8), lambda n: replace(base, degree=n - 1)),
    }
    if options.series:
        series = {name: series[name] for name in options.series.split(",")}
    else:
        evaluate(base, options.evaluate)
    print("| varied | milliseconds | exponent |\n|---|---|---|")
    for name, (sizes, case) in series.items():
        times = [
            median_seconds(kanpinn_network.prepare(case(size)), options.repeats) for size in sizes
        ]
        shown = ", ".join(f"{n}: {1e3 * t:.3g}" for n, t in zip(sizes, times, strict=True))
        print(f"| {name} | {shown} | {exponent(sizes, times):.2f} |", flush=True)


if __name__ == "__main__":
    main()
