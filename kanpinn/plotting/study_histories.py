"""How the runs of a study converged: losses, residuals and errors against steps and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from kanpinn.plotting import style
from kanpinn.plotting.study_looks import Look, Looks
from kanpinn.plotting.style import Floats
from kanpinn.study import group_of

QUANTITIES = {
    "loss": "training loss",
    "heldout_residual": "held-out residual",
    "rel_l2": "relative $L_2$ error",
}
ABSCISSAE = {"step": "optimiser steps", "wall_s": "time (s)"}
MOST_RUNS = 30  # beyond, one of each group: that nearest to the median
MOST_POINTS = 400  # of a curve
FAR = 20.0  # times, from the shortest run to the longest: then the axis is logarithmic


@dataclass(frozen=True, eq=False)
class History:
    """What a run has logged.

    Attributes:
        labels: of its case.
        columns: see :attr:`kanpinn.Solution.history`.
    """

    labels: Mapping[str, str]
    columns: Mapping[str, NDArray[Any]]

    def numbers(self, name: str) -> Floats:
        """A column, positive where it is finite at all."""
        values = self.columns.get(name)
        if values is None:
            return np.full(len(self.columns["step"]), np.nan)
        found = values.astype(float)
        return np.where(np.isfinite(found) & (found > 0), found, np.nan)

    @property
    def last(self) -> float:
        """The error it ended with, or the best measure of it."""
        for name in ("rel_l2", "heldout_residual", "loss"):
            values = self.numbers(name)
            if np.isfinite(values).any():
                return float(values[np.isfinite(values)][-1])
        return float("nan")


@style.styled
def plot_histories(histories: Sequence[History]) -> Figure | None:
    """Training loss, held-out residual and error of all runs, with refinements as dots.

    Of more than :data:`MOST_RUNS` runs one is drawn for each combination of the axes but the seed:
    that which ended nearest to their median. ``None`` if nothing was logged.
    """
    known = [history for history in histories if len(history.columns.get("step", ()))]
    rows = [q for q in QUANTITIES if any(np.isfinite(h.numbers(q)).any() for h in known)]
    if not rows:
        return None
    looks = Looks([history.labels for history in known])
    drawn = _typical(known) if len(known) > MOST_RUNS else known
    figure = style.new_figure(8.0, 0.9 + 2.0 * len(rows))
    grid = figure.subplots(len(rows), len(ABSCISSAE), sharex="col", sharey="row", squeeze=False)
    for axes, quantity in zip(grid, rows, strict=True):
        for ax, abscissa in zip(axes, ABSCISSAE, strict=True):
            for history in drawn:
                _draw(ax, history, abscissa, quantity, looks[history.labels])
            ax.set(yscale="log")
            ax.grid(color=style.PALE, lw=0.6)
        axes[0].set_ylabel(QUANTITIES[quantity])
    for ax, abscissa in zip(grid[-1], ABSCISSAE, strict=True):
        ax.set_xlabel(ABSCISSAE[abscissa])
        ends = [float(history.columns[abscissa][-1]) for history in drawn]
        if min(ends) > 0 and max(ends) > FAR * min(ends):
            ax.set_xscale("log")
    dot = {"marker": "o", "ms": 3.5, "mfc": "white", "mec": style.BLACK, "ls": ""}
    refined = any((np.diff(h.columns["level"]) > 0).any() for h in drawn)
    looks.legend(figure, *([Line2D([], [], **dot, label="refinement")] if refined else []))  # type: ignore[arg-type]
    return figure


def _typical(histories: Sequence[History]) -> list[History]:
    """Of every group the run that ended nearest to the median."""
    groups: dict[Any, list[History]] = {}
    for history in histories:
        groups.setdefault(group_of(history.labels), []).append(history)
    found = []
    for group in groups.values():
        ends = np.log([history.last for history in group])
        if not np.isfinite(ends).any():
            found.append(group[0])
            continue
        distance = np.abs(ends - np.nanmedian(ends))
        found.append(group[int(np.nanargmin(np.where(np.isfinite(ends), distance, np.inf)))])
    return found


def _draw(ax: Axes, history: History, abscissa: str, quantity: str, look: Look) -> None:
    x, y = history.columns[abscissa].astype(float), history.numbers(quantity)
    level = history.columns["level"]
    starts = 1 + np.flatnonzero(np.diff(level) > 0)
    stride = max(1, len(x) // MOST_POINTS)
    kept = np.unique([*range(0, len(x), stride), len(x) - 1, *starts, *(starts - 1)])
    ax.plot(x[kept], y[kept], color=look.colour, ls=look.line, lw=1.0, alpha=0.85)
    ax.plot(x[starts], y[starts], "o", ms=3.5, mfc="white", mec=look.colour, mew=0.9)
