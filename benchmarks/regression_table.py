"""The KAN rows of Table 2 of arXiv 2603.04827: basis against schedule, over five seeds.

The paper counts epochs of L-BFGS, {32, 16, 8, 4} from coarse to fine, and does not say how many
iterations an epoch has; here an epoch is 20 iterations, the default of the optimiser it names.

Usage: python benchmarks/regression_table.py [--seeds 1234 1235 ...] [--iterations 20]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import kanpinn

SCHEDULES = {
    "multilevel": (32, 16, 8, 4),
    "coarse": (128, 0, 0, 0),
    "fine": (0, 0, 0, 16),
}
ROWS = [(basis, schedule) for basis in ("kan", "multichannel") for schedule in SCHEDULES]


def solve(basis: str, schedule: str, seed: int, iterations: int) -> tuple[float, int]:
    """Test MSE and number of parameters of one run."""
    steps = [iterations * epochs for epochs in SCHEDULES[schedule]]
    overrides = [
        f"model.type={basis}",
        f"seed={seed}",
        f"problem.seed={seed}",
        f"training.phases=[{{optimiser: lbfgs, steps: {steps}}}]",
        "figures=false",
    ]
    config = Path(__file__).parent.parent / "configs" / "regression.yaml"
    with tempfile.TemporaryDirectory() as folder:
        result = kanpinn.solve(config, overrides, out=Path(folder) / "run")
        return result.summary["metrics"]["test_mse"], result.summary["n_params"]


def main() -> None:
    """Print a Markdown table, a row per basis and schedule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1234, 1235, 1236, 1237, 1238])
    parser.add_argument("--iterations", type=int, default=20)
    options = parser.parse_args()
    print("| basis | schedule | parameters | mean test MSE | standard deviation | seconds |")
    print("|---|---|---|---|---|---|")
    for basis, schedule in ROWS:
        start = time.perf_counter()
        runs = [solve(basis, schedule, seed, options.iterations) for seed in options.seeds]
        errors = [error for error, _ in runs]
        spread = statistics.stdev(errors) if len(errors) > 1 else 0.0
        print(
            f"| {basis} | {schedule} | {runs[0][1]} | {statistics.mean(errors):.2e} "
            f"| {spread:.2e} | {time.perf_counter() - start:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
