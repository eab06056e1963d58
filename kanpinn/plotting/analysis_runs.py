"""Figures of what analyses of runs found, one or more for every case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kanpinn.analysis import Finding
from kanpinn.plotting import style
from kanpinn.plotting.analysis_rows import Rows, columns, distinct, grid, where


def _cases(finding: Finding, known: Iterable[str]) -> list[tuple[str, Rows, Rows]]:
    """Title, rows and curves of every case: labels are the columns that are not ``known``."""
    names = [name for name in finding.rows[0] if name not in set(known)]

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in names)

    found: list[tuple[str, Rows, Rows]] = []
    for case in dict.fromkeys(map(key, finding.rows)):
        title = ", ".join(f"{name}={value}" for name, value in zip(names, case, strict=True))
        rows = [row for row in finding.rows if key(row) == case]
        found.append((title, rows, [row for row in finding.curves if key(row) == case]))
    return found


def _stage(row: Mapping[str, Any]) -> str:
    """A moment of a run in a word or two."""
    window = f"window {row['window']}, " if row.get("window") else ""
    return f"{window}{row['level']} {row['moment']}"


SPECTRA_COLUMNS = (
    *("window", "level", "moment", "of", "basis", "rows", "parameters", "rank", "condition"),
    *("largest", "smallest", "trace", "effective_rank", "share"),
)


def training_spectra(finding: Finding) -> list[Figure]:
    """Eigenvalues at the end of levels and shares of large ones along the run, for every case."""
    return [_spectra(*case) for case in _cases(finding, SPECTRA_COLUMNS)]


def _spectra(title: str, rows: Rows, curves: Rows) -> Figure:
    """Eigenvalues at the end of every level, and the share of large ones along the run."""
    quantities = distinct(rows, "of")
    figure = style.new_figure(0.8 + 3.4 * len(quantities), 6.0)
    panels = figure.subplots(2, len(quantities), squeeze=False)
    moment = "end" if "end" in distinct(rows, "moment") else "start"
    for column, of in enumerate(quantities):
        _eigenvalues_of_levels(panels[0, column], where(curves, of=of, moment=moment))
        panels[0, column].set_title(f"{of}: eigenvalues, {moment} of levels")
        _shares(panels[1, column], where(rows, of=of))
        panels[1, column].set_title(f"{of}: share above $10^{{-6}}$ of the largest")
    if title:
        figure.suptitle(title)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return figure


def _eigenvalues_of_levels(ax: Axes, curves: Rows) -> None:
    for number, stage in enumerate(dict.fromkeys(map(_stage, curves))):
        own = [row for row in curves if _stage(row) == stage]
        for basis, line in zip(distinct(own, "basis"), ("-", "--"), strict=False):
            x, y = (np.asarray(v) for v in columns(where(own, basis=basis), "index", "value"))
            ax.plot(
                x, np.maximum(y / y[0], 1e-18), ls=line, lw=1.2,
                color=style.COLOURS[number % len(style.COLOURS)],
                label=f"level {stage.rpartition(' ')[0]}, {basis}",
            )  # fmt: skip
    ax.axhline(1e-6, color=style.GREY, lw=0.7, ls=":")
    ax.set(xscale="log", yscale="log", xlabel="index", ylabel="relative to the largest")
    ax.set_ylim(bottom=1e-16)
    grid(ax)


def _shares(ax: Axes, rows: Rows) -> None:
    stages = list(dict.fromkeys(map(_stage, rows)))
    for number, basis in enumerate(distinct(rows, "basis")):
        own = {_stage(row): row["share"] for row in where(rows, basis=basis)}
        ax.plot(
            [stages.index(stage) for stage in own], list(own.values()), marker="o", ms=3.5,
            ls=("-", "--")[number % 2], color=style.BLACK,
        )  # fmt: skip
    ax.set_xticks(range(len(stages)), stages, rotation=60, ha="right", rotation_mode="anchor")
    ax.set_ylim(bottom=0)
    grid(ax)
