"""The learned univariate functions of a layer, with their knots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from kanpinn.plotting import style
from kanpinn.plotting.style import Floats

LARGEST_GRID = 8
SLIVER = 0.01  # of the axis
MOST_DOTS = 20  # knots shown as dots on a curve; more are ticks alone


@dataclass(frozen=True, eq=False)
class ChannelFunctions:
    """The functions ``phi_q`` of one input channel.

    Attributes:
        label: of the horizontal axis.
        x: where they are evaluated ``(k,)``.
        values: ``(n_outputs, k)``.
        knots: ``(n + 1,)``.
        at_knots: values there ``(n_outputs, n + 1)``.
        visited: the part of the axis that points of the domain reach, if known.
    """

    label: str
    x: Floats
    values: Floats
    knots: Floats
    at_knots: Floats
    visited: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class LayerFunctions:
    """All univariate functions of a layer: ``y_q = sum_p phi_qp(x_p)``.

    Attributes:
        channels: one entry per input.
        outputs: labels of the outputs.
    """

    channels: tuple[ChannelFunctions, ...]
    outputs: tuple[str, ...]


@style.styled
def plot_univariate(layer: LayerFunctions, largest: int = LARGEST_GRID) -> Figure:
    """The functions of a layer in a grid of inputs by outputs, with one vertical scale.

    Each is drawn less its mean over the part of the axis that points of the domain reach, since
    only the sum of the constants has a meaning; the rest of the axis is shaded. Ticks at the
    bottom, and dots on the curve where there are few, are the knots. A layer with more than
    ``largest`` inputs or outputs shows those with the largest functions, and says so.
    """
    size = _sizes(layer)  # (n_outputs, n_inputs)
    inputs, outputs = _largest(size.sum(0), largest), _largest(size.sum(1), largest)
    by_input = len(outputs) > len(inputs)  # the longer side goes across
    rows, columns = (inputs, outputs) if by_input else (outputs, inputs)
    cell = {1: 3.2, 2: 2.4, 3: 1.9, 4: 1.7}.get(len(columns), 1.3)
    width = max(cell * len(columns) + 0.8, 3.6)
    height = 0.8 * cell * len(rows) + 0.75
    figure = style.new_figure(width, height)
    grid = figure.subplots(len(rows), len(columns), sharey=True, squeeze=False)
    shown = style.finite(
        [
            layer.channels[p].values[q, _reached(layer.channels[p])] - _mean(layer, q, p)
            for p in inputs
            for q in outputs
        ]
    )
    low, high = float(shown.min(initial=0.0)), float(shown.max(initial=0.0))
    room = 0.08 * (high - low) or 1.0
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            p, q = (row, column) if by_input else (column, row)
            ax = grid[i, j]
            _draw(ax, layer, q, p, cell)
            ax.set_ylim(low - 1.5 * room, high + room)  # the ticks need some of it
            _dress(ax, layer, (p, q), by_input, (i, j), (len(rows), len(columns)))
    # The panels' middle: below them are tick labels and the legend.
    figure.supylabel(r"$\phi_{qp}$ less its mean", y=0.5 + 0.25 / height, fontsize=9)
    _remarks(figure, layer, len(inputs), len(outputs))
    return figure


def _reached(channel: ChannelFunctions) -> NDArray[np.bool_]:
    """Which of the points ``x`` the domain reaches; all if not known, or if too few."""
    if channel.visited is not None:
        inside = (channel.x >= channel.visited[0]) & (channel.x <= channel.visited[1])
        if inside.sum() > 1:
            return np.asarray(inside)
    return np.ones(len(channel.x), dtype=bool)


def _unreached(channel: ChannelFunctions) -> list[tuple[float, float]]:
    """Parts of the axis that no point of the domain reaches, slivers left out."""
    if channel.visited is None:
        return []
    low, high = float(channel.knots[0]), float(channel.knots[-1])
    start, stop = (float(end) for end in np.clip(channel.visited, low, high))
    parts = [(low, start), (stop, high)]
    return [(a, b) for a, b in parts if b - a > SLIVER * (high - low)]


def _sizes(layer: LayerFunctions) -> Floats:
    """Standard deviation of every function where the domain reaches it, ``(n_outputs, n_inputs)``.

    0 where it is not finite.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.stack([c.values[:, _reached(c)].std(-1) for c in layer.channels], -1)
    return np.where(np.isfinite(size), size, 0.0)


