"""The user's tables of numbers: CSV, NPZ and HDF5 files."""

from __future__ import annotations

import csv
import difflib
import io
import itertools
import math
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np
from numpy.typing import NDArray

from kanpinn.errors import DataError

DELIMITERS: Mapping[str, str] = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
"""The delimiters a CSV file may use, and how messages call them."""
MIN_ROWS = 2
"""Fewest rows that can be read."""
MAX_BYTES = 2_000_000_000
"""Largest CSV file, and largest single array, that is read into memory."""

Floats = NDArray[np.float64]
Names = tuple[str, ...]
# What a reader returns: the columns that are needed, and the names of the inputs and the outputs.
_Columns = tuple[dict[str, Floats], Names, Names]

_MISSING = frozenset({"", "na", "n/a", "#n/a", "null", "none", "nil", "-", "--", "?", "."})
_DECIMAL_COMMA = re.compile(r"[+-]?(\d[\d. ]*)?,\d+([eE][+-]?\d+)?")
_HEAD = 65_536  # characters looked at to find the delimiter, and rows of them
_SAMPLE_ROWS = 50
_NOT_TEXT = "is not a CSV file in UTF-8: it is binary, or in another encoding"


@dataclass(frozen=True, eq=False)
class Table:
    """Columns read from a file.

    Attributes:
        inputs: ``(n, d)``, float64, finite.
        outputs: ``(n, m)``, float64, finite.
        input_names: ``d`` column names.
        output_names: ``m`` column names.
        path: the file.
    """

    inputs: Floats
    outputs: Floats
    input_names: Names
    output_names: Names
    path: Path


def read_table(
    path: str | Path,
    inputs: Sequence[str | int] = (),
    outputs: Sequence[str | int] = (),
    delimiter: str | None = None,
    group: str | None = None,
) -> Table:
    """Read the input and output columns of a regression.

    CSV (``.csv .tsv .txt .dat``): UTF-8 text with one header row; without one (every cell of the
    first row is a number) the columns are called ``0``, ``1``, ... If no columns are chosen, the
    last one is the output and the others are the inputs; if only the outputs are chosen, all
    others are inputs; if only the inputs are, the last column is the output.

    NPZ (``.npz``) and HDF5 (``.h5 .hdf5 .hdf``): each array is a column under its own name (in
    HDF5 its path below ``group``); column ``k`` of a two-dimensional array ``A`` is ``A.k``,
    counted from 0, and ``A`` alone stands for all its columns. Inputs and outputs must be chosen.

    Args:
        path: the file; its ending gives the format.
        inputs: names of the input columns.
        outputs: names of the output columns.
        delimiter: of a CSV file, one of :data:`DELIMITERS`; found from the text if ``None``.
        group: of an HDF5 file, the group that holds the arrays; the root if ``None``.

    Raises:
        DataError: naming the file, the line and column, what was found and what is allowed.
    """
    path = Path(path)
    kind = _file_kind(path)
    chosen_in, chosen_out = _as_names(inputs), _as_names(outputs)
    if delimiter is not None and (kind != "csv" or delimiter not in DELIMITERS):
        allowed = f"allowed: {', '.join(DELIMITERS.values())}" if kind == "csv" else "for CSV only"
        _refuse(path, f"delimiter {delimiter!r} cannot be used here; {allowed}")
    if group is not None and kind != "hdf5":
        _refuse(path, f"group {group!r} cannot be used here; for HDF5 only")
    if kind == "csv":
        columns, names_in, names_out = _read_csv(path, chosen_in, chosen_out, delimiter)
    elif kind == "npz":
        columns, names_in, names_out = _read_npz(path, chosen_in, chosen_out)
    else:
        columns, names_in, names_out = _read_hdf5(path, chosen_in, chosen_out, group or "/")
    _check_columns(path, columns, names_in, names_out)
    return Table(
        inputs=np.stack([columns[name] for name in names_in], axis=1),
        outputs=np.stack([columns[name] for name in names_out], axis=1),
        input_names=names_in,
        output_names=names_out,
        path=path,
    )


# --- checks that all formats share --------------------------------------------------------------
_KINDS = {
    **dict.fromkeys((".csv", ".tsv", ".txt", ".dat"), "csv"),
    ".npz": "npz",
    **dict.fromkeys((".h5", ".hdf5", ".hdf"), "hdf5"),
}


def _refuse(path: Path, problem: str, cause: BaseException | None = None) -> NoReturn:
    raise DataError(f"data file {str(path)!r}: {problem}") from cause


def _file_kind(path: Path) -> str:
    if not path.exists():
        _refuse(path, "does not exist")
    if not path.is_file():
        _refuse(path, "is a folder; name a file" if path.is_dir() else "is not an ordinary file")
    if not os.access(path, os.R_OK):
        _refuse(path, "cannot be read: permission denied")
    if path.stat().st_size == 0:
        _refuse(path, "is empty")
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        _refuse(path, f"has an unknown ending {path.suffix!r}; allowed: {' '.join(_KINDS)}")
    return kind


def _as_names(names: Sequence[str | int]) -> Names:
    return (names,) if isinstance(names, str) else tuple(str(name) for name in names)


