"""Error against seconds of kanpinn and of its peers, on four problems.

Usage: python benchmarks/solve.py [--problems P1,P2,P3,P4] [--seconds 300] [--seeds 1,2,3]
    [--contestants kanpinn,deepxde,jaxkan,pykan] [--plot PATH]

Every contestant runs in a process of its own with one thread, one after the other. kanpinn solves
its shipped configs; what the peers do is in `recipes/`, after their own documentation, with the
Python of `make peers`. Seconds are those of training and of compilation in it; kanpinn's also hold
the evaluation of its errors, which the clocks of the peers leave out. Shown is the error at a time,
in brackets the least one up to then where it is less than half of that; medians over the seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from layers import ONE_THREAD, PEERS_PYTHON, TUNED
from matplotlib.axes import Axes
from recipes.given import Given

from kanpinn.config import load_config
from kanpinn.plotting import save_figure, style
from kanpinn.registry import build_problem

HERE = Path(__file__).resolve().parent
TIMES = (30.0, 60.0, 300.0)
PACKAGES = ("kanpinn", "deepxde", "jaxkan", "pykan")


@dataclass(frozen=True)
class Task:
    """A problem of the comparison.

    Attributes:
        title: what it is.
        config: kanpinn's, in ``configs/``.
        measured: the class in ``measured.py``.
        measure: of the errors, see :class:`Given`.
        recipes: of the peers.
        scaled: whether the data are scaled to [0, 1], as kanpinn trains on them in any case.
    """

    title: str
    config: str
    measured: str
    measure: str
    recipes: tuple[str, ...]
    scaled: bool = False

    @property
    def unit(self) -> str:
        """The measure in words."""
        return {"rel_l2": "relative L2", "mse": "test MSE", "rmse": "test RMSE"}[self.measure]


TASKS = {
    "P1": Task("Poisson", "poisson", "Poisson", "rel_l2", ("poisson_deepxde", "poisson_jaxkan")),
    "P2": Task(
        "Burgers, nu = 0.01/pi",
        "burgers",
        "Burgers",
        "rel_l2",
        ("burgers_deepxde", "burgers_jaxkan"),
    ),
    "P3": Task(
        "regression, 20,000 points",
        "regression",
        "Regression",
        "mse",
        ("regression_pykan", "regression_deepxde"),
        scaled=True,
    ),
    "P4": Task(
        "regression, 1000 points",
        "regression_expsin",
        "Regression",
        "rmse",
        ("expsin_pykan", "expsin_deepxde"),
    ),
}


@dataclass
class Curve:
    """Errors of one run, in the order of time; ``None`` parameters if it failed."""

    points: list[tuple[float, float]] = field(default_factory=list)
    parameters: int | None = None

    def at(self, seconds: float) -> tuple[float, float] | None:
        """The last error by then and the least one, ``None`` if there is none yet."""
        errors = [error for time, error in self.points if time <= seconds]
        return (errors[-1], min(errors)) if errors else None


@dataclass(frozen=True)
class Course:
    """A task with its points and data, ready to be run.

    Attributes:
        task: the problem.
        data: NPZ file for the peers.
        size: root mean square of what is right on the points of the errors, in the units of the
            measure: it turns kanpinn's relative errors into the measure.
    """

    task: Task
    data: Path
    size: float

    def error(self, relative: float) -> float:
        """The measure for a relative L2 error."""
        if self.task.measure == "rel_l2":
            return relative
        return (relative * self.size) ** (2 if self.task.measure == "mse" else 1)


def prepare(name: str, folder: Path) -> Course:
    """Write what the peers are given, the points that kanpinn is trained and measured on."""
    task = TASKS[name]
    config = load_config(config_path(task), [measured(task)])
    problem = build_problem(config.problem)
    x = problem.evaluation_points().numpy()
    y = np.asarray(problem.reference(x)).reshape(-1)
    train_x, train_y = np.empty((0, x.shape[1])), np.empty(0)
    if task.measured == "Regression":
        train_x, train_y = problem.training.inputs, problem.training.outputs[:, 0]
    scaling = problem.scales["u"] if task.scaled else None
    shift, scale = (scaling.shift, scaling.scale) if scaling else (0.0, 1.0)
    given = Given(task.measure, x, (y - shift) / scale, train_x, (train_y - shift) / scale)
    path = folder / f"{name}.npz"
    given.save(path)
    return Course(task, path, float(np.sqrt(np.mean(y**2))) / scale)


def config_path(task: Task) -> Path:
    """kanpinn's config of a task."""
    return HERE.parent / "configs" / f"{task.config}.yaml"


def measured(task: Task) -> str:
    """The change of the config that has errors measured on the common points."""
    return f"problem.name={HERE / 'measured.py'}:{task.measured}"


