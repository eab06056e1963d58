"""What every figure must satisfy: nothing cut off, nothing on top of another, no panel blank."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from numpy.typing import NDArray


def main_axes(figure: Figure) -> list[Axes]:
    """Axes of panels, colour bars left out."""
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


def texts(figure: Figure) -> list[str]:
    found = [t.get_text() for t in figure.findobj(Text) if isinstance(t, Text) and t.get_visible()]
    return [text for text in found if text]


def check(figure: Figure) -> Figure:
    """Draw the figure; nothing may be cut off, no two panels overlap, and none be blank."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    width, height = canvas.get_width_height()
    boxes = []
    for artist in [*main_axes(figure), *figure.legends, *figure.texts]:
        box = artist.get_tightbbox(renderer)
        assert box is not None
        assert box.x0 >= -1 and box.y0 >= -1, f"{artist} is cut off: {box}"
        assert box.x1 <= width + 1 and box.y1 <= height + 1, f"{artist} is cut off: {box}"
        boxes.append((artist, box))
    for k, (first, box) in enumerate(boxes):
        for second, other in boxes[k + 1 :]:
            common = box.intersection(box, other)
            area = 0.0 if common is None else common.width * common.height
            assert area <= 0.002 * min(box.width * box.height, other.width * other.height), (
                f"{first} and {second} overlap by {area:.0f} pixels"
            )
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            labels = [tick.label1 for tick in axis.get_major_ticks() if tick.label1.get_visible()]
            places = [label.get_window_extent(renderer) for label in labels if label.get_text()]
            for first_label, second_label in itertools.combinations(places, 2):
                assert not first_label.overlaps(second_label), f"{ax}: tick labels overlap"
    pixels = np.asarray(canvas.buffer_rgba())
    for ax in main_axes(figure):
        x0, y0, x1, y1 = (round(v) for v in ax.get_window_extent(renderer).extents)
        inner = pixels[height - y1 + 3 : height - y0 - 3, x0 + 3 : x1 - 3, :3]
        assert inner.size and inner.std() > 0, f"{ax} is blank"
    return figure


def xdata(line: Line2D) -> NDArray[np.float64]:
    """Horizontal coordinates of a line's points."""
    return np.asarray(line.get_xdata(), dtype=np.float64)


def ydata(line: Line2D) -> NDArray[np.float64]:
    """Vertical coordinates of a line's points."""
    return np.asarray(line.get_ydata(), dtype=np.float64)


def images(figure: Figure) -> list[QuadMesh]:
    """The image of every panel that has one."""
    found = (ax.findobj(QuadMesh) for ax in main_axes(figure))
    return [meshes[0] for meshes in found if meshes]
