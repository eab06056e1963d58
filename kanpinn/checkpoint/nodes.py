"""Groups, arrays and text in HDF5: plain to write, and distrustful to read.

Only fixed-length text, numbers and flags are written, uncompressed and contiguous, so that a
reader knows what a dataset costs before it reads it. Reading refuses everything else: links out of
the file, external or virtual storage, filters, variable lengths, and declared sizes that add up to
more than the file holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kanpinn.errors import CheckpointError

Array = NDArray[Any]

FLOATS = ("float64", "float32")
STORED_TYPES = (*FLOATS, "int64", "int32", "int16", "int8", "uint8", "bool")
MAX_ATTRIBUTE = 4096  # bytes of an attribute that is read


def link_name(name: str) -> str:
    """A name as an HDF5 link: ``/`` and ``%`` as ``%2F`` and ``%25``, a lone ``.`` as ``%2E``."""
    quoted = name.replace("%", "%25").replace("/", "%2F")
    return "%2E" if quoted == "." else quoted


def plain_name(link: str) -> str:
    """The name behind a link."""
    return link.replace("%2E", ".").replace("%2F", "/").replace("%25", "%")


# --- writing -----------------------------------------------------------------------------------
def put_array(group: h5py.Group, name: str, values: Array) -> None:
    """Write an array, in its own type.

    Raises:
        CheckpointError: if the type is none of :data:`STORED_TYPES`.
    """
    array = np.asarray(values)
    if array.dtype.kind != "S" and array.dtype.name not in STORED_TYPES:
        raise CheckpointError(f"{group.name}/{name}: type {array.dtype} cannot be stored")
    dtype = array.dtype if array.dtype.kind == "S" else array.dtype.newbyteorder("<")
    group.create_dataset(link_name(name), data=array.astype(dtype, order="C", copy=False))


def put_texts(group: h5py.Group, name: str, values: Sequence[str]) -> None:
    """Write a column of text, ``(n,)``, as UTF-8 of a fixed length."""
    rows = [value.encode() for value in values]
    width = max(map(len, rows), default=0)
    group.create_dataset(link_name(name), data=np.array(rows, dtype=_text_type(width)))


def put_json(group: h5py.Group, name: str, value: Any) -> None:
    """Write a value as JSON text.

    Raises:
        CheckpointError: if it is not made of mappings, lists, text, numbers, flags and null.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, indent=1).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{name}: cannot be stored as JSON: {error}") from error
    _put_bytes(group, name, text)


def put_text(group: h5py.Group, name: str, text: str) -> None:
    """Write one text, of any length."""
    _put_bytes(group, name, text.encode())


def _put_bytes(group: h5py.Group, name: str, text: bytes) -> None:
    group.create_dataset(link_name(name), data=np.array(text, dtype=_text_type(len(text))))


def put_attributes(group: h5py.Group, **values: Any) -> None:
    """Write attributes: numbers, flags, short text, lists of integers; ``None`` is left out."""
    for name, value in values.items():
        if isinstance(value, str):
            data = value.encode()
            group.attrs[name] = np.array(data, dtype=_text_type(len(data)))
        elif isinstance(value, list | tuple):
            group.attrs[name] = np.array(value, dtype="<i8")
        elif value is not None:
            group.attrs[name] = value


def _text_type(width: int) -> Any:
    return h5py.string_dtype("utf-8", max(width, 1))


# --- reading -----------------------------------------------------------------------------------
@dataclass
class _Budget:
    """Bytes that may still be read: together no more than the file holds."""

    left: int

    def spend(self, size: int, path: str) -> None:
        if size > self.left:
            raise CheckpointError(f"{path}: declares {size} bytes, more than the file holds")
        self.left -= size