def run_kanpinn(course: Course, seconds: float, seed: int) -> Curve:
    """The shipped config, to its end or that of the time."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "kanpinn", "solve", str(config_path(course.task))]
        command += [measured(course.task), f"training.time_limit={seconds}", "figures=false"]
        command += ["--seed", str(seed), "--threads", "1", "--out", str(out), "--json", "-q"]
        environment = {**os.environ, **ONE_THREAD}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if not done.stdout:
            print(f"kanpinn failed: {done.stderr[-500:]}", file=sys.stderr)
            return Curve()
        lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        points = [(row["wall_s"], course.error(row["rel_l2"])) for row in rows]
        return Curve(points, json.loads(done.stdout)["n_params"])


def run_peer(recipe: str, course: Course, seconds: float, seed: int) -> Curve:
    """A recipe, in a folder of its own: some packages write files."""
    command = [str(PEERS_PYTHON), str(HERE / "recipe_worker.py")]
    command += [recipe, str(seconds), str(seed), str(course.data)]
    environment = {**os.environ, **ONE_THREAD, **TUNED}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=folder, check=False
        )
    curve = Curve()
    for line in done.stdout.splitlines():
        if line.startswith('{"seconds"'):
            row = json.loads(line)
            curve.points.append((row["seconds"], row["error"]))
        elif line.startswith('{"parameters"'):
            curve.parameters = json.loads(line)["parameters"]
    if done.returncode:
        print(f"{recipe} failed: {done.stderr[-500:]}", file=sys.stderr)
    return curve


def measure(
    course: Course, packages: Sequence[str], seconds: float, seeds: Sequence[int]
) -> dict[str, list[Curve]]:
    """Curves of every contestant, a seed of each in turn."""
    curves: dict[str, list[Curve]] = defaultdict(list)
    for seed in seeds:
        if "kanpinn" in packages:
            curves["kanpinn"].append(run_kanpinn(course, seconds, seed))
        for recipe in course.task.recipes:
            package = recipe.rpartition("_")[2]
            if package in packages:
                curves[package].append(run_peer(recipe, course, seconds, seed))
    return curves


def cell(curves: Sequence[Curve], seconds: float) -> str:
    """Median of the errors at a time, with the least ones in brackets."""
    found = [errors for curve in curves if (errors := curve.at(seconds))]
    if len(found) < len(curves) or not found:
        return "-"
    now, least = (statistics.median(errors) for errors in zip(*found, strict=True))
    return f"{now:.1e} ({least:.1e})" if now > 2 * least else f"{now:.1e}"


def row(name: str, package: str, curves: Sequence[Curve], times: Sequence[float]) -> str:
    """A line of the table."""
    task = TASKS[name]
    count = curves[0].parameters
    cells = [f"{name} {task.title}, {task.unit}", package]
    cells += [cell(curves, time) for time in times]
    end = max((curve.points[-1][0] for curve in curves if curve.points), default=math.nan)
    return f"| {' | '.join(cells)} | {end:.0f} | {'-' if count is None else count} |"


def draw(ax: Axes, name: str, results: dict[str, list[Curve]]) -> None:
    """A panel: errors against seconds, a line per seed."""
    for package, curves in results.items():
        number = PACKAGES.index(package)
        for seed, curve in enumerate(curves):
            points = np.array([p for p in curve.points if p[0] > 0]).reshape(-1, 2)
            label = None if seed else package
            colour, line = style.COLOURS[number], style.LINE_STYLES[number]
            ax.plot(*points.T, color=colour, ls=line, label=label)
    task = TASKS[name]
    ax.set(title=task.title, xlabel="time (s)", ylabel=task.unit, xscale="log", yscale="log")
    ax.grid(color=style.PALE, lw=0.6)
    ax.legend()


@style.styled
def plot(results: dict[str, dict[str, list[Curve]]], path: Path) -> None:
    """A panel per problem, two beside each other."""
    columns = min(len(results), 2)
    rows = math.ceil(len(results) / columns)
    figure = style.new_figure(3.4 * columns, 2.8 * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, (name, curves) in zip(panels, results.items(), strict=False):
        draw(ax, name, curves)
    for ax in panels[len(results) :]:
        ax.remove()
    save_figure(figure, path.parent, path.stem, path.suffix[1:] or "png")


def main() -> None:
    """Print a Markdown table, a row per problem and contestant, as they come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", default=",".join(TASKS))
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seeds", default="1", help="numbers with commas between")
    parser.add_argument("--contestants", default=",".join(PACKAGES))
    parser.add_argument("--plot", type=Path, help="where to save a figure")
    options = parser.parse_args()
    packages, seeds = options.contestants.split(","), list(map(int, options.seeds.split(",")))
    if not PEERS_PYTHON.exists():
        print("kanpinn alone: the peers are installed by `make peers`.\n")
        packages = ["kanpinn"]
    times = [*(time for time in TIMES if time < options.seconds), options.seconds]
    heads = [f"{time:g} s" for time in times]
    print(f"| problem, error | contestant | {' | '.join(heads)} | ended, s | parameters |")
    print("|---" * (4 + len(times)) + "|")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.problems.split(","):
            course = prepare(name, Path(folder))
            results[name] = measure(course, packages, options.seconds, seeds)
            for package, curves in results[name].items():
                print(row(name, package, curves, times), flush=True)
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
