"""Points to evaluate a solution at, and the table of what came out: CSV and NPZ files."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kanpinn.errors import DataError

Floats = NDArray[np.float64]

TEXT, ARRAYS = (".csv", ".tsv", ".txt"), (".npz",)
DELIMITERS = (",", ";", "\t", "|")


def read_points(path: Path, names: Sequence[str]) -> Floats:
    """The columns of the named coordinates, ``(n, d)``, finite.

    CSV: with a header that names the coordinates, in any order and among other columns; or
    without one, and then exactly one column per coordinate. NPZ: an array ``(n,)`` per
    coordinate, or one array ``(n, d)``.

    Raises:
        DataError: naming the file, the line or the array, and what is needed.
    """
    check_suffix(path)
    if not path.is_file():
        raise DataError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        points = _read_arrays(path, names) if path.suffix in ARRAYS else _read_text(path, names)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    bad = np.argwhere(~np.isfinite(points))
    if len(bad):
        row, axis = bad[0]
        raise DataError(
            f"{path}: point {row} (from 0): {names[axis]} is {points[row, axis]}, allowed: finite "
            "numbers"
        )
    return points


def check_suffix(path: Path) -> None:
    """Check that a file is of a kind that can be read and written.

    Raises:
        DataError: naming the allowed suffixes.
    """
    if path.suffix not in TEXT + ARRAYS:
        allowed = ", ".join(TEXT + ARRAYS)
        raise DataError(f"{path}: found the suffix {path.suffix!r}, allowed: {allowed}")


def check_free(path: Path, force: bool) -> None:
    """Check that a table can be written, as far as that can be told beforehand.

    Raises:
        DataError: if the suffix is unknown, the file exists, or its folder does not.
    """
    check_suffix(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder, a file is needed")
    if path.exists() and not force:
        raise DataError(f"{path}: exists and is not written over; --force does")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}")


def write_columns(path: Path, columns: Mapping[str, Floats], force: bool = False) -> None:
    """Write columns ``(n,)`` by name, as CSV with a header or as arrays; all digits are kept.

    Raises:
        DataError: see :func:`check_free`; or if the file cannot be written.
    """
    check_free(path, force)
    buffer = io.BytesIO()
    if path.suffix in ARRAYS:
        np.savez(buffer, **dict(columns))  # type: ignore[arg-type]
    else:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        table = np.stack(list(columns.values()), axis=1)
        header = delimiter.join(columns)
        np.savetxt(buffer, table, "%.17g", delimiter, header=header, comments="")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(buffer.getvalue())
        if force:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)  # unlike a rename, never on top of another file
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _read_text(path: Path, names: Sequence[str]) -> Floats:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: binary, or not in UTF-8; allowed: CSV text") from error
    lines = [(n, line) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: empty; allowed: a header ({','.join(names)}) and numbers")
    delimiter = next((d for d in DELIMITERS if d in lines[0][1]), None)
    table = [(n, [c.strip().strip('"') for c in line.split(delimiter)]) for n, line in lines]
    head = table[0][1]
    if any(_number(cell) is None for cell in head):
        missing = [name for name in names if name not in head]
        if missing:
            raise DataError(
                f"{path}: the header has no column {missing[0]!r}; found {', '.join(head)}, "
                f"needed: {', '.join(names)}"
            )
        positions, table = [head.index(name) for name in names], table[1:]
        if not table:
            raise DataError(f"{path}: a header without numbers below it")
    elif len(head) != len(names):
        raise DataError(
            f"{path}: found {len(head)} columns and no header, allowed: {len(names)} columns "
            f"({', '.join(names)}), or a header that names them"
        )
    else:
        positions = list(range(len(names)))
    width = len(head)
    return np.array([_row(path, n, cells, width, positions) for n, cells in table])


def _row(
    path: Path, line: int, cells: Sequence[str], width: int, positions: Sequence[int]
) -> list[float]:
    if len(cells) != width:
        raise DataError(f"{path}: line {line} has {len(cells)} values; {width} are needed")
    values = [_number(cells[k]) for k in positions]
    for k, value in zip(positions, values, strict=True):
        if value is None:
            raise DataError(f"{path}: line {line}: found {cells[k][:40]!r}, allowed: a number")
    return [value for value in values if value is not None]


def _number(cell: str) -> float | None:
    try:
        return float(cell) if "_" not in cell else None
    except ValueError:
        return None if cell else math.nan


def _read_arrays(path: Path, names: Sequence[str]) -> Floats:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: is not an NPZ file (one array without a name)")
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{path}: is not an NPZ file of numbers, or is damaged") from error
    shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
    if all(name in arrays and arrays[name].ndim == 1 for name in names):
        columns = [arrays[name] for name in names]
    else:
        columns = [array for array in arrays.values() if array.shape[1:] == (len(names),)]
        columns = list(columns[0].T) if len(columns) == 1 else []
    lengths = {len(column) for column in columns}
    if len(lengths) != 1 or lengths == {0} or any(c.dtype.kind not in "iuf" for c in columns):
        raise DataError(
            f"{path}: found {shapes}, allowed: arrays {', '.join(names)} of numbers, all of one "
            f"length, or a single array (n, {len(names)})"
        )
    return np.stack(columns, axis=1).astype(np.float64)
