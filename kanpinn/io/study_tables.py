"""Tables of a study as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kanpinn.io.run_folder import write_atomically

Rows = Sequence[Mapping[str, Any]]


def write_tables(folder: Path, levels: Rows, medians: Rows) -> None:
    """Write ``levels.csv`` with all rows, and ``medians`` as CSV, Markdown and LaTeX."""
    write_atomically(folder / "levels.csv", to_csv(levels))
    write_atomically(folder / "medians.csv", to_csv(medians))
    write_atomically(folder / "medians.md", to_markdown(medians))
    write_atomically(folder / "medians.tex", to_latex(medians))


def columns(rows: Rows) -> list[str]:
    """All columns, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row))


def shown(value: Any) -> str:
    """A value in a table for people: ``-`` where there is none."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
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
    """A table of numbers rounded for people."""
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
