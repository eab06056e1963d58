"""What reading a user's file of numbers begins with, whatever its format."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from kanpinn.errors import DataError

MAX_BYTES = 2_000_000_000
"""Largest CSV file, and largest single array, that is read into memory."""

Floats = NDArray[np.float64]
Names = tuple[str, ...]

TEXT = (".csv", ".tsv", ".txt", ".dat")
KINDS = {
    **dict.fromkeys(TEXT, "csv"),
    ".npz": "npz",
    **dict.fromkeys((".h5", ".hdf5", ".hdf"), "hdf5"),
}
"""Formats by the ending of the file's name."""


def refuse(path: Path, problem: str, cause: BaseException | None = None) -> NoReturn:
    """Raise the error that names the file."""
    raise DataError(f"data file {str(path)!r}: {problem}") from cause


def file_kind(path: Path) -> str:
    """The format of a file that can be read: ``"csv"``, ``"npz"`` or ``"hdf5"``.

    Raises:
        DataError: if it is not there, no ordinary file, not readable, empty, or of another kind.
    """
    if not path.exists():
        refuse(path, "does not exist")
    if not path.is_file():
        refuse(path, "is a folder; name a file" if path.is_dir() else "is not an ordinary file")
    if not os.access(path, os.R_OK):
        refuse(path, "cannot be read: permission denied")
    if path.stat().st_size == 0:
        refuse(path, "is empty")
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        refuse(path, f"has an unknown ending {path.suffix!r}; allowed: {' '.join(KINDS)}")
    return kind


def check_size(path: Path, what: str, n_bytes: int) -> None:
    """Refuse more bytes than are read into memory; ``what`` has them."""
    if n_bytes > MAX_BYTES:
        refuse(path, f"{what} has {n_bytes} bytes; at most {MAX_BYTES} can be read".lstrip())


def known_columns(names: Sequence[str]) -> str:
    """The columns there are, for messages."""
    shown = ", ".join(names[:12])
    return f"columns: {shown}" + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def refuse_column(path: Path, name: str, names: Sequence[str]) -> NoReturn:
    """Say that there is no such column, and which one may have been meant."""
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    refuse(path, f"has no column {name!r}; {hint}{known_columns(names)}")
