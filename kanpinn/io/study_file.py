"""All numbers of a study in one HDF5 file: tables and histories as columns, configs as text."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kanpinn import __version__
from kanpinn.checkpoint.history import put_history, read_history
from kanpinn.checkpoint.nodes import (
    Node,
    link_name,
    put_array,
    put_attributes,
    put_json,
    put_text,
    put_texts,
)
from kanpinn.errors import CheckpointError, ForeignFileError
from kanpinn.solution import history_columns

STUDY_FILE = "study.h5"
PROGRAM, SCHEMA_VERSION = "kanpinn study", 1
LONGEST_LABEL = 1000  # characters, in an attribute; the design has all of them


@dataclass(frozen=True)
class StoredCase:
    """A case as it is kept.

    Attributes:
        name: of its folder, and of its group.
        title: its labels in a line.
        labels: by axis.
        summary: of its run, ``None`` without a result.
        error: what the run said when it failed.
        config: resolved, as YAML.
        lines: that the run has logged.
        levels: rows of the level table.
    """

    name: str
    title: str
    labels: Mapping[str, str]
    summary: Mapping[str, Any] | None
    error: str | None
    config: str
    lines: Sequence[dict[str, Any]]
    levels: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class StoredStudy:
    """A study as it is kept.

    Attributes:
        design: as YAML, with every default of the base config.
        cases: in the order of the design.
        version: of kanpinn, by which it was written.
    """

    design: str
    cases: tuple[StoredCase, ...]
    version: str = __version__


def write_study_file(path: Path, study: StoredStudy) -> None:
    """Write the file through a temporary one and a rename.

    Raises:
        OSError: if it cannot be written; the one before is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w", libver=("v108", "v110")) as file:
            put_attributes(file, program=PROGRAM, schema_version=SCHEMA_VERSION)
            put_attributes(file, version=study.version, utc=_now())
            put_text(file, "design", study.design)
            cases = file.create_group("cases")
            put_attributes(cases, count=len(study.cases))
            for number, case in enumerate(study.cases):
                _put_case(cases.create_group(link_name(case.name)), case, number)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _put_case(group: h5py.Group, case: StoredCase, number: int) -> None:
    status = "missing" if case.summary is None else str(case.summary["status"])
    put_attributes(group, number=number, title=case.title[:LONGEST_LABEL], status=status)
    labels = {f"label.{axis}": text[:LONGEST_LABEL] for axis, text in case.labels.items()}
    put_attributes(group, **labels)
    put_text(group, "config", case.config)
    put_json(group, "summary", case.summary)
    put_json(group, "error", case.error)
    put_columns(group.create_group("levels"), case.levels)
    put_history(group, case.lines)


def put_columns(group: h5py.Group, rows: Iterable[Mapping[str, Any]]) -> None:
    """A table as one dataset for each column; a number that is missing is NaN, a text empty."""
    for name, column in history_columns(rows).items():
        _put_column(group, name, column)


def _put_column(group: h5py.Group, name: str, column: NDArray[Any]) -> None:
    if column.dtype.kind == "U":
        put_texts(group, name, column.tolist())
    else:
        put_array(group, name, column.astype(np.float64) if column.dtype.kind == "O" else column)


def read_study_file(path: Path) -> StoredStudy:
    """Read the file; no code runs.

    Raises:
        CheckpointError: naming the file and the reason, if it is missing, damaged or newer.
        ForeignFileError: a CheckpointError, too, if it is of another kind.
    """
    try:
        with h5py.File(path, "r") as file:
            return _read(Node.root(file, path.stat().st_size))
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error
    except OSError as error:
        raise ForeignFileError(f"{path}: is no HDF5 file that can be read: {error}") from error


def _read(root: Node) -> StoredStudy:
    if root.attribute("program") != PROGRAM:
        raise ForeignFileError("is no file of a study")
    if root.integer("schema_version") > SCHEMA_VERSION:
        raise CheckpointError("needs a newer kanpinn")
    cases = root.group("cases")
    found = sorted((cases.group(name).integer("number"), name) for name in cases)
    read = tuple(_read_case(cases.group(name), name) for _, name in found)
    if len(read) != cases.integer("count"):
        raise CheckpointError(f"/cases: holds {len(read)} of {cases.integer('count')} cases")
    return StoredStudy(root.document("design"), read, root.text("version"))


def _read_case(group: Node, name: str) -> StoredCase:
    summary = None if group.json("summary") is None else group.mapping("summary")
    error = group.json("error")
    return StoredCase(
        name=name,
        title=group.text("title"),
        labels={},
        summary=summary,
        error=None if error is None else str(error),
        config=group.document("config"),
        lines=read_history(group),
    )
