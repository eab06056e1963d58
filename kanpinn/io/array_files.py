"""NPZ and HDF5 files: arrays of numbers by name, whatever a damaged file provokes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kanpinn.errors import DataError
from kanpinn.io.data_files import Floats, check_size, refuse, refuse_column


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """An open file of arrays, each of them columns ``(n,)`` or ``(n, k)``.

    Attributes:
        path: the file.
        names: of the arrays.
        read: an array by name.
    """

    path: Path
    names: Sequence[str]
    read: Callable[[str], Any]
    _loaded: dict[str, Floats] = field(default_factory=dict)

    def array(self, name: str) -> Floats:
        """One array as columns ``(n, k)``, float64.

        Raises:
            DataError: if it holds no numbers, is not finite, damaged, or has more dimensions.
        """
        if name not in self._loaded:
            self._loaded[name] = _columns(self.path, name, self.read)
        return self._loaded[name]

    def columns(self, name: str) -> dict[str, Floats]:
        """The columns ``(n,)`` that a name stands for: all of an array ``A``, or ``A.k``.

        Raises:
            DataError: if there is no such array or column, or it cannot be used.
        """
        base, _, index = name.rpartition(".")
        array = name if name in self.names or base not in self.names else base
        if array not in self.names:
            refuse_column(self.path, name, self.names)
        values = self.array(array)
        width = values.shape[1]
        if array == name:
            return {name if width == 1 else f"{name}.{k}": values[:, k] for k in range(width)}
        if not _is_index(index, width):
            refuse(self.path, f"has no column {name!r}; array {array!r} has {width} (from 0)")
        return {name: values[:, int(index)]}


def _is_index(text: str, width: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) < width


@contextmanager
def open_arrays(path: Path, kind: str, group: str = "/") -> Iterator[ArrayFile]:
    """The arrays of a file while it is open.

    Args:
        path: the file.
        kind: ``"npz"`` or ``"hdf5"``.
        group: of an HDF5 file, the group that holds the arrays.

    Raises:
        DataError: if the file is of another format, damaged, or holds no arrays.
    """
    with _open_npz(path) if kind == "npz" else _open_hdf5(path, group) as file:
        if not file.names:
            refuse(path, "holds no arrays")
        yield file


@contextmanager
def _open_npz(path: Path) -> Iterator[ArrayFile]:
    with path.open("rb") as file:  # opened here, so that it is closed if numpy fails
        try:
            archive = np.load(file, allow_pickle=False)
        except Exception as error:  # whatever a damaged file provokes
            refuse(path, "is not an NPZ file, or is damaged or truncated", error)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            refuse(path, "is not an NPZ file (one array without a name); save with numpy.savez")
        members = archive.zip.infolist() if archive.zip else []
        sizes = {member.filename.removesuffix(".npy"): member.file_size for member in members}

        def read(name: str) -> Any:
            check_size(path, f"array {name!r}", sizes.get(name, 0))
            try:
                return archive[name]
            except ValueError as error:
                if "pickle" in str(error):
                    refuse(path, f"array {name!r} holds Python objects, not numbers", error)
                raise

        with archive:
            yield ArrayFile(path, list(archive.files), read)


@contextmanager
def _open_hdf5(path: Path, group: str) -> Iterator[ArrayFile]:
    try:
        file = h5py.File(path, "r")
    except Exception as error:  # whatever a damaged file provokes
        refuse(path, "is not an HDF5 file, or is damaged or truncated", error)
    with file:
        names: list[str] = []
        try:
            root = file.get(group)
            if isinstance(root, h5py.Group):
                root.visititems(
                    lambda name, item: (
                        names.append(name) if isinstance(item, h5py.Dataset) else None
                    )
                )
        except Exception as error:  # whatever a damaged file provokes
            refuse(path, "is damaged", error)
        if not isinstance(root, h5py.Group):
            refuse(path, f"has no group {group!r}")

        def read(name: str) -> Any:
            dataset = root[name]
            if dataset.dtype.kind not in "biuf":
                refuse(path, f"array {name!r} holds {dataset.dtype}, not numbers")
            size = dataset.size * dataset.dtype.itemsize if dataset.shape else 0
            check_size(path, f"array {name!r}", size)
            return dataset[()]

        yield ArrayFile(path, names, read)


def _columns(path: Path, name: str, read: Callable[[str], Any]) -> Floats:
    """One array as finite float64 columns ``(n, k)``."""
    try:
        loaded = read(name)
    except DataError:
        raise
    except Exception as error:  # whatever a damaged file provokes
        refuse(path, f"array {name!r} is damaged and cannot be read", error)
    dtype = getattr(loaded, "dtype", None)
    if dtype is None or dtype.kind not in "biuf":
        refuse(path, f"array {name!r} holds {dtype or type(loaded).__name__}, not numbers")
    values: NDArray[Any] = np.asarray(loaded)
    if values.ndim not in (1, 2) or (values.ndim == 2 and values.shape[1] == 0):
        refuse(path, f"array {name!r} has the shape {values.shape}; (n,) or (n, columns) is needed")
    columns = (values[:, None] if values.ndim == 1 else values).astype(np.float64)
    bad = np.argwhere(~np.isfinite(columns))
    if len(bad):
        row, k = bad[0]
        refuse(
            path,
            f"array {name!r}: row {row}, column {k} (counted from 0) is {columns[row, k]}; "
            "every value must be finite",
        )
    return columns
