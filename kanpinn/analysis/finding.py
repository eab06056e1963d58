"""What an analysis found: a table to print, and the curves of its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kanpinn.errors import ConfigError
from kanpinn.solution import Solution

Row = Mapping[str, Any]
Case = tuple[Mapping[str, str], Solution]
"""A run: labels that tell it from others, and its solution."""


@dataclass(frozen=True)
class Finding:
    """The result of an analysis.

    Attributes:
        kind: name of the analysis; figures are drawn by it.
        title: in a few words.
        text: how it was measured, and what it says.
        rows: the table, one mapping of columns to numbers or words a line.
        curves: what only figures show (eigenvalues, spectra), in the same form.
    """

    kind: str
    title: str
    text: str
    rows: list[dict[str, Any]]
    curves: tuple[Row, ...] = ()


def labelled(labels: Mapping[str, str], row: Row) -> dict[str, Any]:
    """A line of a case: its labels, then what was found.

    Raises:
        ConfigError: if a label is called like a column.
    """
    for name in labels:
        if name in row:
            raise ConfigError(f"axis {name!r}: is a column of the analysis; choose another name")
    return {**labels, **row}


def named(labels: Mapping[str, str]) -> str:
    """The labels of a case in a line."""
    return ", ".join(f"{name}={value}" for name, value in labels.items()) or "run"
