"""What is printed for people: tables and numbers."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

WIDE = 110  # columns that the losses around a refinement take, too
WIDER = 145  # with the estimates of the errors
PLAIN_WIDTH = 200  # where there is no terminal, lines are for other programs: never folded


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; columns of numbers to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, width=_width())
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=any(headers))
    lines = list(rows)
    for k, header in enumerate(headers):
        cells = [line[k] for line in lines]
        table.add_column(header, justify="right" if _numeric(cells) else "left", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))  # not markup: a path may have brackets
    with console.capture() as printed:
        console.print(table)
    for text in printed.get().splitlines():
        click.echo(text.rstrip())  # rich fills up the last column


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PLAIN_WIDTH


def _numeric(cells: Sequence[str]) -> bool:
    def is_number(cell: str) -> bool:
        try:
            float(cell)
        except ValueError:
            return cell == "-"
        return True

    return bool(cells) and all(map(is_number, cells))


def print_pairs(pairs: Mapping[str, str]) -> None:
    """Names and values on stdout, in two columns."""
    print_table(("", ""), list(pairs.items()))


def number(value: float | None, form: str = ".3e") -> str:
    """A number in a table, ``-`` where there is none."""
    return "-" if value is None else format(value, form)


def short_path(path: Path) -> str:
    """The path as one would type it here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def print_levels(levels: Sequence[Mapping[str, Any]]) -> None:
    """The table of a run's levels; what a narrow terminal has no room for is left out."""
    windows = [level.get("window") or 0 for level in levels]
    columns: dict[str, list[str]] = {"window": list(map(str, windows))} if any(windows) else {}
    kinds = [str(level.get("dtype")) for level in levels]
    columns |= {
        "level": [str(level["level"]) for level in levels],
        "intervals": ["/".join(map(str, level["n_intervals"])) or "-" for level in levels],
        "params": [str(level["n_params"]) for level in levels],
        "points": [str(level["n_points"]) for level in levels],
        "steps": [str(level["steps"]) for level in levels],
        "sec.": [f"{level['wall_s']:.1f}" for level in levels],
    }
    if len(set(kinds)) > 1:
        columns["type"] = kinds
    numbers = {"loss": "loss", "held-out": "heldout_residual", "rel. L2": "rel_l2"}
    if _width() >= WIDE:
        before, after = "loss_before_prolongation", "loss_after_prolongation"
        numbers = {"coarse loss": before, "refined loss": after, **numbers}
    if _width() >= WIDER:
        errors = {"opt. error": "optimisation_error", "knots error": "discretisation_error"}
        errors["est. error"] = "estimated_error"
        known = {k: v for k, v in errors.items() if any(e.get(v) is not None for e in levels)}
        numbers = {**numbers, **known}
    for header, key in numbers.items():
        columns[header] = [number(level.get(key), ".2e") for level in levels]
    columns["ended by"] = [str(level["stop_reason"] or "-") for level in levels]
    print_table(list(columns), list(zip(*columns.values(), strict=True)))


def say(text: str) -> None:
    """A line on stderr, beside the results."""
    print(text, file=sys.stderr, flush=True)
