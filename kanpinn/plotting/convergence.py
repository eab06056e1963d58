"""The history of a run: loss, held-out residual and error against steps and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from kanpinn.plotting import style
from kanpinn.plotting.style import Floats, symbol

ROWS = {
    "loss": "training loss",
    "heldout_residual": "held-out residual\n(root mean square)",
    "rel_l2": "relative $L_2$ error",
}
SCALAR = "scalar."
PHASE_NAMES = {
    "adam": "Adam",
    "lbfgs": "L-BFGS",
    "ssbfgs": "self-scaled BFGS",
    "ssbroyden": "self-scaled Broyden",
    "lm": "Levenberg-Marquardt",
}
NARROWEST_LABEL = 0.03  # of the axis: closer labels of levels would touch
NARROW = 6.0  # inches; narrower figures have a legend of two columns
CHARACTER_WIDTH = 0.018  # of the axis

Segment = tuple[slice, str]


@style.styled
def plot_convergence(
    history: Mapping[str, ArrayLike],
    intervals: Mapping[int, Sequence[int]] | None = None,
    phases: Mapping[int, Sequence[str]] | None = None,
) -> Figure:
    """Loss, held-out residual and relative L2 error against steps and against seconds.

    Refinements are vertical lines with the knot intervals of the levels above them; phases differ
    in colour and line style; a ring marks the iterate with the best held-out score, which is the
    one a run keeps. Quantities without a positive number (no reference) have no panel; trainable
    scalars have one each.

    Args:
        history: one column ``(n_rows,)`` per logged quantity: ``step``, ``wall_s``, ``level``,
            ``phase``, ``loss``, ``heldout_residual``, ``heldout_score``, ``rel_l2``,
            ``scalar.<name>``; missing entries are ``None`` or not a number.
        intervals: knot intervals per layer, by level.
        phases: optimisers in order, by level: for levels of which only start and end are logged.

    Raises:
        ValueError: if the history has no line, or nothing to show.
    """
    columns = {k: np.asarray(v) for k, v in history.items() if k != "phase"}
    numbers = {name: _numbers(column) for name, column in columns.items()}
    if not len(numbers.get("step", ())):
        raise ValueError("plot_convergence: the history has no line")
    rows = [name for name in ROWS if style.log_limits([numbers.get(name, np.empty(0))])]
    rows += [k for k in numbers if k.startswith(SCALAR) and np.isfinite(numbers[k]).any()]
    if not rows:
        raise ValueError("plot_convergence: the history holds no finite loss, residual or error")
    across = ["step", "wall_s"] if np.isfinite(numbers.get("wall_s", np.nan)).any() else ["step"]
    segments = _segments(numbers, history.get("phase"), phases or {})
    figure = style.new_figure(0.6 + 4.2 * len(across), 0.9 + 1.85 * len(rows))
    grid = figure.subplots(len(rows), len(across), sharex="col", sharey="row", squeeze=False)
    for name, axes in zip(rows, grid, strict=True):
        for ax, horizontal in zip(axes, across, strict=True):
            _draw(ax, numbers[horizontal], numbers, name, segments)
        axes[0].set_ylabel(ROWS.get(name, f"scalar {symbol(name.removeprefix(SCALAR))}"))
    for ax, horizontal in zip(grid[0], across, strict=True):
        _level_labels(ax, numbers[horizontal], numbers["level"], intervals or {})
    labels = {"step": "optimiser steps", "wall_s": "time (s)"}
    for ax, horizontal in zip(grid[-1], across, strict=True):
        ax.set_xlabel(labels[horizontal])
    levels = 1 + len(_refinements(numbers["level"]))
    _legend(figure, levels, segments, has_best=_best(numbers) is not None)
    return figure


def _numbers(column: NDArray[Any]) -> Floats:
    """A column as floats; ``None`` becomes not a number."""
    if column.dtype == object:
        column = np.array([np.nan if entry is None else entry for entry in column])
    return column.astype(np.float64)


def _segments(
    numbers: Mapping[str, Floats], phases: ArrayLike | None, known: Mapping[int, Sequence[str]]
) -> list[Segment]:
    """Runs of rows of one phase on one level, each with the row before it on that level.

    The row logged at a level's start belongs to the phase that follows it, the one at its end to
    the phase before; if there are no others, to all that are known of the level.
    """
    level = numbers.setdefault("level", np.zeros(len(numbers["step"])))  # type: ignore[attr-defined]
    count = len(level)
    names = [""] * count if phases is None else [str(name) for name in np.asarray(phases).tolist()]
    for k in range(count):
        between = k and level[k] == level[k - 1] and names[k - 1] not in ("start", "extended")
        if names[k] in ("end", "stopped") and not between and known.get(int(level[k])):
            names[k] = ", ".join(known[int(level[k])])
    for k in reversed(range(count)):  # "start" takes the name of what follows, "end" of what was
        follows = k + 1 < count and level[k + 1] == level[k]
        if names[k] in ("start", "extended"):
            names[k] = names[k + 1] if follows else ""
    for k in range(1, count):
        if names[k] in ("end", "stopped") and level[k] == level[k - 1]:
            names[k] = names[k - 1]
    segments, start = [], 0
    for k in range(1, count + 1):
        if k == count or level[k] != level[start] or names[k] != names[start]:
            joined = start - 1 if start and level[start - 1] == level[start] else start
            segments.append((slice(joined, k), names[start]))
            start = k
    return segments


def _draw(
    ax: Axes,
    x: Floats,
    numbers: Mapping[str, Floats],
    name: str,
    segments: list[Segment],
) -> None:
    """One quantity over steps or seconds, with the refinements."""
    y = numbers[name]
    if name in ROWS:
        ax.set_yscale("log")
        y = np.where(np.isfinite(y) & (y > 0), y, np.nan)
    styles = _phase_styles(segments)
    for rows, phase in segments:
        colour, line = styles[phase]
        single = np.isfinite(y[rows]).sum() < 2  # a line of one point cannot be seen
        ax.plot(
            x[rows], y[rows], color=colour, ls=line, lw=1.4, marker="o" if single else None, ms=3
        )
    for k in _refinements(numbers["level"]):
        ax.axvline(x[k], color=style.GREY, lw=0.8, ls=(0, (1, 1.5)))
    best = _best(numbers)
    if best is not None and np.isfinite(y[best]):
        ax.plot(x[best], y[best], "o", ms=7, mfc="none", mec=style.BLACK, mew=1.1, zorder=5)
    ax.margins(x=0.02)
    ax.grid(color=style.PALE, lw=0.6)
    lost = int((~np.isfinite(numbers[name])).sum())
    if lost:
        style.note(ax, f"{lost} of {len(y)} logged values not finite")


def _phase_styles(segments: list[Segment]) -> dict[str, tuple[str, Any]]:
    names = list(dict.fromkeys(phase for _, phase in segments))
    return {
        name: (style.COLOURS[k % len(style.COLOURS)], style.LINE_STYLES[k % len(style.LINE_STYLES)])
        for k, name in enumerate(names)
    }


def _refinements(level: Floats) -> list[int]:
    """Rows at which a new level begins."""
    return [k for k in range(1, len(level)) if level[k] != level[k - 1]]


def _best(numbers: Mapping[str, Floats]) -> int | None:
    """The row of the iterate with the best held-out score."""
    score = numbers.get("heldout_score")
    if score is None or not np.isfinite(score).any():
        return None
    return int(np.nanargmin(np.where(np.isfinite(score), score, np.nan)))


def _level_labels(
    ax: Axes, x: Floats, level: Floats, intervals: Mapping[int, Sequence[int]]
) -> None:
    """The levels' intervals above the axis, each over its own part; upright where one is narrow."""
    starts = [0, *_refinements(level)]
    left, right = ax.get_xlim()
    edges = [left, *(float(x[k]) for k in starts[1:]), right]
    texts = [_intervals_text(intervals.get(int(level[k]), ())) for k in starts]
    if texts[0]:
        texts[0] = f"$n$ = {texts[0]}"
    spans = np.diff(edges) / (right - left)
    widths = [CHARACTER_WIDTH * len(text.replace("$", "")) for text in texts]
    upright = bool((spans < np.array(widths)).any())
    taken = -np.inf
    for start, end, text in zip(edges, edges[1:], texts, strict=False):
        middle = 0.5 * (start + end)
        if not text or (middle - taken) / (right - left) < NARROWEST_LABEL:
            continue
        taken = middle
        ax.annotate(
            text,
            (middle, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            rotation=90 if upright else 0,
            ha="center",
            va="bottom",
            fontsize=8,
        )


def _intervals_text(counts: Sequence[int]) -> str:
    """``4``, or ``4/8`` where layers differ; empty without knots."""
    shown = counts[:1] if len(set(counts)) == 1 else counts
    return "/".join(str(int(n)) for n in shown)


def _legend(figure: Figure, levels: int, segments: list[Segment], has_best: bool) -> None:
    """Phases, refinements and the ring, below the panels."""
    entries: list[dict[str, Any]] = []
    for phase, (colour, line) in _phase_styles(segments).items():
        if phase:
            name = ", ".join(PHASE_NAMES.get(part, part) for part in phase.split(", "))
            entries.append({"color": colour, "ls": line, "lw": 1.4, "label": name})
    if levels > 1:
        label = "refinement ($n$ knot intervals)"
        entries.append({"color": style.GREY, "lw": 0.8, "ls": (0, (1, 1.5)), "label": label})
    if has_best:
        ring = {"marker": "o", "mfc": "none", "mec": style.BLACK, "mew": 1.1, "ms": 7, "ls": ""}
        entries.append({**ring, "label": "best held-out score"})
    if entries:
        handles = [Line2D([], [], **entry) for entry in entries]
        columns = min(len(handles), 5 if figure.get_figwidth() > NARROW else 2)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
