"""CSV files: the delimiter found from the text, names from the header, and every number checked."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from kanpinn.io.data_files import Floats, check_size, refuse

DELIMITERS: Mapping[str, str] = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
"""The delimiters a CSV file may use, and how messages call them."""

_MISSING = frozenset({"", "na", "n/a", "#n/a", "null", "none", "nil", "-", "--", "?", "."})
_DECIMAL_COMMA = re.compile(r"[+-]?(\d[\d. ]*)?,\d+([eE][+-]?\d+)?")
_HEAD = 65_536  # characters looked at to find the delimiter, and rows of them
_SAMPLE_ROWS = 50
_NOT_TEXT = "is not a CSV file in UTF-8: it is binary, or in another encoding"


@dataclass(frozen=True, eq=False)
class CsvTable:
    """A CSV file whose first row is read.

    Attributes:
        path: the file.
        names: of all columns; ``0``, ``1``, ... without a header.
        has_header: whether the file gives the names.
        rows: line number and cells of the rows of numbers, which can be gone through once.
    """

    path: Path
    names: list[str]
    has_header: bool
    rows: Iterator[tuple[int, list[str]]]

    def numbers(self, wanted: Sequence[str]) -> dict[str, Floats]:
        """The wanted columns ``(n,)``; the others need not hold numbers.

        Raises:
            DataError: naming the line and the column, and what was found there.
        """
        positions = [self.names.index(name) for name in wanted]
        values = array("d")
        for line, cells in self.rows:
            if len(cells) != len(self.names):
                refuse(
                    self.path, f"line {line} has {len(cells)} values; {len(self.names)} are needed"
                )
            numbers = [_number(cells[k]) for k in positions]
            if not math.isfinite(sum(numbers)):  # one look per row: this loop costs the time
                self._check_cells(line, cells, positions, numbers)
            values.extend(numbers)
        table = np.array(values, dtype=np.float64).reshape(-1, len(wanted))
        return {name: table[:, k] for k, name in enumerate(wanted)}

    def _check_cells(
        self, line: int, cells: Sequence[str], positions: Sequence[int], numbers: Sequence[float]
    ) -> None:
        for k, number in zip(positions, numbers, strict=True):
            if not math.isfinite(number):
                problem = _cell_problem(cells[k].strip())
                refuse(self.path, f"line {line}, column {self.names[k]!r}: {problem}")


def open_csv(path: Path, needed: str, least: int, delimiter: str | None = None) -> CsvTable:
    """A CSV file, its delimiter found and its header read.

    Args:
        path: the file.
        needed: what the columns are for, for messages.
        least: fewest columns that will do.
        delimiter: one of :data:`DELIMITERS`; found from the text if ``None``.

    Raises:
        DataError: if the file is no CSV in UTF-8, or has too few columns or unusable names.
    """
    found = _find_delimiter(_read_head(path))
    rows = _csv_rows(path, delimiter or found or ",")
    line, first = next(rows, (1, [""]))
    if len(first) < least:
        _refuse_few_columns(path, needed, line, first, delimiter, found)
    names, has_header = _header(path, line, first)
    body = rows if has_header else itertools.chain([(line, first)], rows)
    return CsvTable(path, names, has_header, body)


def _refuse_few_columns(
    path: Path,
    needed: str,
    line: int,
    first: Sequence[str],
    delimiter: str | None,
    found: str | None,
) -> NoReturn:
    used = f" with delimiter {DELIMITERS[delimiter]}" if delimiter else ""
    hint = f"allowed delimiters: {', '.join(DELIMITERS.values())}"
    if found and found != delimiter and len(first) == 1:
        hint = f"the delimiter seems to be {DELIMITERS[found]}"
    elif len(first[0].split()) > 1:
        hint = f"spaces do not separate columns; {hint}"
    columns = "only one column" if len(first) == 1 else f"only {len(first)} columns"
    refuse(path, f"{columns} found{used} (line {line}: {_clip(first[0])}), but {needed}; {hint}")


def _read_head(path: Path) -> str:
    """The first whole lines, checked to be text."""
    check_size(path, "", path.stat().st_size)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.read(_HEAD)
    except OSError as error:
        refuse(path, f"cannot be read: {error.strerror}", error)
    except UnicodeDecodeError as error:
        refuse(path, _NOT_TEXT, error)
    if "\0" in head:
        refuse(path, _NOT_TEXT)
    if not head.strip():
        refuse(path, "is empty")
    return head[: head.rfind("\n") + 1] or head if len(head) == _HEAD else head


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every row that is not blank."""
    # A byte-order mark is not part of the first name: utf-8-sig drops it.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
        try:
            for cells in reader:
                if len(cells) > 1 or (cells and cells[0].strip()):
                    yield reader.line_num, cells
        except csv.Error as error:
            refuse(path, f"line {reader.line_num} is not valid CSV: {error}", error)
        except UnicodeDecodeError as error:
            refuse(path, _NOT_TEXT, error)


