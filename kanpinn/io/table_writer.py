"""Writing a table of numbers: CSV and NPZ files, never over another one unless told."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kanpinn.errors import DataError
from kanpinn.io.data_files import TEXT, Floats

ARRAYS = (".npz",)


def check_free(path: Path, force: bool) -> None:
    """Check that a table can be written, as far as that can be told beforehand.

    Raises:
        DataError: if the suffix is unknown, the file exists, or its folder does not.
    """
    if path.suffix.lower() not in TEXT + ARRAYS:
        allowed = ", ".join(TEXT + ARRAYS)
        raise DataError(f"{path}: found the suffix {path.suffix!r}, allowed: {allowed}")
    if path.is_dir():
        raise DataError(f"{path}: is a folder, a file is needed")
    if path.exists() and not force:
        raise DataError(f"{path}: exists and is not written over; --force does")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}")


def write_columns(path: Path, columns: Mapping[str, Floats], force: bool = False) -> None:
    """Write columns ``(n,)`` by name, as CSV with a header or as arrays; nothing is rounded.

    Raises:
        DataError: see :func:`check_free`; or if the file cannot be written.
    """
    check_free(path, force)
    buffer = io.BytesIO()
    if path.suffix.lower() in ARRAYS:
        np.savez(buffer, **dict(columns))  # type: ignore[arg-type]
    else:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        table = np.stack(list(columns.values()), axis=1)
        buffer.write(delimiter.join(columns).encode() + b"\n")
        for row in table:  # the shortest text of every number that reads back the same
            buffer.write(delimiter.join(map(repr, row.tolist())).encode() + b"\n")
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