def _known(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return f"columns: {shown}" + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _unknown(path: Path, name: str, names: Sequence[str]) -> NoReturn:
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    _refuse(path, f"has no column {name!r}; {hint}{_known(names)}")


def _check_columns(
    path: Path, columns: Mapping[str, Floats], inputs: Names, outputs: Names
) -> None:
    for kind, names in (("inputs", inputs), ("outputs", outputs)):
        if not names:
            _refuse(path, f"no {kind} are left to choose; {_known(list(columns))}")
    for name in (*inputs, *outputs):
        if (*inputs, *outputs).count(name) > 1:
            both = name in inputs and name in outputs
            where = "an input and an output" if both else "chosen twice"
            _refuse(path, f"column {name!r} is {where}; name it once")
    lengths = {name: len(columns[name]) for name in (*inputs, *outputs)}
    (first, n), *others = lengths.items()
    for name, length in others:
        if length != n:
            _refuse(path, f"column {first!r} has {n} rows but {name!r} has {length}")
    if n < MIN_ROWS:
        _refuse(path, f"holds {n} row(s) of numbers; at least {MIN_ROWS} are needed")
    for name in lengths:
        column = columns[name]
        if column.min() == column.max():
            _refuse(
                path, f"column {name!r} is constant ({column[0]:g} in all {n} rows); leave it out"
            )


# --- CSV ---------------------------------------------------------------------------------------
def _read_csv(path: Path, inputs: Names, outputs: Names, delimiter: str | None) -> _Columns:
    found = _find_delimiter(_read_head(path))
    rows = _csv_rows(path, delimiter or found or ",")
    line, first = next(rows, (1, [""]))
    if len(first) < 2:
        _refuse_one_column(path, line, first[0], delimiter, found)
    names, has_header = _header(path, line, first)
    inputs, outputs = _choose_csv(path, names, inputs, outputs)
    body = rows if has_header else itertools.chain([(line, first)], rows)
    return _numbers(path, body, names, (*inputs, *outputs)), inputs, outputs


def _refuse_one_column(
    path: Path, line: int, text: str, delimiter: str | None, found: str | None
) -> NoReturn:
    used = f" with delimiter {DELIMITERS[delimiter]}" if delimiter else ""
    hint = f"allowed delimiters: {', '.join(DELIMITERS.values())}"
    if found:
        hint = f"the delimiter seems to be {DELIMITERS[found]}"
    elif len(text.split()) > 1:
        hint = f"spaces do not separate columns; {hint}"
    _refuse(
        path,
        f"only one column found{used} (line {line}: {_clip(text)}), "
        f"but an input and an output are needed; {hint}",
    )


def _read_head(path: Path) -> str:
    """The first whole lines, checked to be text."""
    if path.stat().st_size > MAX_BYTES:
        _refuse(path, f"has {path.stat().st_size} bytes; at most {MAX_BYTES} can be read")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.read(_HEAD)
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror}", error)
    except UnicodeDecodeError as error:
        _refuse(path, _NOT_TEXT, error)
    if "\0" in head:
        _refuse(path, _NOT_TEXT)
    if not head.strip():
        _refuse(path, "is empty")
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
            _refuse(path, f"line {reader.line_num} is not valid CSV: {error}", error)
        except UnicodeDecodeError as error:
            _refuse(path, _NOT_TEXT, error)


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
        _refuse(
            path,
            f"line {line} mixes names and numbers ({_clip(words[0])} and {_clip(numbers[0])}); "
            "a header holds names only, a row of data numbers only",
        )
    if numbers:
        return [str(k) for k in range(len(cells))], False
    for k, name in enumerate(cells):
        if not name:
            _refuse(path, f"line {line}: column {k + 1} has no name")
        if name in cells[:k]:
            _refuse(path, f"line {line}: the column name {name!r} appears twice")
    return cells, True


def _choose_csv(
    path: Path, names: Sequence[str], inputs: Names, outputs: Names
) -> tuple[Names, Names]:
    for name in (*inputs, *outputs):
        if name not in names:
            _unknown(path, name, names)
    if not outputs:
        if names[-1] in inputs:
            _refuse(
                path,
                f"the last column {names[-1]!r} is the output unless outputs are chosen, "
                "but it is chosen as an input; choose outputs",
            )
        outputs = (names[-1],)
    return inputs or tuple(name for name in names if name not in outputs), outputs


def _numbers(
    path: Path,
    rows: Iterable[tuple[int, list[str]]],
    names: Sequence[str],
    wanted: Sequence[str],
) -> dict[str, Floats]:
    """The wanted columns; the others need not hold numbers."""
    positions = [names.index(name) for name in wanted]
    values = array("d")
    for line, cells in rows:
        if len(cells) != len(names):
            _refuse(path, f"line {line} has {len(cells)} values; {len(names)} are needed")
        numbers = [_number(cells[k]) for k in positions]
        if not math.isfinite(sum(numbers)):  # one look per row: this loop is the cost of reading
            for k, number in zip(positions, numbers, strict=True):
                if not math.isfinite(number):
                    problem = _cell_problem(cells[k].strip())
                    _refuse(path, f"line {line}, column {names[k]!r}: {problem}")
        values.extend(numbers)
    table = np.array(values, dtype=np.float64).reshape(-1, len(wanted))
    return {name: table[:, k] for k, name in enumerate(wanted)}


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


