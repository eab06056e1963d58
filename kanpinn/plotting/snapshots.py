"""Fields over one coordinate at several instants."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from kanpinn.plotting import style
from kanpinn.plotting.fields import FieldSection, Panel, curve_legend, draw_curve


@style.styled
def plot_snapshots(
    section: FieldSection, n: int = 4, words: tuple[str, str] = ("solution", "reference")
) -> Figure:
    """Fields against space at ``n`` instants, equally spaced and the last one included.

    Args:
        section: over one space coordinate and time.
        n: number of instants.
        words: what solution and reference are called.

    Raises:
        ValueError: if the section is not over space and time.
    """
    time = section.time
    if len(section.axes) != 2 or time is None or time not in section.axes:
        raise ValueError("plot_snapshots: the section must be over one coordinate and time")
    space = next(name for name in section.axes if name != time)
    x, t = section.axes[space], section.axes[time]
    time_axis = list(section.axes).index(time)
    places = np.unique(np.round(np.linspace(0, len(t) - 1, n + 1)[1:]).astype(int))
    names = list(section.values)
    figure = style.new_figure(2.5 * len(places) + 0.5, 2.3 * len(names) + 0.3)
    grid = figure.subplots(len(names), len(places), sharex=True, sharey="row", squeeze=False)
    for row, name in zip(grid, names, strict=True):
        for ax, place in zip(row, places, strict=True):
            values = np.take(section.values[name], place, time_axis)
            exact = section.reference.get(name)
            beside = None if exact is None else np.take(exact, place, time_axis)
            inside = None if section.inside is None else np.take(section.inside, place, time_axis)
            line = FieldSection({space: x}, {}, inside=inside)
            draw_curve(ax, Panel("", line, values, name, False, beside), words)
        row[0].set_ylabel(section.label(name))
    for ax, place in zip(grid[0], places, strict=True):
        ax.set_title(style.at_value(time, float(t[place])))
    for ax in grid[-1]:
        ax.set_xlabel(section.label(space))
    curve_legend(figure, grid[0, 0])
    return figure