def _find_delimiter(head: str) -> str | None:
    """The delimiter that gives equally long rows of numbers, or ``None`` if none gives columns."""
    lines = [line for line in io.StringIO(head, newline=None) if line.strip()][:_SAMPLE_ROWS]
    best: tuple[tuple[float, float, int], str] | None = None
    for delimiter in DELIMITERS:
        try:
            rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
        except csv.Error:
            continue
        width = len(rows[0])
        if width < 2:
            continue
        cells = [cell for row in rows[1:] or rows for cell in row]
        same_length = sum(len(row) == width for row in rows) / len(rows)
        numeric = sum(_looks_numeric(cell.strip()) for cell in cells) / max(len(cells), 1)
        score = (same_length, numeric, width)
        if best is None or score > best[0]:
            best = (score, delimiter)
    return best[1] if best else None


def _header(path: Path, line: int, cells: Sequence[str]) -> tuple[list[str], bool]:
    """Column names, and whether the first row gives them."""
    cells = [cell.strip() for cell in cells]
    cells[0] = cells[0].removeprefix("#").lstrip()  # as numpy.savetxt writes a header
    numbers = [cell for cell in cells if _looks_numeric(cell)]
    words = [cell for cell in cells if not _looks_numeric(cell) and cell.lower() not in _MISSING]
    if numbers and words:
        refuse(
            path,
            f"line {line} mixes names and numbers ({_clip(words[0])} and {_clip(numbers[0])}); "
            "a header holds names only, a row of data numbers only",
        )
    if numbers:
        return [str(k) for k in range(len(cells))], False
    for k, name in enumerate(cells):
        if not name:
            refuse(path, f"line {line}: column {k + 1} has no name")
        if name in cells[:k]:
            refuse(path, f"line {line}: the column name {name!r} appears twice")
    return cells, True


def _number(cell: str) -> float:
    """The cell's number; NaN if it is not one (Python's ``1_000`` is not a number in data)."""
    try:
        return math.nan if "_" in cell else float(cell)
    except ValueError:
        return math.nan


def _looks_numeric(cell: str) -> bool:
    if cell.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return True
    return not math.isnan(_number(cell)) or _DECIMAL_COMMA.fullmatch(cell) is not None


def _cell_problem(cell: str) -> str:
    if not cell:
        return "the value is missing (empty); every row needs a number"
    if cell.lower() in _MISSING or cell.lower().lstrip("+-") == "nan":
        return f"the value is missing ({_clip(cell)}); every row needs a number"
    if math.isinf(_number(cell)):
        return f"found {_clip(cell)}, which is not a finite number within float64"
    if _DECIMAL_COMMA.fullmatch(cell):
        return f"found {_clip(cell)}; use a point for decimals, not a comma"
    return f"found {_clip(cell)} where a number is needed"


def _clip(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
