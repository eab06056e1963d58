"""Error, seconds, parameters and peak memory of configs, each run in a process of its own.

Usage: python benchmarks/shipped.py [--seeds 1,2,3] [--threads N] [--change KEY=VALUE] CONFIG ...
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def run(config: str, changes: list[str], seed: int, threads: int | None) -> dict[str, Any]:
    """One run with some keys changed; its summary, with the seconds of the whole training."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "kanpinn", "solve", config, *changes]
        command += ["--json", "-q", "figures=false"]
        command += ["--seed", str(seed), "--out", str(Path(folder) / "run")]
        command += ["--threads", str(threads)] if threads else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(f"{config}: {done.stderr}")
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def main() -> None:
    """Print a Markdown table, a row per config."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--seeds", default="1,2,3", help="numbers with commas between")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--change", action="append", default=[], help="an override of the config")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    print(
        "| config | seeds | rel. L2 (median) | worst | test MSE (median) | worst "
        "| seconds (median) | parameters | peak MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for config in options.configs:
        rows = [run(config, options.change, seed, options.threads) for seed in seeds]
        errors = [row["rel_l2"] for row in rows if row["rel_l2"] is not None]
        mse = [row["metrics"]["test_mse"] for row in rows if "test_mse" in row["metrics"]]
        print(
            f"| `{' '.join([config, *options.change])}` | {len(rows)} | {_median(errors)} "
            f"| {_worst(errors)} | {_median(mse)} | {_worst(mse)} "
            f"| {statistics.median(row['wall_s'] for row in rows):.0f} | {rows[0]['n_params']} "
            f"| {max(row['peak_rss_mb'] for row in rows):.0f} |",
            flush=True,
        )


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.1e}" if values else "-"


def _worst(values: list[float]) -> str:
    return f"{max(values):.1e}" if values else "-"


if __name__ == "__main__":
    main()
