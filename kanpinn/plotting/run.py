"""All figures of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from matplotlib.figure import Figure

from kanpinn.errors import ConfigError
from kanpinn.plotting.convergence import plot_convergence
from kanpinn.plotting.fields import FieldSection, plot_fields
from kanpinn.plotting.gather import (
    DataRows,
    Extent,
    field_sections,
    is_regression,
    rows_of_data,
)
from kanpinn.plotting.learned_functions import univariate_layers
from kanpinn.plotting.regression import plot_parity
from kanpinn.plotting.snapshots import plot_snapshots
from kanpinn.plotting.style import Format, save_figure
from kanpinn.plotting.univariate import plot_univariate
from kanpinn.problem import Problem

if TYPE_CHECKING:
    from kanpinn.solution import Solution
from kanpinn.training.memory import Memory

Named = Iterator[tuple[str, Callable[[], Figure]]]
MOST_DIMENSIONS_OF_DATA = 3  # beyond, sections through scattered data say little

WORDS = ("solution", "reference")
REGRESSION_WORDS = ("prediction", "function")


def plot_run(
    solution: Solution, problem: Problem | None, folder: Path, fmt: Format = "png"
) -> list[Path]:
    """Write all figures of a run that its solution and problem allow.

    ``fields`` (one per field where several sections are shown), ``snapshots`` over one space
    coordinate and time, ``parity`` for data, ``convergence``, and ``univariate_layer<k>`` for
    networks on knots.

    Args:
        solution: the iterate to show, with its history.
        problem: for reference and residuals; ``None`` leaves them out.
        folder: made if missing; figures of the same names are replaced.
        fmt: ``png`` or ``pdf``.

    Returns:
        The paths written, in the order above.

    Raises:
        ConfigError: for another format.
        RunFolderError: if a figure cannot be written.
    """
    if fmt not in get_args(Format):
        raise ConfigError(f"figure format: found {fmt!r}; allowed: {', '.join(get_args(Format))}")
    # One figure at a time: a figure of several images takes tens of megabytes.
    return [save_figure(draw(), folder, name, fmt) for name, draw in _figures(solution, problem)]


def _figures(solution: Solution, problem: Problem | None) -> Named:
    """Names of the figures, and what draws them."""
    held_out = None if problem is None else problem.held_out_blocks()
    data = rows_of_data(held_out, solution, solution.fields)
    dimensions = len(Extent.of(solution.model, problem).names)
    if not data or dimensions <= MOST_DIMENSIONS_OF_DATA:
        yield from _field_figures(solution, problem, data)
    tests = None if problem is None else problem.test_blocks()
    unseen = rows_of_data(tests, solution, solution.fields)
    if shown := unseen or data:
        measured = {name: rows.measured for name, rows in shown.items()}
        predicted = {name: rows.predicted for name, rows in shown.items()}
        kind = "test rows" if unseen else "validation rows"
        yield "parity", lambda: plot_parity(measured, predicted, rows=kind)
    history = solution.history
    if len(history.get("step", ())):
        phases = _phases(solution.config, solution.summary)
        yield "convergence", lambda: plot_convergence(history, _intervals(solution.summary), phases)
    parts = solution.networks
    for part_name, part in parts.items():
        stem = "univariate" if len(parts) == 1 else f"univariate_{part_name}"
        for number, layer in enumerate(univariate_layers(part), 1):
            yield f"{stem}_layer{number}", lambda layer=layer: plot_univariate(layer)  # type: ignore[misc]


def _field_figures(
    solution: Solution, problem: Problem | None, data: Mapping[str, DataRows]
) -> Named:
    regression = problem is not None and is_regression(problem, solution.model)
    words = REGRESSION_WORDS if regression else WORDS
    memory = Memory(solution.config.get("memory_mib"))
    sections = field_sections(solution, solution.model, problem, solution.fields, memory=memory)
    if len(sections) == 1:
        section = sections[0]
        if len(section.axes) == 1 and data:
            dots = {name: (rows.x[:, 0], rows.measured) for name, rows in data.items()}
            section = replace(section, data=dots)
        yield "fields", lambda: plot_fields(section, words=words)
        if len(section.axes) == 2 and section.time in section.axes:
            yield "snapshots", lambda: plot_snapshots(section, words=words)
        return
    names, equations = list(solution.fields), list(sections[0].residuals)
    for k, name in enumerate(names):
        own = [_only(section, (name,), equations[k : k + 1]) for section in sections]
        stem = "fields" if len(names) == 1 else f"fields_{name}"
        yield stem, lambda own=own: plot_fields(own, words=words)  # type: ignore[misc]
    rest = equations[len(names) :]
    if rest:
        yield "residuals", lambda: plot_fields([_only(s, (), rest) for s in sections])


def _only(section: FieldSection, fields: Sequence[str], equations: Sequence[str]) -> FieldSection:
    """A section with some of its fields and residuals."""

    def pick(arrays: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        return {name: arrays[name] for name in names if name in arrays}

    return replace(
        section,
        values=pick(section.values, fields),
        reference=pick(section.reference, fields),
        residuals=pick(section.residuals, equations),
    )


def _phases(
    config: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> dict[int, list[str]]:
    """The optimisers of every level, in order."""
    stages = (config.get("training") or {}).get("phases") or []
    named: dict[int, list[str]] = {}
    for level in (int(entry["level"]) for entry in records):
        steps = [np.atleast_1d(stage["steps"]) for stage in stages]
        here = [int(counts[min(level, len(counts) - 1)]) for counts in steps]
        named[level] = [s["optimiser"] for s, n in zip(stages, here, strict=True) if n]
    return named


def _intervals(records: Sequence[Mapping[str, Any]]) -> dict[int, list[int]]:
    """Knot intervals per layer, by level."""
    return {int(entry["level"]): list(np.ravel(entry["n_intervals"])) for entry in records}
