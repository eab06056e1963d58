"""The page of a study: tables, and errors against knots, parameters and seconds, in one file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from kanpinn.io.run_folder import write_atomically
from kanpinn.io.study_tables import columns, shown
from kanpinn.plotting import style
from kanpinn.study import SEED, LevelRow, is_column

Medians = Sequence[Mapping[str, Any]]
ABSCISSAE = {"h": "width of intervals, relative", "parameters": "parameters", "seconds": "time (s)"}
CSS = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .2rem .6rem; text-align: right }
th { border-bottom: 2px solid #777 } img { max-width: 100% } .limited { background: #fdf3e0 }
"""


def write_page(
    path: Path,
    name: str,
    rows: Sequence[LevelRow],
    medians: Medians,
    failures: Sequence[tuple[str, str]],
) -> None:
    """Write the page; its figures are inside of it."""
    parts = [f"<h1>{html.escape(name)}</h1>"]
    if failures:
        lines = "".join(f"<li>{html.escape(f'{case}: {why}')}</li>" for case, why in failures)
        parts.append(f"<p>Cases without a result:</p><ul>{lines}</ul>")
    parts += [_image(figure) for figure in draw(rows, medians)]
    parts.append("<h2>Medians over the seeds</h2>")
    parts.append(
        "<p><code>left_out</code> counts runs that diverged. Levels that the optimiser limits in "
        "some run are marked.</p>"
    )
    parts.append(_table(medians))
    parts.append("<h2>All levels</h2>")
    parts.append(_table([row.flat() for row in rows]))
    head = f"<meta charset='utf-8'><title>{html.escape(name)}</title><style>{CSS}</style>"
    write_atomically(path, f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body>")


@style.styled
def draw(rows: Sequence[LevelRow], medians: Medians) -> list[Figure]:
    """Figures: the convergence, and where there are several seeds, their spread."""
    if not any(row.get("rel_l2") for row in medians):
        return []
    figures = [_convergence(rows, medians)]
    if any(row["runs"] > 1 for row in medians):
        figures.append(_spread(rows))
    return figures


def _convergence(rows: Sequence[LevelRow], medians: Medians) -> Figure:
    figure = style.new_figure(3.4 * len(ABSCISSAE), 3.6)
    panels = figure.subplots(1, len(ABSCISSAE), sharey=True, squeeze=False)[0]
    last = max(row.window for row in rows)  # errors there are those of all times
    medians = [row for row in medians if row["window"] == last]
    widths = {(_group(row.labels), row.level): row.h for row in rows if row.window == last}
    for number, (group, lines) in enumerate(_grouped(medians).items()):
        colour = style.COLOURS[number % len(style.COLOURS)]
        line = style.LINE_STYLES[number // len(style.COLOURS) % len(style.LINE_STYLES)]
        known = [{**row, "h": widths.get((group, row["level"]))} for row in lines]
        for ax, abscissa in zip(panels, ABSCISSAE, strict=True):
            points = [row for row in known if row[abscissa] and row["rel_l2"]]
            if not points:
                continue
            x, y = ([row[key] for row in points] for key in (abscissa, "rel_l2"))
            low, high = ([row[key] for row in points] for key in ("rel_l2_q1", "rel_l2_q3"))
            ax.plot(x, y, color=colour, ls=line, marker="o", ms=3.5, label=group or "all")
            ax.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    for ax, label in zip(panels, ABSCISSAE.values(), strict=True):
        ax.set(xscale="log", yscale="log", xlabel=label)
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.grid(color=style.PALE, lw=0.6)
    panels[0].set_ylabel("relative $L_2$ error, median and quartiles")
    _slopes(panels[0], medians, widths)
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return figure


def _slopes(ax: Axes, medians: Medians, widths: Mapping[tuple[str, int], float | None]) -> None:
    """Reference lines of whole orders, each below the first curve whose last order is nearest."""
    drawn = set()
    for group, lines in _grouped(medians).items():
        order = round(lines[-1]["order"] or 0)
        fine, coarse = (widths.get((group, row["level"])) for row in (lines[-1], lines[0]))
        if order < 1 or order in drawn or not fine or not coarse:
            continue
        drawn.add(order)
        x = np.array([fine, min(coarse, 4 * fine)])
        y = lines[-1]["rel_l2"] / 3 * (x / fine) ** order
        ax.plot(x, y, color=style.GREY, lw=0.8, ls=(0, (2, 2)))
        ax.annotate(f"order {order}", (x[1], y[1]), fontsize=7, color=style.GREY, va="top")


def _spread(rows: Sequence[LevelRow]) -> Figure:
    """Errors of the finest levels over the seeds, a box for each combination."""
    finest: dict[str, dict[Any, float]] = {}
    for row in rows:
        if row.rel_l2:
            finest.setdefault(_group(row.labels), {})[tuple(row.labels.items())] = row.rel_l2
    figure = style.new_figure(6.8, 0.8 + 0.35 * len(finest))
    ax = figure.subplots()
    ax.boxplot(
        [list(errors.values()) for errors in finest.values()],
        orientation="horizontal",
        tick_labels=[group or "all" for group in finest],
        medianprops={"color": style.VERMILLION},
    )
    ax.set(xscale="log", xlabel="relative $L_2$ error on the finest level, over the seeds")
    ax.grid(color=style.PALE, lw=0.6, axis="x")
    ax.invert_yaxis()
    return figure


def _group(labels: Mapping[str, Any]) -> str:
    """The axes but the seed, in words."""
    return ", ".join(f"{k}={v}" for k, v in labels.items() if k != SEED and not is_column(k))


def _grouped(medians: Medians) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in medians:
        groups.setdefault(_group(row), []).append(row)
    return groups


def _image(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=style.DPI, format="png")
    return (
        f"<img alt='' src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = columns(rows)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr{' class=limited' if row.get('limited') else ''}>"
        + "".join(f"<td>{html.escape(shown(row.get(name)))}</td>" for name in names)
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
