"""How a study's curves are told apart: colours by the main axis, line styles by the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kanpinn.plotting import style
from kanpinn.study import SEED
from kanpinn.study.columns import CASE

LONGEST_LABEL = 34  # characters in a legend
MARKERS = ("o", "s", "^", "D", "v")
MOST_ENTRIES = 24  # of a legend; more cannot be told apart

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Look:
    """How the curves of one group look."""

    colour: Any
    line: Any
    marker: str


class Looks:
    """Looks for all groups of a study: the combinations of its axes but the seed.

    The first axis with several values has the colours: a scale of them for many numbers, and with
    more names than colours each colour several times, with other line styles and markers. The
    combinations of the other axes have line styles and markers, too.

    Args:
        cases: labels of all cases.
    """

    def __init__(self, cases: Sequence[Labels]) -> None:
        axes = list(dict.fromkeys(axis for labels in cases for axis in labels if axis != SEED))
        values = {axis: list(dict.fromkeys(c[axis] for c in cases if axis in c)) for axis in axes}
        varied = [axis for axis in axes if len(values[axis]) > 1]
        self.axes = varied
        self.main = varied[0] if varied else None
        self.rest = varied[1:]
        self.names = values[self.main] if self.main else [""]
        self.colours = _colours(self.names)
        self.others = list(dict.fromkeys(self._other(labels) for labels in cases))

    def __getitem__(self, labels: Labels) -> Look:
        return self._look(labels[self.main] if self.main else "", self._other(labels))

    def _look(self, name: str, other: str) -> Look:
        turn, colour = divmod(self.names.index(name), len(self.colours))
        k = turn * len(self.others) + self.others.index(other)
        line = style.LINE_STYLES[k % len(style.LINE_STYLES)]
        marker = MARKERS[(k + k // len(style.LINE_STYLES)) % len(MARKERS)]
        return Look(self.colours[colour], line, marker)

    def name(self, labels: Labels) -> str:
        """A group in words, without what all have in common."""
        return short(_words(labels, self.axes)) or "all"

    def legend(self, figure: Figure, *more: Line2D) -> None:
        """What the looks mean, below the panels; nothing where there is one curve."""
        handles = list(more)
        if self.main:
            for name in self.names:
                look = self._look(name, self.others[0])
                line = look.line if len(self.names) > len(self.colours) else "-"
                label = self.name({self.main: name})
                handles.append(Line2D([], [], color=look.colour, ls=line, lw=2, label=label))
        if self.rest:
            for other in self.others:
                look = self._look(self.names[0], other)
                drawn = {"ls": look.line, "marker": look.marker, "ms": 3, "lw": 1}
                handles.append(Line2D([], [], color=style.BLACK, label=short(other), **drawn))
        if len(handles) > MOST_ENTRIES:
            left = len(handles) - MOST_ENTRIES + 1
            handles = handles[: MOST_ENTRIES - 1]
            handles.append(Line2D([], [], ls="", label=f"and {left} more"))
        if handles:
            ncols = style.legend_columns([str(handle.get_label()) for handle in handles])
            figure.legend(handles=handles, loc="outside lower center", ncols=ncols)

    def _other(self, labels: Labels) -> str:
        return _words(labels, self.rest)


def _words(labels: Labels, axes: Sequence[str]) -> str:
    """Labels with the names of their axes, but for those of listed cases: they say all."""
    given = [axis for axis in axes if axis in labels]
    return ", ".join(labels[a] if a == CASE else f"{a}={labels[a]}" for a in given)


def short(text: str) -> str:
    """A label that a legend has room for: its start and its end. No mathematics is read in it."""
    half = (LONGEST_LABEL - 3) // 2
    cut = text if len(text) <= LONGEST_LABEL else f"{text[:half]}...{text[-half:]}"
    return cut.replace("$", r"\$")


def _colours(names: Sequence[str]) -> list[Any]:
    """Colours that are easily told apart: as many as there are; a scale for several numbers."""
    count = len(names)
    if count <= len(style.COLOURS):
        return list(style.COLOURS[:count])
    if all(map(_is_number, names)):
        scale = mpl.colormaps[style.MAGNITUDE]
        return [scale(0.92 * k / (count - 1)) for k in range(count)]
    # Made for the colour-blind, too: arXiv 2107.02270.
    return list(mpl.color_sequences["petroff10"][:count])


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
