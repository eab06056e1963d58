"""The user's tables of numbers: CSV, NPZ and HDF5 files, for regression and for evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kanpinn.io.array_files import open_arrays
from kanpinn.io.csv_files import DELIMITERS, open_csv
from kanpinn.io.data_files import (
    Floats,
    Names,
    file_kind,
    known_columns,
    refuse,
    refuse_column,
)

MIN_ROWS = 2
"""Fewest rows a regression can have."""

# What a reader returns: the columns that are needed, and the names of the inputs and the outputs.
_Columns = tuple[dict[str, Floats], Names, Names]


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
        delimiter: of a CSV file: comma, semicolon, ``|``, or a tab, also as ``"tab"``; found from
            the text if ``None``.
        group: of an HDF5 file, the group that holds the arrays; the root if ``None``.

    Raises:
        DataError: naming the file, the line and column, what was found and what is allowed.
    """
    path = Path(path)
    kind = file_kind(path)
    chosen_in, chosen_out = _as_names(inputs), _as_names(outputs)
    delimiter = "\t" if delimiter == "tab" else delimiter
    if delimiter is not None and (kind != "csv" or delimiter not in DELIMITERS):
        allowed = f"allowed: {', '.join(DELIMITERS.values())}" if kind == "csv" else "for CSV only"
        refuse(path, f"delimiter {delimiter!r} cannot be used here; {allowed}")
    if group is not None and kind != "hdf5":
        refuse(path, f"group {group!r} cannot be used here; for HDF5 only")
    if kind == "csv":
        columns, names_in, names_out = _from_csv(path, chosen_in, chosen_out, delimiter)
    else:
        columns, names_in, names_out = _from_arrays(path, kind, chosen_in, chosen_out, group or "/")
    _check_columns(path, columns, names_in, names_out)
    return Table(
        inputs=np.stack([columns[name] for name in names_in], axis=1),
        outputs=np.stack([columns[name] for name in names_out], axis=1),
        input_names=names_in,
        output_names=names_out,
        path=path,
    )


def read_points(path: str | Path, names: Sequence[str]) -> Floats:
    """The columns of the named coordinates, ``(n, d)``, finite.

    CSV: with a header that names the coordinates, in any order and among other columns; or
    without one, and then exactly one column per coordinate. NPZ and HDF5: an array ``(n,)`` per
    coordinate, or a single array ``(n, d)``. Formats are those of :func:`read_table`.

    Raises:
        DataError: naming the file, the line or the array, what was found and what is allowed.
    """
    path = Path(path)
    kind = file_kind(path)
    if kind == "csv":
        columns = _points_from_csv(path, names)
    else:
        columns = _points_from_arrays(path, kind, names)
    _check_lengths(path, dict(zip(names, columns, strict=True)), least=1)
    return np.stack(columns, axis=1)


def _points_from_csv(path: Path, names: Sequence[str]) -> list[Floats]:
    needed = f"the columns {', '.join(names)} are needed"
    table = open_csv(path, needed, len(names))
    wanted = list(names)
    if not table.has_header:
        if len(table.names) != len(names):
            refuse(
                path,
                f"has {len(table.names)} columns and no header; allowed: {len(names)} columns "
                f"({', '.join(names)}), or a header that names them",
            )
        wanted = table.names
    for name in wanted:
        if name not in table.names:
            refuse_column(path, name, table.names)
    columns = table.numbers(wanted)
    return [columns[name] for name in wanted]


def _points_from_arrays(path: Path, kind: str, names: Sequence[str]) -> list[Floats]:
    with open_arrays(path, kind) as file:
        if set(names) <= set(file.names):
            arrays = [file.array(name) for name in names]
        else:
            arrays = [file.array(file.names[0])] if len(file.names) == 1 else []
        columns = [column for array in arrays for column in array.T]
        if len(columns) != len(names):
            refuse(
                path,
                f"found the arrays {', '.join(file.names)}; allowed: {', '.join(names)}, each "
                f"(n,), or a single array (n, {len(names)})",
            )
        return columns


# --- what is chosen of a file -------------------------------------------------------------------
def _as_names(names: Sequence[str | int]) -> Names:
    return (names,) if isinstance(names, str) else tuple(str(name) for name in names)


def _from_csv(path: Path, inputs: Names, outputs: Names, delimiter: str | None) -> _Columns:
    table = open_csv(path, "an input and an output are needed", 2, delimiter)
    inputs, outputs = _choose_csv(path, table.names, inputs, outputs)
    return table.numbers((*inputs, *outputs)), inputs, outputs


def _choose_csv(
    path: Path, names: Sequence[str], inputs: Names, outputs: Names
) -> tuple[Names, Names]:
    for name in (*inputs, *outputs):
        if name not in names:
            refuse_column(path, name, names)
    if not outputs:
        if names[-1] in inputs:
            refuse(
                path,
                f"the last column {names[-1]!r} is the output unless outputs are chosen, "
                "but it is chosen as an input; choose outputs",
            )
        outputs = (names[-1],)
    return inputs or tuple(name for name in names if name not in outputs), outputs


def _from_arrays(path: Path, kind: str, inputs: Names, outputs: Names, group: str) -> _Columns:
    with open_arrays(path, kind, group) as file:
        if not inputs or not outputs:
            refuse(path, f"needs both inputs and outputs to be chosen; {known_columns(file.names)}")
        columns: dict[str, Floats] = {}
        chosen: list[Names] = []
        for names in (inputs, outputs):
            parts = [file.columns(name) for name in names]
            chosen.append(tuple(key for part in parts for key in part))
            for part in parts:
                columns.update(part)
        return columns, chosen[0], chosen[1]


# --- checks that all formats share --------------------------------------------------------------
def _check_columns(
    path: Path, columns: Mapping[str, Floats], inputs: Names, outputs: Names
) -> None:
    for kind, names in (("inputs", inputs), ("outputs", outputs)):
        if not names:
            refuse(path, f"no {kind} are left to choose; {known_columns(list(columns))}")
    chosen = (*inputs, *outputs)
    for name in chosen:
        if chosen.count(name) > 1:
            both = name in inputs and name in outputs
            where = "an input and an output" if both else "chosen twice"
            refuse(path, f"column {name!r} is {where}; name it once")
    _check_lengths(path, {name: columns[name] for name in chosen}, MIN_ROWS)
    for name in chosen:
        column = columns[name]
        if column.min() == column.max():
            refuse(
                path,
                f"column {name!r} is constant ({column[0]:g} in all {len(column)} rows); "
                "leave it out",
            )


def _check_lengths(path: Path, columns: Mapping[str, Floats], least: int) -> None:
    (first, n), *others = [(name, len(column)) for name, column in columns.items()]
    for name, length in others:
        if length != n:
            refuse(path, f"column {first!r} has {n} rows but {name!r} has {length}")
    if n < least:
        refuse(path, f"holds {n} row(s) of numbers; at least {least} are needed")
