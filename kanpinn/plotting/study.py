"""Figures of a study: errors against knots, parameters and work, and their spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from kanpinn.plotting import style
from kanpinn.plotting.study_looks import Look, Looks
from kanpinn.plotting.style import Floats
from kanpinn.study import LevelRow, group_of
from kanpinn.study.columns import METRICS

Row = Mapping[str, Any]
ABSCISSAE = {
    "h": "width of intervals, relative",
    "parameters": "degrees of freedom",
    "seconds": "time (s)",
    "operations": "floating-point operations",
    "evaluations": "evaluations of the loss or residuals",
}
PANELS = 4
# What is drawn where it is known, best first; and the other norms, against h alone.
ERRORS = {
    "rel_l2": "relative $L_2$ error",
    "error_estimate": "estimated relative error",
    "heldout_residual": "held-out residual",
    "loss": "training loss",
}
OTHER_NORMS = {"linf": "largest error", "h1": "relative $L_2$ error of the gradient"}
MOST_SLOPES = 3
MOST_BOXES = 40
SHORT = 200.0  # of an axis, from end to end


def _metric(name: str) -> str:
    """One of a problem's own metrics in words: ``metrics.test_mse`` is the test MSE."""
    words = name.removeprefix(METRICS).split("_")
    return " ".join(word.upper() if word in ("mse", "rmse") else word for word in words)


def known_error(rows: Sequence[Row]) -> str | None:
    """The best measure of the error that any row has."""
    return next((name for name in ERRORS if any(row.get(name) for row in rows)), None)


@dataclass(frozen=True)
class _Curve:
    """Medians over the levels of one group, with quartiles."""

    look: Look
    x: Floats
    y: Floats
    low: Floats
    high: Floats