class Node:
    """A group that is read with suspicion.

    Args:
        group: the group.
        budget: bytes that may be read, shared by all nodes of a file.
    """

    def __init__(self, group: h5py.Group, budget: _Budget) -> None:
        self._group, self._budget = group, budget
        self.path = str(group.name).rstrip("/")

    @classmethod
    def root(cls, file: h5py.File, size: int) -> Node:
        """The root of a file of that size."""
        return cls(file["/"], _Budget(size))

    def __contains__(self, name: str) -> bool:
        return link_name(name) in self._group

    def __iter__(self) -> Iterator[str]:
        """Names of what is in the group, sorted."""
        return iter(sorted(plain_name(link) for link in self._group))

    def group(self, name: str) -> Node:
        """A group in it."""
        found = self._member(name)
        if not isinstance(found, h5py.Group):
            raise CheckpointError(f"{self.path}/{name}: is not a group")
        return Node(found, self._budget)

    def array(
        self, name: str, types: Sequence[str] = STORED_TYPES, shape: Sequence[int] | None = None
    ) -> Array:
        """An array of one of the types, and of that shape if one is given."""
        data = self._dataset(name)
        path = f"{self.path}/{name}"
        if data.dtype.name not in types or data.dtype.byteorder == ">":
            raise CheckpointError(f"{path}: has type {data.dtype}, allowed: {', '.join(types)}")
        if shape is not None and data.shape != tuple(shape):
            raise CheckpointError(f"{path}: has shape {data.shape}, {tuple(shape)} is needed")
        return self._read(data, path)

    def texts(self, name: str) -> list[str]:
        """A column of text, ``(n,)``."""
        data = self._dataset(name)
        path = f"{self.path}/{name}"
        if data.dtype.kind != "S" or data.ndim != 1:
            raise CheckpointError(f"{path}: is not a column of fixed-length text")
        return [_decoded(row, path) for row in self._read(data, path).tolist()]

    def is_text(self, name: str) -> bool:
        """Whether a dataset holds text."""
        return bool(self._dataset(name).dtype.kind == "S")

    def json(self, name: str) -> Any:
        """A value stored as JSON text."""
        path = f"{self.path}/{name}"
        try:
            return json.loads(self.document(name))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: is not valid JSON: {error}") from error

    def document(self, name: str) -> str:
        """One text of any length."""
        data, path = self._dataset(name), f"{self.path}/{name}"
        if data.dtype.kind != "S" or data.shape != ():
            raise CheckpointError(f"{path}: is not one fixed-length text")
        return _decoded(bytes(self._read(data, path)[()]), path)

    def mapping(self, name: str) -> dict[str, Any]:
        """A JSON object."""
        value = self.json(name)
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.path}/{name}: is not a JSON object")
        return value

    def attribute(self, name: str) -> Any:
        """An attribute as a Python value, or ``None`` if there is none of that name."""
        if name not in self._group.attrs:
            return None
        handle = self._group.attrs.get_id(name)
        path = f"{self.path or '/'}@{name}"
        shape: tuple[int, ...] = handle.shape
        kind = np.dtype(handle.dtype).kind
        size = math.prod(shape) * np.dtype(handle.dtype).itemsize
        if kind not in "Sbiuf" or len(shape) > 1 or size > MAX_ATTRIBUTE:
            raise CheckpointError(f"{path}: is not a number, a flag, or a short text or list")
        value = np.asarray(self._group.attrs[name])
        return _decoded(bytes(value[()]), path) if kind == "S" else value.tolist()

    def integer(self, name: str, least: int = 0) -> int:
        """An attribute that is a whole number."""
        return int(self._typed(name, int, least))

    def number(self, name: str) -> float:
        """An attribute that is a number."""
        return float(self._typed(name, float))

    def flag(self, name: str) -> bool:
        """An attribute that is a flag."""
        return bool(self._typed(name, bool))

    def text(self, name: str, allowed: Sequence[str] | None = None) -> str:
        """An attribute that is text, one of those allowed if they are given."""
        value = str(self._typed(name, str))
        if allowed is not None and value not in allowed:
            raise CheckpointError(
                f"{self.path}@{name}: found {value!r}, allowed: {', '.join(allowed)}"
            )
        return value

    def _typed(self, name: str, kind: type, least: int | None = None) -> Any:
        value = self.attribute(name)
        path = f"{self.path or '/'}@{name}"
        if value is None:
            raise CheckpointError(f"{path}: this attribute is missing")
        found = type(value)
        if found is not kind:
            raise CheckpointError(f"{path}: found {found.__name__}, allowed: {kind.__name__}")
        if least is not None and value < least:
            raise CheckpointError(f"{path}: found {value}, allowed: at least {least}")
        return value

    def _member(self, name: str) -> Any:
        link = link_name(name)
        if link not in self._group:
            raise CheckpointError(f"{self.path}/{name}: is missing")
        if not isinstance(self._group.get(link, getlink=True), h5py.HardLink):
            raise CheckpointError(f"{self.path}/{name}: is a link to another place")
        return self._group[link]

    def _dataset(self, name: str) -> h5py.Dataset:
        found = self._member(name)
        if not isinstance(found, h5py.Dataset):
            raise CheckpointError(f"{self.path}/{name}: is not a dataset")
        if found.shape is None:
            raise CheckpointError(f"{self.path}/{name}: holds no data")
        return found

    def _read(self, data: h5py.Dataset, path: str) -> Array:
        """The values, once it is sure that they lie in the file, plainly and in full."""
        size = math.prod(data.shape) * data.dtype.itemsize
        self._budget.spend(size, path)
        plist = data.id.get_create_plist()
        plain = plist.get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
        if not plain or plist.get_external_count() or data.id.get_storage_size() != size:
            raise CheckpointError(f"{path}: is not stored contiguously in the file")
        return np.asarray(data[()]).reshape(data.shape)


def _decoded(data: bytes, path: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is not UTF-8 text") from error
