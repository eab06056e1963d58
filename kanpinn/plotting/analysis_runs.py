"""Figures of what analyses of runs found, one or more for every case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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


RESIDUAL_COLUMNS = (
    *("window", "level", "moment", "of"),
    *("intervals", "rms", "frequency", "beyond_knots"),
)


def residual_spectrum(finding: Finding) -> list[Figure]:
    """Amplitudes against frequency at the start and the end of every level, for every case."""
    return [_amplitudes(*case) for case in _cases(finding, RESIDUAL_COLUMNS)]


def _amplitudes(title: str, rows: Rows, curves: Rows) -> Figure:
    figure = style.new_figure(6.0, 4.4)
    ax = figure.subplots()
    levels = list(dict.fromkeys(map(_level, rows)))
    for row in rows:
        own = [c for c in curves if _stage(c) == _stage(row)]
        x, y = columns(own, "frequency", "amplitude")
        end = row["moment"] == "end"
        number = levels.index(_level(row))
        ax.plot(
            np.asarray(x) + 1, y, ls="-" if end else ":", lw=1.4 if end else 1.0,
            color=style.COLOURS[number % len(style.COLOURS)], label=f"level {_stage(row)}",
        )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="frequency |k| + 1 (half-waves over the domain)")
    ax.set_ylabel(f"amplitude of the {rows[0]['of']}")
    grid(ax)
    ax.set_title(title)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _level(row: Mapping[str, Any]) -> str:
    return _stage(row).rpartition(" ")[0]


CHANGE_COLUMNS = (
    *("window", "level", "intervals", "transfer", "change", "relative", "seconds", "recorded"),
    *("loss_before", "loss_after"),
)


def prolongation_change(finding: Finding) -> list[Figure]:
    """Largest changes and times of the transfers at every refinement, all cases in one figure."""
    figure = style.new_figure(7.2, 3.9)
    panels = figure.subplots(1, 2)
    cases = _cases(finding, CHANGE_COLUMNS)
    for number, transfer in enumerate(distinct(finding.rows, "transfer")):
        for case, (_, rows, _) in enumerate(cases):
            own = where(rows, transfer=transfer)
            line = style.LINE_STYLES[case % len(style.LINE_STYLES)]
            label = None if case else transfer
            for ax, column in zip(panels, ("relative", "seconds"), strict=True):
                y = np.maximum([row[column] for row in own], 1e-17)
                look = {"marker": "o", "ms": 3.5, "lw": 1.0, "color": style.COLOURS[number]}
                ax.plot(range(1, len(own) + 1), y, ls=line, label=label, **look)
    for case, (title, _, _) in enumerate(cases if 1 < len(cases) <= len(style.LINE_STYLES) else []):
        panels[0].plot([], [], color=style.GREY, ls=style.LINE_STYLES[case], label=title)
    for ax, name in zip(panels, ("largest change, relative", "time (s)"), strict=True):
        ax.set(yscale="log", xlabel="refinement", title=name)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        grid(ax)
    handles, labels = panels[0].get_legend_handles_labels()
    ncols = style.legend_columns(labels)
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols)
    return [figure]