def _largest(size: Floats, count: int) -> NDArray[np.int64]:
    """Indices of the ``count`` largest entries, in their own order."""
    chosen = np.argsort(-size, kind="stable")[:count]
    return np.sort(chosen).astype(np.int64)


def _mean(layer: LayerFunctions, q: int, p: int) -> float:
    channel = layer.channels[p]
    good = style.finite([channel.values[q, _reached(channel)]])
    return float(good.mean()) if len(good) else 0.0


def _draw(ax: Axes, layer: LayerFunctions, q: int, p: int, cell: float) -> None:
    channel = layer.channels[p]
    mean = _mean(layer, q, p)
    values = channel.values[q] - mean
    low, high = float(channel.knots[0]), float(channel.knots[-1])
    ax.set_xlim(low, high)
    for start, stop in _unreached(channel):
        ax.axvspan(start, stop, color=style.PALE, lw=0, zorder=0)
    ax.axhline(0, color=style.GREY, lw=0.5, zorder=1)
    ax.plot(channel.x, np.where(np.isfinite(values), values, np.nan), color=style.BLUE, lw=1.2)
    if len(channel.knots) <= MOST_DOTS * cell / 1.3:
        dots = channel.at_knots[q] - mean
        dots = np.where(np.isfinite(dots), dots, np.nan)
        ax.plot(channel.knots, dots, "o", ms=2.2, color=style.BLACK, zorder=3)
    across = ax.get_xaxis_transform()
    ax.vlines(channel.knots, 0.0, 0.05, transform=across, color=style.BLACK, lw=0.6)
    style.note_non_finite(ax, channel.values[q])


def _dress(
    ax: Axes,
    layer: LayerFunctions,
    which: tuple[int, int],
    by_input: bool,
    at: tuple[int, int],
    shape: tuple[int, int],
) -> None:
    """Labels of rows and columns at the outer panels alone."""
    channel, output = layer.channels[which[0]], layer.outputs[which[1]]
    top, bottom, left = at[0] == 0, at[0] == shape[0] - 1, at[1] == 0
    if by_input and top:
        ax.set_title(f"to {output}")
    if left and not by_input:
        ax.set_ylabel(f"to {output}")
    if by_input or bottom:
        ax.set_xlabel(channel.label, labelpad=1)
    ax.tick_params(labelbottom=bottom or by_input, labelleft=left, labelsize=7)
    ax.locator_params(axis="x", nbins=3)
    ax.locator_params(axis="y", nbins=4)


def _remarks(figure: Figure, layer: LayerFunctions, n_inputs: int, n_outputs: int) -> None:
    """What the marks are, and how many functions are left out."""
    tick = {"marker": "|", "ls": "", "color": style.BLACK, "ms": 6, "mew": 0.8}
    handles: list[Artist] = [Line2D([], [], label="knots", **tick)]  # type: ignore[arg-type]
    if any(_unreached(channel) for channel in layer.channels):
        handles.append(Patch(color=style.PALE, label="reached by no point of the domain"))
    figure.legend(handles=handles, loc="outside lower right", ncols=2, borderaxespad=0.0)
    left_out = len(layer.channels) * len(layer.outputs) - n_inputs * n_outputs
    if left_out:
        figure.suptitle(
            f"{n_inputs} of {len(layer.channels)} inputs and {n_outputs} of "
            f"{len(layer.outputs)} outputs, those with the largest functions; "
            f"{left_out} functions left out",
            fontsize=8,
        )
