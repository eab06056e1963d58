"""Figures of what analyses found, by their kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kanpinn.analysis import Finding
from kanpinn.plotting import style
from kanpinn.plotting.analysis_rows import (
    Rows,
    colour,
    columns,
    distinct,
    grid,
    plain_ticks,
    where,
)
from kanpinn.plotting.analysis_runs import prolongation_change, residual_spectrum, training_spectra


@style.styled
def draw(finding: Finding) -> list[Figure]:
    """The figures of a finding; none for a kind that has no figures, or without rows."""
    drawer = DRAWERS.get(finding.kind)
    return drawer(finding) if drawer and finding.rows else []


# --- change of basis ----------------------------------------------------------------------------
def _basis_spectrum(finding: Finding) -> list[Figure]:
    return [_eigen(finding), _conditions(finding)]


def _eigen(finding: Finding) -> Figure:
    """Eigenvalues against their index, first and last eigenvectors; a column for each order."""
    orders = distinct(finding.curves, "order")
    figure = style.new_figure(0.6 + 3.1 * len(orders), 6.6)
    panels = figure.subplots(3, len(orders), squeeze=False)
    for column, order in enumerate(orders):
        values = where(finding.curves, curve="eigenvalue", order=order)
        vectors = where(finding.curves, curve="eigenvector", order=order)
        _eigenvalues(panels[0, column], values, order)
        indices = distinct(vectors, "index")
        half = (len(indices) + 1) // 2
        for ax, some, word in (
            (panels[1, column], indices[:half], "first"),
            (panels[2, column], indices[half:], "last"),
        ):
            for number, index in enumerate(some):
                x, y = columns(where(vectors, index=index), "position", "value")
                ax.plot(x, y, lw=1.0, label=f"{index}", **colour(number))
            ax.set(xlabel="entry", title=f"{word} eigenvectors")
            grid(ax)
            ax.legend(ncols=len(some), loc="upper center", handlelength=1.0, columnspacing=0.8)
            low, high = ax.get_ylim()
            ax.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
    return figure


def _eigenvalues(ax: Axes, rows: Rows, order: int) -> None:
    x, y = (np.asarray(values, float) for values in columns(rows, "index", "value"))
    ax.plot(x, y, marker=".", ls="none", color=style.BLUE)
    anchor = len(x) // 3
    ax.plot(
        x, y[anchor] * (x / x[anchor]) ** (2 * order), color=style.GREY, lw=0.9, ls=(0, (4, 2)),
        label=f"index$^{{{2 * order}}}$",
    )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="index", title=f"order {order}: eigenvalues")
    ax.legend(loc="upper left")
    grid(ax)


def _conditions(finding: Finding) -> Figure:
    """Condition numbers against the knots, and sign changes against the index."""
    figure = style.new_figure(6.8, 3.2)
    left, right = figure.subplots(1, 2)
    rows = where(finding.rows, part="condition")
    for number, order in enumerate(distinct(rows, "order")):
        x, y = (np.asarray(v, float) for v in columns(where(rows, order=order), "n", "condition"))
        left.plot(x, y, marker="o", ms=3.5, label=f"order {order}", **colour(number))
        left.plot(x, y[-1] * (x / x[-1]) ** (2 * order), color=style.GREY, lw=0.8, ls=":")
    left.set(xscale="log", yscale="log", xlabel="knot intervals $n$")
    plain_ticks(left.xaxis)
    left.set_title("condition number of $A^T A$, dotted $n^{2r}$")
    left.legend()
    grid(left)
    for number, order in enumerate(distinct(finding.curves, "order")):
        values = where(finding.curves, curve="eigenvalue", order=order)
        places, changes = columns(values, "index", "sign_changes")
        # One behind another: the theory puts all orders on one line.
        right.plot(places, changes, lw=5.0 / (1 + number), label=f"order {order}", **colour(number))
    right.set(xlabel="index of the eigenvector", title="sign changes along its entries")
    right.legend()
    grid(right)
    return figure


# --- gradient descent ---------------------------------------------------------------------------
def _descent(finding: Finding) -> list[Figure]:
    """Errors of all four iterations, and by frequency of either descent."""
    figure = style.new_figure(9.6, 3.3)
    whole, *panels = figure.subplots(1, 3)
    for number, gradient in enumerate(distinct(finding.curves, "gradient")):
        for geometry, width in (("u", 3.5), ("w", 1.2)):
            rows = _after_start(finding, gradient=gradient, geometry=geometry)
            x, y = columns(rows, "iteration", "error")
            line = {"color": style.COLOURS[2 * number + (geometry == "w")], "lw": width}
            whole.plot(x, y, label=f"on ${gradient}$, written in ${geometry}$", **line)
    whole.set_title("error of the whole")
    for ax, gradient in zip(panels, distinct(finding.curves, "gradient"), strict=True):
        rows = _after_start(finding, gradient=gradient, geometry=gradient)
        bands = [name for name in rows[0] if name.startswith("band ")] if rows else []
        for number, band in enumerate(bands):
            x, y = columns(rows, "iteration", band)
            ax.plot(x, y, label=band.removeprefix("band "), **colour(number))
        ax.set_title(f"descent on ${gradient}$, by half-waves")
    for ax in (whole, *panels):
        ax.set(xscale="log", yscale="log", xlabel="iteration")
        ax.legend(loc="lower left")
        grid(ax)
    return [figure]


def _after_start(finding: Finding, **values: Any) -> list[Mapping[str, Any]]:
    return [row for row in where(finding.curves, **values) if row["iteration"] > 0]


# --- speed of layers ----------------------------------------------------------------------------
def _speed(finding: Finding) -> list[Figure]:
    """Milliseconds against the intervals: a column for each order, a row for each task."""
    orders, tasks = distinct(finding.rows, "order"), distinct(finding.rows, "task")
    figure = style.new_figure(0.8 + 2.6 * len(orders), 0.6 + 2.5 * len(tasks))
    panels = figure.subplots(len(tasks), len(orders), sharey="row", squeeze=False)
    for (i, task), (j, order) in itertools.product(enumerate(tasks), enumerate(orders)):
        ax = panels[i, j]
        rows = where(finding.rows, task=task, order=order)
        for number, way in enumerate(distinct(rows, "evaluation")):
            own = sorted(where(rows, evaluation=way), key=lambda row: int(row["intervals"]))
            x, y = columns(own, "intervals", "seconds")
            ax.plot(x, 1e3 * np.asarray(y), marker="o", ms=3.5, label=way, **colour(number))
        ax.set(xscale="log", yscale="log", title=f"{task}, order {order}")
        plain_ticks(ax.xaxis)
        grid(ax)
    for ax in panels[-1]:
        ax.set_xlabel("knot intervals")
    for ax in panels[:, 0]:
        ax.set_ylabel("time (ms)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 if len(orders) < 3 else 4)
    return [figure]


DRAWERS: dict[str, Callable[[Finding], list[Figure]]] = {
    "basis_spectrum": _basis_spectrum,
    "preconditioned_descent": _descent,
    "layer_speed": _speed,
    "training_spectra": training_spectra,
    "residual_spectrum": residual_spectrum,
    "prolongation_change": prolongation_change,
}