@style.styled
def plot_errors(rows: Sequence[LevelRow], medians: Sequence[Row]) -> Figure | None:
    """The error against ``h``, degrees of freedom, time and work, with lines of whole orders.

    Drawn is the best measure of the error that is known; bands are quartiles over the seeds.
    ``None`` if there is none.
    """
    error = known_error(medians)
    if error is None:
        return None
    known, looks = _last_windows(rows, medians)
    across = [name for name in ABSCISSAE if any(row.get(name) for row in known)][:PANELS]
    figure = style.new_figure(8.0, 3.1 * ((len(across) + 1) // 2) + 0.7)
    grid = figure.subplots((len(across) + 1) // 2, min(2, len(across)), sharey=True, squeeze=False)
    for ax, abscissa in zip(grid.flat, across, strict=False):
        _draw(ax, _curves(known, looks, abscissa, error), abscissa)
    for ax in list(grid.flat)[len(across) :]:
        ax.set_axis_off()
    for axes in grid:
        axes[0].set_ylabel(ERRORS[error])
    looks.legend(figure)
    return figure


@style.styled
def plot_norms(rows: Sequence[LevelRow], medians: Sequence[Row]) -> Figure | None:
    """Largest error and error of the gradient against ``h``; ``None`` if neither is known."""
    known, looks = _last_windows(rows, medians)
    names = [name for name in OTHER_NORMS if any(row.get(name) and row.get("h") for row in known)]
    if not names:
        return None
    figure = style.new_figure(8.0, 3.8)
    grid = figure.subplots(1, max(2, len(names)), squeeze=False)[0]
    for ax, name in zip(grid, names, strict=False):
        _draw(ax, _curves(known, looks, "h", name), "h")
        ax.set_ylabel(OTHER_NORMS[name])
    for ax in grid[len(names) :]:
        ax.set_axis_off()
    looks.legend(figure)
    return figure


def _last_windows(rows: Sequence[LevelRow], medians: Sequence[Row]) -> tuple[list[Row], Looks]:
    """Medians of every group's last time window, whose errors are those of all times."""
    axes = list(dict.fromkeys(axis for row in rows for axis in row.labels))
    known = [{**row, "": {axis: row[axis] for axis in axes if axis in row}} for row in medians]
    last: dict[Any, int] = {}
    for row in known:
        group = group_of(row[""])
        last[group] = max(last.get(group, 0), row["window"])
    looks = Looks([row.labels for row in rows])
    return [row for row in known if row["window"] == last[group_of(row[""])]], looks


def _curves(known: Sequence[Row], looks: Looks, abscissa: str, error: str) -> list[_Curve]:
    """One curve for each group that has points."""
    groups: dict[Any, list[Row]] = {}
    for row in known:
        if row.get(abscissa) and row.get(error):
            groups.setdefault(group_of(row[""]), []).append(row)
    return [
        _Curve(
            looks[lines[0][""]],
            *(
                np.array([row[key] for row in lines], dtype=float)
                for key in (abscissa, error, f"{error}_q1", f"{error}_q3")
            ),
        )
        for lines in groups.values()
    ]


def _draw(ax: Axes, curves: Sequence[_Curve], abscissa: str) -> None:
    for curve in curves:
        look = curve.look
        ax.plot(
            curve.x, curve.y, color=look.colour, ls=look.line, marker=look.marker, ms=3.5, lw=1.2
        )
        if (curve.low < curve.high).any():
            ax.fill_between(curve.x, curve.low, curve.high, color=look.colour, alpha=0.12, lw=0)
    ax.set(xscale="log", yscale="log", xlabel=ABSCISSAE[abscissa])
    low, high = ax.get_xlim()
    if high < SHORT * low:  # powers of ten alone would be too few
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(color=style.PALE, lw=0.6)
    if abscissa == "h":
        _slopes(ax, curves, 1.0, "order {:g}")
    elif abscissa in ("parameters", "operations"):
        _slopes(ax, curves, -0.5, "slope {:g}")


def _slopes(ax: Axes, curves: Sequence[_Curve], step: float, words: str) -> None:
    """Lines of round slopes, multiples of ``step``, below the curves whose last slopes are near.

    At most :data:`MOST_SLOPES`, and none where the error does not fall.
    """
    drawn: set[float] = set()
    for curve in curves:
        order = np.argsort(curve.x)
        x, y = curve.x[order], curve.y[order]
        if step < 0:  # the finest level is the last one, on the left or on the right
            x, y = x[::-1], y[::-1]
        if len(x) < 2 or x[0] == x[1]:
            continue
        slope = step * round(float(np.log(y[1] / y[0]) / np.log(x[1] / x[0])) / step)
        if slope / step < 1 or slope in drawn or len(drawn) == MOST_SLOPES:
            continue
        drawn.add(slope)
        ends = np.array([x[0], x[min(2, len(x) - 1)]])
        line = y[0] / 3 * (ends / ends[0]) ** slope
        ax.plot(ends, line, color=style.GREY, lw=0.8, ls=(0, (2, 2)))
        side = "left" if ends[1] > ends[0] else "right"  # under the line, from its fine end on
        place: dict[str, Any] = {"fontsize": 7, "color": style.GREY, "va": "top", "ha": side}
        place["bbox"] = {"facecolor": "white", "alpha": 0.7, "lw": 0, "pad": 0.5}
        ax.annotate(words.format(slope), (ends[0], line[0]), **place)


@style.styled
def plot_spread(finals: Sequence[Row], axes: Sequence[str]) -> Figure | None:
    """How the runs ended over the seeds, a box for each combination of the other axes.

    Panels are the error, the loss and the first of the problem's own metrics, where they are known.
    ``None`` if no combination has two runs.
    """
    groups: dict[Any, list[Row]] = {}
    for row in finals:
        labels = {axis: row[axis] for axis in axes if axis in row}
        groups.setdefault(group_of(labels), []).append(row)
    groups = dict(list(groups.items())[:MOST_BOXES])
    if not any(len(rows) > 1 for rows in groups.values()):
        return None
    looks = Looks([{axis: row[axis] for axis in axes if axis in row} for row in finals])
    metrics = [name for row in finals for name in row if name.startswith(METRICS)][:1]
    panels = list(dict.fromkeys([*filter(None, [known_error(finals)]), *metrics, "loss"]))
    panels = [name for name in panels if any((row.get(name) or 0) > 0 for row in finals)][:3]
    figure = style.new_figure(8.0, 1.0 + 0.3 * len(groups))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    names = [looks.name(dict(group)) for group in groups]
    for ax, panel in zip(grid, panels, strict=True):
        values = [
            [row[panel] for row in rows if (row.get(panel) or 0) > 0] for rows in groups.values()
        ]
        ax.boxplot(
            values,
            orientation="horizontal",
            tick_labels=names if ax is grid[0] else None,
            manage_ticks=ax is grid[0],
            medianprops={"color": style.VERMILLION},
            flierprops={"markersize": 3},
        )
        ax.set(xscale="log", xlabel=ERRORS.get(panel, _metric(panel)))
        style.few_ticks(ax.xaxis)
        ax.grid(color=style.PALE, lw=0.6, axis="x")
    grid[0].invert_yaxis()
    return figure
