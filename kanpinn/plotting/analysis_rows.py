"""Rows of findings, picked for figures, and what their figures share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter

from kanpinn.plotting import style

Rows = Sequence[Mapping[str, Any]]


def colour(number: int) -> dict[str, Any]:
    """Colour and line style of the curve of a number."""
    count = len(style.COLOURS)
    lines = style.LINE_STYLES
    return {"color": style.COLOURS[number % count], "ls": lines[number // count % len(lines)]}


def where(rows: Iterable[Mapping[str, Any]], **values: Any) -> list[Mapping[str, Any]]:
    """The rows with these values in these columns."""
    return [row for row in rows if all(row.get(key) == value for key, value in values.items())]


def distinct(rows: Iterable[Mapping[str, Any]], column: str) -> list[Any]:
    """The values of a column, in the order of their first appearance."""
    return list(dict.fromkeys(row[column] for row in rows if column in row))


def columns(rows: Rows, *names: str) -> list[list[Any]]:
    """Some columns of rows, each as a list."""
    return [[row[name] for row in rows] for name in names]


def plain_ticks(axis: Axis) -> None:
    """Ticks 1, 2, 5, 10, ... of a logarithmic axis, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def grid(ax: Axes) -> None:
    """Pale lines behind the curves."""
    ax.grid(color=style.PALE, lw=0.6)
    ax.set_axisbelow(True)
