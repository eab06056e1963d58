"""Table 2 of arXiv 2603.04827: basis against schedule, and plain ReLU networks, over five seeds.

The paper counts epochs of L-BFGS, {32, 16, 8, 4} from coarse to fine, and does not say how many
iterations an epoch has; here an epoch is 20 iterations, the default of the optimiser it names.

Usage: python benchmarks/regression_table.py [--seeds 1234 1235 ...] [--iterations 20]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import kanpinn

SCHEDULES = {
    "multilevel": (32, 16, 8, 4),
    "coarse": (128, 0, 0, 0),
    "fine": (0, 0, 0, 16),
}
MLPS = ([2, 5, 1], [2, 30, 1], [2, 20, 20, 1])
MLP_EPOCHS = 128  # the paper does not say how many; as many as its longest schedule


def rows() -> Iterator[tuple[str, str, list[str], list[int]]]:
    """Per row: model, schedule, what it changes in the config, epochs per level."""
    for basis in ("kan", "multichannel"):
        for schedule, epochs in SCHEDULES.items():
            model = [f"model.type={basis}", "model.intervals=5", "training.levels=4"]
            yield basis, schedule, model, list(epochs)
    for widths in MLPS:
        model = f"model={{type: mlp, activation: relu, widths: {widths}}}"
        yield f"mlp {widths}", "-", [model, "training.levels=1"], [MLP_EPOCHS]


def solve(changes: list[str], epochs: list[int], seed: int, iterations: int) -> tuple[float, int]:
    """Test MSE and number of parameters of one run."""
    steps = [iterations * number for number in epochs]
    overrides = [
        *changes,
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
    for name, schedule, changes, epochs in rows():
        start = time.perf_counter()
        runs = [solve(changes, epochs, seed, options.iterations) for seed in options.seeds]
        errors = [error for error, _ in runs]
        spread = statistics.stdev(errors) if len(errors) > 1 else 0.0
        print(
            f"| {name} | {schedule} | {runs[0][1]} | {statistics.mean(errors):.2e} "
            f"| {spread:.2e} | {time.perf_counter() - start:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
