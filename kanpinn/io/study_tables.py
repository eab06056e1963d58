"""Tables of a study as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kanpinn.io.run_folder import write_atomically
from kanpinn.study.columns import ERRORS, LIMITED_OF, METRICS, QUARTILES, SPREAD

Rows = Sequence[Mapping[str, Any]]
LONG = 10_000_000  # whole numbers from here on are counts of work: rounded


def write_tables(folder: Path, tables: Mapping[str, Rows]) -> None:
    """Write every table with rows as CSV with all digits, and as Markdown and LaTeX for people."""
    for name, rows in tables.items():
        if not rows:
            continue
        write_atomically(folder / f"{name}.csv", to_csv(rows))
        short = for_people(rows)
        write_atomically(folder / f"{name}.md", to_markdown(short))
        write_atomically(folder / f"{name}.tex", to_latex(short))


def for_people(rows: Rows) -> list[dict[str, str]]:
    """The table in brief: rounded, without columns that say nothing, the spread behind its number.

    Quartiles stand in brackets behind the median, and standard deviations in parentheses behind the
    mean, where there are several runs that differ; those of costs and orders are left out.
    """
    names = [name for name in columns(rows) if _says_something(name, rows)]
    several = any((row.get("runs") or 1) > 1 for row in rows)
    found: list[dict[str, str]] = [{} for _ in rows]
    for name in names:
        stem, ending = _parts(name)
        if ending in (*QUARTILES, SPREAD[1]) or name == LIMITED_OF:
            continue  # with what they belong to
        if ending == SPREAD[0] and not several:
            continue  # the number itself
        for row, cells in zip(rows, found, strict=True):
            cells[f"{stem} mean" if ending else name] = _cell(row, name, several)
    return found


def _cell(row: Mapping[str, Any], name: str, several: bool) -> str:
    """A number with its spread, or of how many it is."""
    text, (stem, ending) = shown(row.get(name)), _parts(name)
    if name == "limited" and row.get(LIMITED_OF):
        return f"{text} of {row[LIMITED_OF]}"
    if ending:
        deviation = row.get(f"{stem}{SPREAD[1]}")
        return text if deviation is None else f"{text} ({shown(deviation)})"
    low, high = (row.get(f"{name}{end}") for end in QUARTILES)
    if not several or low is None or not _has_spread(name):
        return text
    spread = [shown(low), shown(high)]
    return text if set(spread) == {text} else f"{text} [{', '.join(spread)}]"


def _parts(name: str) -> tuple[str, str]:
    """A column's name without its ending, and that."""
    for ending in (*QUARTILES, *SPREAD):
        if name.endswith(ending):
            return name.removesuffix(ending), ending
    return name, ""


def _has_spread(name: str) -> bool:
    return name in ("loss", "heldout_residual", *ERRORS) or name.startswith(METRICS)


def _says_something(name: str, rows: Rows) -> bool:
    """Whether a column holds anything; what is counted or numbered, anything but zero."""
    values = [row.get(name) for row in rows]
    if name in ("window", "left_out", "limited"):
        return any(values)
    return any(value is not None for value in values)


def columns(rows: Rows) -> list[str]:
    """All columns, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row))


def shown(value: Any) -> str:
    """A value in a table for people: ``-`` where there is none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= LONG:
        value = float(value)
    if not isinstance(value, float):
        return str(value)
    if value == 0:
        return "0"
    return f"{value:.3g}" if 0.01 <= abs(value) < 1000 else f"{value:.2e}"


def to_csv(rows: Rows) -> str:
    """All digits; an empty cell where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(rows), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if v is None else v for k, v in row.items()})
    return text.getvalue()


def to_markdown(rows: Rows) -> str:
    """A table; ``|`` is escaped."""
    names = columns(rows)
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    lines += [f"| {' | '.join(_escaped(shown(row.get(n))) for n in names)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


def to_latex(rows: Rows) -> str:
    """A ``tabular`` with rules of the package booktabs."""
    names = columns(rows)
    lines = [rf"\begin{{tabular}}{{{'l' * len(names)}}}", r"\toprule"]
    lines += [" & ".join(name.translate(LATEX) for name in names) + r" \\", r"\midrule"]
    lines += [
        " & ".join(shown(row.get(name)).translate(LATEX) for name in names) + r" \\" for row in rows
    ]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"
