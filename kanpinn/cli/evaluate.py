"""``evaluate`` and ``plot``."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from kanpinn.cli.console import number, print_pairs, say, short_path
from kanpinn.cli.options import PATH, as_json, run_argument, verbose

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kanpinn.geometry import Domain
    from kanpinn.problem import Problem
    from kanpinn.solution import Solution
    from kanpinn.solution.evaluator import Outside

MOST_POINTS = 10**8

TRUST = click.option(
    "--trust", is_flag=True, help="Import the user's file that defines the problem, if one does."
)


@click.command(short_help="Evaluate the solution of a run at points or on a grid.")
@run_argument()
@click.option("--points", type=PATH, metavar="FILE", help="CSV, NPZ or HDF5 with the coordinates.")
@click.option("--grid", metavar="NxM", help="A grid over the domain, ends included: 201x201.")
@click.option("--out", type=PATH, metavar="FILE", required=True, help="CSV or NPZ to write.")
@click.option("--force", is_flag=True, help="Write over an existing file.")
@click.option(
    "--iterate", type=click.Choice(("best", "last")), default="best", help="Which one [best]."
)
@click.option(
    "--outside",
    type=click.Choice(("error", "nan", "extend")),
    default="error",
    help="Points outside the domain: refused, NaN, or extrapolated [error].",
)
@click.option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:INDEX.")
@TRUST
@as_json("number of points and errors")
@verbose
def evaluate(
    run: Path,
    points: Path | None,
    grid: str | None,
    out: Path,
    force: bool,
    iterate: Literal["best", "last"],
    outside: Outside,
    device: str,
    trust: bool,
    as_json: bool,
) -> int:
    """Evaluate the solution of RUN (a run folder or a checkpoint) at points, into a table.

    Its columns are the coordinates and the fields, and where the problem has a reference also
    <field>_reference and <field>_error (NaN at points outside the domain).
    """
    if (points is None) == (grid is None):
        both = "" if points is None else ", not both"
        raise click.UsageError(f"one of --points FILE and --grid NxM is needed{both}")
    from kanpinn.config import resolve_device
    from kanpinn.io.table_writer import check_free, write_columns
    from kanpinn.io.tables import read_points
    from kanpinn.solution import Solution

    check_free(out, force)
    place = resolve_device(device)
    solution = Solution.load(run, place)
    solution = solution.last if iterate == "last" else solution.best
    problem = known_problem(solution, trust)
    if points is not None:
        x = read_points(points, solution.coordinates)
        if outside == "error":
            _check_inside(_domain(solution, problem), x, points)
    else:
        x = _grid(solution, problem, grid or "")
    columns, errors = _table(solution, problem, x, outside)
    write_columns(out, columns, force)
    found = {"points": len(x), **errors, "device": str(place), "out": str(out)}
    if as_json:
        from kanpinn.io.run_folder import to_json

        click.echo(to_json(found, indent=2))
        return 0
    pairs = {"points": str(len(x)), **{name: number(value) for name, value in errors.items()}}
    print_pairs({**pairs, "device": str(place), "written to": short_path(out)})
    return 0


@click.command(short_help="Draw the figures of a run again.")
@run_argument()
@click.option("--out", type=PATH, metavar="DIR", help="Folder of the figures [RUN/figures].")
@TRUST
@verbose
def plot(run: Path, out: Path | None, trust: bool) -> int:
    """Draw the figures of RUN (a run folder or a checkpoint) again.

    Those that are there are not replaced by others without reference and residuals.
    """
    from kanpinn.errors import RunFolderError
    from kanpinn.io.run_folder import FIGURES
    from kanpinn.plotting import plot_run
    from kanpinn.solution import Solution

    folder = out or (run if run.is_dir() else run.parent) / FIGURES
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder}: is a file; a folder for the figures is needed")
    solution = Solution.load(run)
    poorer = f"{folder}: figures there would be replaced by some without reference and residuals"
    problem = known_problem(solution, trust, poorer if any(folder.glob("*.png")) else None)
    say("device cpu")
    for path in plot_run(solution, problem, folder):
        click.echo(str(path))
    return 0


def _check_inside(domain: Domain, x: NDArray[np.float64], file: Path) -> None:
    """Refuse points outside the domain, naming their file."""
    from kanpinn.errors import DomainError

    try:
        domain.check(x)
    except DomainError as error:
        raise DomainError(
            f"{file}: {error} (rows count from 0, after any header); "
            "--outside nan or extend takes such points"
        ) from error


def _domain(solution: Solution, problem: Problem | None) -> Domain:
    """The problem's, or where that is not known the bounding box."""
    from kanpinn.geometry import Box

    if problem is not None:
        return problem.domain
    bounds = [solution.bounds[name] for name in solution.coordinates]
    lower, upper = zip(*bounds, strict=True)
    return Box(lower, upper, solution.coordinates)


def known_problem(solution: Solution, trust: bool, needed: str | None = None) -> Problem | None:
    """The solution's problem, or ``None`` and a line that says why there is no reference.

    Args:
        solution: of a run.
        trust: whether a user's file may be imported; what then goes wrong is an error.
        needed: what would be lost without the problem, where that is an error.
    """
    from kanpinn.api import problem_of
    from kanpinn.errors import ConfigError, RunFolderError

    try:
        return problem_of(solution, trust=trust)
    except ConfigError as error:
        if trust:
            raise
        if needed is not None:
            raise RunFolderError(f"{needed}: {error}; --out draws elsewhere") from error
        say(f"without reference: {error}")
        return None


def _grid(solution: Solution, problem: Problem | None, text: str) -> NDArray[np.float64]:
    """Points ``(n, d)`` of the grid ``NxM`` that lie in the domain."""
    if not re.fullmatch(r"\d{1,6}(x\d{1,6})*", text):
        raise click.UsageError(f"--grid: found {text!r}, allowed: counts such as 201x201")
    shape = [int(count) for count in text.split("x")]
    if math.prod(shape) > MOST_POINTS:
        raise click.UsageError(f"--grid: {text} are more than {MOST_POINTS} points")
    domain = _domain(solution, problem)
    x, _ = domain.evaluation_grid(shape)
    return x[domain.contains(x)].numpy()


def _table(
    solution: Solution, problem: Problem | None, x: NDArray[np.float64], outside: Outside
) -> tuple[dict[str, NDArray[np.float64]], dict[str, float | None]]:
    """The columns, and the errors of all fields together at the points in the domain."""
    import numpy as np
    import torch

    from kanpinn.training.evaluation import relative_l2

    values = np.asarray(solution(x, outside), dtype=np.float64)
    columns = {name: x[:, k] for k, name in enumerate(solution.coordinates)}
    columns |= {name: values[:, k] for k, name in enumerate(solution.fields)}
    inside = _domain(solution, problem).contains(torch.from_numpy(x)).numpy()
    reference = None if problem is None or not inside.any() else problem.reference(x[inside])
    if reference is None:
        return columns, {}
    exact = np.full_like(values, np.nan)
    exact[inside] = np.asarray(reference, dtype=np.float64).reshape(inside.sum(), -1)
    difference = values - exact
    columns |= {f"{name}_reference": exact[:, k] for k, name in enumerate(solution.fields)}
    columns |= {f"{name}_error": difference[:, k] for k, name in enumerate(solution.fields)}
    difference, exact = difference[inside], exact[inside]
    rel_l2 = relative_l2(torch.from_numpy(difference), torch.from_numpy(exact))
    return columns, {"rel_l2": rel_l2, "linf": float(np.abs(difference).max())}
