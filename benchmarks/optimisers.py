"""Error against time of every optimiser, on Poisson's and Burgers' equation.

The shipped configs, with their phases replaced by one optimiser each: same networks, points,
levels and seed, one thread. The steps are such that all take about as long as Levenberg-Marquardt
with the steps shipped, or longer.

Usage: python benchmarks/optimisers.py [--seed 1] [--configs poisson burgers_nu001] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from kanpinn.plotting import save_figure, style
from kanpinn.plotting.convergence import PHASE_NAMES

REPOSITORY = Path(__file__).parent.parent
STEPS = {  # per level
    "poisson": {
        "adam": [2000, 1500, 1000, 800],
        "lbfgs": [1200, 900, 600, 400],
        "ssbfgs": [800, 700, 500, 200],
        "ssbroyden": [800, 700, 500, 200],
        "lm": [200, 120, 80, 50],
    },
    "burgers_nu001": {
        "adam": [1500, 1200, 900, 700, 500],
        "lbfgs": [900, 700, 500, 400, 300],
        "ssbfgs": [800, 600, 400, 200, 50],
        "ssbroyden": [800, 600, 400, 200, 50],
        "lm": [80, 60, 60, 40, 30],
    },
}
TITLES = {"poisson": "Poisson", "burgers_nu001": r"Burgers, $\nu = 0.01$"}

History = list[dict[str, Any]]


def solve(config: str, optimiser: str, seed: int) -> tuple[dict[str, Any], History]:
    """Summary and logged lines of one run, in a process of its own."""
    steps = STEPS[config][optimiser]
    every = max(1, sum(steps) // 60)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "kanpinn", "solve", f"configs/{config}.yaml", "-q"]
        command += ["--json", "--seed", str(seed), "--out", str(out), "figures=false"]
        command += [f"training.phases=[{{optimiser: {optimiser}, steps: {steps}}}]"]
        command += [f"training.log_every={every}", "--threads", "1"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
        if not done.stdout:
            raise SystemExit(f"{config}, {optimiser}: {done.stderr}")
        lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return json.loads(done.stdout), [json.loads(line) for line in lines]


def draw(ax: Axes, title: str, histories: dict[str, History]) -> None:
    """A panel: the relative error against seconds, with its jumps at refinements."""
    for number, (optimiser, history) in enumerate(histories.items()):
        seconds = np.array([row["wall_s"] for row in history])
        errors = np.array([row["rel_l2"] for row in history], dtype=float)
        colour, line = style.COLOURS[number], style.LINE_STYLES[number]
        ax.plot(seconds, errors, color=colour, ls=line, label=PHASE_NAMES[optimiser])
    ax.set(
        title=title, xlabel="time (s)", ylabel="relative $L_2$ error", xscale="log", yscale="log"
    )
    ax.grid(color=style.PALE, lw=0.6)


@style.styled
def main() -> None:
    """Print a Markdown table and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--configs", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "images")
    options = parser.parse_args()
    figure = style.new_figure(4.2 * len(options.configs), 3.6)
    panels = figure.subplots(1, len(options.configs), squeeze=False)[0]
    print("| config | optimiser | steps | evaluations | rel. L2 | loss | seconds |")
    print("|---|---|---|---|---|---|---|")
    for ax, config in zip(panels, options.configs, strict=True):
        histories = {}
        for optimiser in STEPS[config]:
            summary, histories[optimiser] = solve(config, optimiser, options.seed)
            last = histories[optimiser][-1]
            print(
                f"| `{config}` | {optimiser} | {last['step']} | {last['evaluations']} "
                f"| {summary['rel_l2']:.1e} | {summary['loss']:.1e} | {summary['wall_s']:.0f} |",
                flush=True,
            )
        draw(ax, TITLES[config], histories)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    print(f"figure: {save_figure(figure, options.out, 'optimisers')}")


if __name__ == "__main__":
    main()