# --- NPZ and HDF5 ------------------------------------------------------------------------------
def _read_npz(path: Path, inputs: Names, outputs: Names) -> _Columns:
    with path.open("rb") as file:  # opened here, so that it is closed if numpy fails
        try:
            archive = np.load(file, allow_pickle=False)
        except Exception as error:  # whatever a damaged file provokes
            _refuse(path, "is not an NPZ file, or is damaged or truncated", error)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            _refuse(path, "is not an NPZ file (one array without a name); save with numpy.savez")
        members = archive.zip.infolist() if archive.zip else []
        sizes = {member.filename.removesuffix(".npy"): member.file_size for member in members}

        def load(name: str) -> Any:
            _check_size(path, name, sizes.get(name, 0))
            try:
                return archive[name]
            except ValueError as error:
                if "pickle" in str(error):
                    _refuse(path, f"array {name!r} holds Python objects, not numbers", error)
                raise

        with archive:
            return _read_arrays(path, list(archive.files), load, inputs, outputs)


def _read_hdf5(path: Path, inputs: Names, outputs: Names, group: str) -> _Columns:
    try:
        file = h5py.File(path, "r")
    except Exception as error:  # whatever a damaged file provokes
        _refuse(path, "is not an HDF5 file, or is damaged or truncated", error)
    with file:
        try:
            root = file.get(group)
            names: list[str] = []
            if isinstance(root, h5py.Group):
                root.visititems(
                    lambda name, item: (
                        names.append(name) if isinstance(item, h5py.Dataset) else None
                    )
                )
        except Exception as error:  # whatever a damaged file provokes
            _refuse(path, "is damaged", error)
        if not isinstance(root, h5py.Group):
            _refuse(path, f"has no group {group!r}")

        def load(name: str) -> Any:
            dataset = root[name]
            if dataset.dtype.kind not in "biuf":
                _refuse(path, f"array {name!r} holds {dataset.dtype}, not numbers")
            _check_size(path, name, dataset.size * dataset.dtype.itemsize if dataset.shape else 0)
            return dataset[()]

        return _read_arrays(path, names, load, inputs, outputs)


def _check_size(path: Path, name: str, n_bytes: int) -> None:
    if n_bytes > MAX_BYTES:
        _refuse(path, f"array {name!r} has {n_bytes} bytes; at most {MAX_BYTES} can be read")


def _read_arrays(
    path: Path,
    names: Sequence[str],
    load: Callable[[str], Any],
    inputs: Names,
    outputs: Names,
) -> _Columns:
    if not names:
        _refuse(path, "holds no arrays")
    if not inputs or not outputs:
        _refuse(path, f"needs both inputs and outputs to be chosen; {_known(names)}")
    arrays: dict[str, Floats] = {}
    columns: dict[str, Floats] = {}

    def expand(column: str) -> Names:
        base, _, index = column.rpartition(".")
        name = column if column in names or base not in names else base
        if name not in names:
            _unknown(path, column, names)
        if name not in arrays:
            arrays[name] = _load_array(path, name, load)
        values = arrays[name]
        width = values.shape[1]
        if name == column:
            found = {column: 0} if width == 1 else {f"{name}.{k}": k for k in range(width)}
        elif _is_index(index, width):
            found = {column: int(index)}
        else:
            _refuse(path, f"has no column {column!r}; array {name!r} has {width} (from 0)")
        columns.update({key: values[:, k] for key, k in found.items()})
        return tuple(found)

    chosen = [tuple(key for name in group for key in expand(name)) for group in (inputs, outputs)]
    return columns, chosen[0], chosen[1]


def _is_index(text: str, width: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) < width


def _load_array(path: Path, name: str, load: Callable[[str], Any]) -> Floats:
    """One array as finite float64 columns ``(n, k)``."""
    try:
        loaded = load(name)
    except DataError:
        raise
    except Exception as error:  # whatever a damaged file provokes
        _refuse(path, f"array {name!r} is damaged and cannot be read", error)
    dtype = getattr(loaded, "dtype", None)
    if dtype is None or dtype.kind not in "biuf":
        _refuse(path, f"array {name!r} holds {dtype or type(loaded).__name__}, not numbers")
    values: NDArray[Any] = np.asarray(loaded)
    if values.ndim not in (1, 2) or (values.ndim == 2 and values.shape[1] == 0):
        _refuse(
            path, f"array {name!r} has the shape {values.shape}; (n,) or (n, columns) is needed"
        )
    columns = values[:, None] if values.ndim == 1 else values
    columns = columns.astype(np.float64)
    bad = np.argwhere(~np.isfinite(columns))
    if len(bad):
        row, k = bad[0]
        _refuse(
            path,
            f"array {name!r}: row {row}, column {k} (counted from 0) is {columns[row, k]}; "
            "every value must be finite",
        )
    return columns
