"""Predicted against measured values, for data that no function is known of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kanpinn.plotting import style
from kanpinn.plotting.style import Floats, with_unit


@style.styled
def plot_parity(
    measured: Mapping[str, Floats],
    predicted: Mapping[str, Floats],
    units: Mapping[str, str] | None = None,
    rows: str = "rows",
) -> Figure:
    """Predicted against measured values with the line of equality, and how the errors spread.

    Args:
        measured: data ``(n,)`` by field, in the user's units.
        predicted: the same rows of the solution.
        units: units by field.
        rows: which rows these are, in words.

    Raises:
        ValueError: if there is no field.
    """
    if not measured:
        raise ValueError("plot_parity: no field was given")
    figure = style.new_figure(6.2, 2.9 * len(measured))
    grid = figure.subplots(len(measured), 2, squeeze=False)
    for (left, right), (name, exact) in zip(grid, measured.items(), strict=True):
        label = with_unit(name, (units or {}).get(name))
        good = np.isfinite(exact) & np.isfinite(predicted[name])
        _scatter(left, exact[good], predicted[name][good], label)
        left.set_title(f"{len(exact)} {rows}")
        _spread(right, (predicted[name] - exact)[good], label, rows)
        if not good.all():
            style.note(left, f"{int((~good).sum())} of {len(good)} rows not finite")
    return figure


def _scatter(ax: Axes, exact: Floats, predicted: Floats, label: str) -> None:
    ends = [exact.min(initial=np.inf), predicted.min(initial=np.inf)]
    tops = [exact.max(initial=-np.inf), predicted.max(initial=-np.inf)]
    low, high = (float(min(ends)), float(max(tops))) if len(exact) else (0.0, 1.0)
    room = 0.04 * (high - low) or 0.5
    ends = [low - room, high + room]
    ax.plot(ends, ends, color=style.BLACK, lw=0.8, ls=(0, (4, 3)), zorder=1)
    alpha = float(np.clip(200 / max(len(exact), 1), 0.1, 0.7))
    size = 4.0 if len(exact) > 300 else 8.0
    ax.plot(exact, predicted, ".", ms=size, color=style.BLUE, alpha=alpha, mew=0, rasterized=True)
    ax.set(xlim=ends, ylim=ends, aspect="equal", adjustable="box")
    ax.set(xlabel=f"measured {label}", ylabel=f"predicted {label}")
    ax.grid(color=style.PALE, lw=0.6)


def _spread(ax: Axes, error: Floats, label: str, rows: str) -> None:
    """Histogram of the errors, with their root mean square."""
    if len(error):
        reach = float(np.abs(error).max()) or 1.0
        bins = int(np.clip(np.sqrt(len(error)), 8, 60))
        ax.hist(error, bins=bins, range=(-reach, reach), color=style.BLUE, alpha=0.8, lw=0)
        rms = float(np.sqrt(np.mean(error**2)))
        for place in (-rms, rms):
            ax.axvline(place, color=style.BLACK, lw=0.9, ls=(0, (4, 3)))
        ax.set_title(f"root mean square error {rms:.2g} (dashed)")
    ax.set(xlabel=f"error of {label}", ylabel=rows)
