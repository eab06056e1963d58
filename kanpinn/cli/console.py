"""What is printed for people: tables and numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

PLAIN_WIDTH = 200  # where there is no terminal, lines are for other programs: never folded


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; columns of numbers to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    console = Console(file=sys.stdout, highlight=False, width=width)
    table = Table(box=None, pad_edge=False, show_header=any(headers))
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
    """The table of a run's levels."""
    headers = (
        *("level", "intervals", "parameters", "points", "steps", "seconds"),
        *("loss before", "and after refinement", "loss", "held-out", "rel. L2", "ended by"),
    )
    rows = [
        (
            str(level["level"]),
            "/".join(map(str, level["n_intervals"])) or "-",
            str(level["n_params"]),
            str(level["n_points"]),
            str(level["steps"]),
            f"{level['wall_s']:.1f}",
            number(level["loss_before_prolongation"]),
            number(level["loss_after_prolongation"]),
            number(level["loss"]),
            number(level.get("heldout_residual")),
            number(level["rel_l2"]),
            str(level["stop_reason"] or "-"),
        )
        for level in levels
    ]
    print_table(headers, rows)


def say(text: str) -> None:
    """A line on stderr, beside the results."""
    print(text, file=sys.stderr, flush=True)
