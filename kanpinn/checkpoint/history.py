"""The run's history as columns: one dataset each, and where a line has no value, why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from kanpinn.checkpoint.nodes import Node, put_array, put_json, put_texts
from kanpinn.errors import CheckpointError

VALUE, NULL, ABSENT = 0, 1, 2
_FILLERS: dict[type, Any] = {str: "", bool: False, int: 0, float: float("nan")}


def put_history(file: h5py.Group, rows: Sequence[dict[str, Any]]) -> None:
    """Write the columns of the rows.

    Raises:
        CheckpointError: if a value is neither a number, nor a flag, nor text, nor ``None``.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    put_json(file, "history_columns", names)
    columns, gaps = file.create_group("history"), file.create_group("history_gaps")
    for name in names:
        marks = [_mark(row, name) for row in rows]
        given = [row[name] for row, mark in zip(rows, marks, strict=True) if mark == VALUE]
        kind = _kind(name, given)
        values = [
            row[name] if mark == VALUE else _FILLERS[kind]
            for row, mark in zip(rows, marks, strict=True)
        ]
        if kind is str:
            put_texts(columns, name, values)
        else:
            put_array(columns, name, np.array(values, dtype=_TYPES[kind]))
        if any(marks):
            put_array(gaps, name, np.array(marks, dtype=np.uint8))


def read_history(root: Node) -> list[dict[str, Any]]:
    """The rows, as they were logged."""
    names = root.json("history_columns")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError("/history_columns: is not a list of names")
    columns, gaps = root.group("history"), root.group("history_gaps")
    read: dict[str, tuple[list[Any], list[int]]] = {}
    length: int | None = None
    for name in names:
        if columns.is_text(name):
            values: list[Any] = columns.texts(name)
        else:
            values = columns.array(name).tolist()
        length = len(values) if length is None else length
        marks = gaps.array(name, ("uint8",)).tolist() if name in gaps else [VALUE] * len(values)
        if len(values) != length or len(marks) != length:
            raise CheckpointError(f"/history/{name}: has {len(values)} lines, others {length}")
        read[name] = (values, marks)
    return [_row(read, number) for number in range(length or 0)]


_TYPES: dict[type, str] = {bool: "bool", int: "<i8", float: "<f8"}


def _mark(row: dict[str, Any], name: str) -> int:
    if name not in row:
        return ABSENT
    return NULL if row[name] is None else VALUE


def _kind(name: str, values: Sequence[Any]) -> type:
    """The one type of a column; whole numbers among others count as floating-point numbers."""
    kinds = {_plain(value) for value in values}
    if not kinds or kinds == {int, float}:
        return float
    if len(kinds) > 1 or not kinds <= set(_FILLERS):
        shown = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise CheckpointError(f"history column {name!r}: values of type {shown} cannot be stored")
    return kinds.pop()


def _plain(value: Any) -> type:
    kinds: dict[type, tuple[type, ...]] = {
        bool: (bool, np.bool_),
        int: (int, np.integer),
        float: (float, np.floating),
        str: (str,),
    }
    return next((kind for kind, like in kinds.items() if isinstance(value, like)), type(value))


def _row(columns: dict[str, tuple[list[Any], list[int]]], number: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, (values, marks) in columns.items():
        if marks[number] == VALUE:
            row[name] = values[number]
        elif marks[number] == NULL:
            row[name] = None
    return row
