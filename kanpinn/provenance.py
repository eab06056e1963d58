"""Where a result comes from: versions, source, machine, time; and which problem it belongs to."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kanpinn import __version__
from kanpinn.errors import ProblemError
from kanpinn.geometry import Box
from kanpinn.problem import Problem

LIBRARIES = ("numpy", "scipy", "h5py", "pydantic")
GIT_SECONDS = 5.0


def gather(
    device: torch.device | str, dtype: torch.dtype, seed: int, **more: Any
) -> dict[str, Any]:
    """What is needed to judge, or to repeat, a run: plain text, numbers and ``None``.

    Args:
        device: the run's.
        dtype: the run's floating-point type.
        seed: the run's.
        more: further entries, the command line for instance.

    Returns:
        ``versions`` by package, ``commit`` of kanpinn's source tree (with ``commit_modified``) or
        ``None``, ``host``, ``system``, ``processor``, ``utc`` (ISO 8601), ``device``,
        ``device_name``, ``threads``, ``dtype``, ``seed``, and ``more``.
    """
    device = torch.device(device)
    commit, modified = source_commit()
    return {
        "versions": {
            "kanpinn": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),  # names the build, for CUDA or not
            **{name: _version(name) for name in LIBRARIES},
            "cuda": torch.version.cuda,
        },
        "commit": commit,
        "commit_modified": modified,
        "host": platform.node(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(device),
        "device_name": _device_name(device),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "seed": seed,
        **more,
    }


def source_commit() -> tuple[str | None, bool | None]:
    """The git commit kanpinn's source tree is at, and whether tracked files differ from it.

    ``(None, None)`` for an installed package, or where git is not at hand: then the version says
    which code it is.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # not some repository further up that is not kanpinn's
        return None, None
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit or None, None if changes is None or not commit else bool(changes)


def describe_problem(
    problem: Problem,
    name: str,
    parameters: Mapping[str, Any] | None = None,
    source: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """What a checkpoint says of the problem: enough to use its solution without its code.

    Args:
        problem: what is solved.
        name: registered name, or ``path/to/file.py:ClassName`` as in the config.
        parameters: of the config, as far as they can be stored.
        source: the user's file, if the problem is not a registered one.

    Returns:
        ``name``, ``class``, ``source`` (``path`` and ``sha256``, or ``None``), ``parameters``,
        ``fields``, ``networks``, ``coordinates``, ``time``, ``bounds``, and ``box``: whether the
        domain is all of its bounds.

    Raises:
        ProblemError: if the source cannot be read.
    """
    kind, domain = type(problem), problem.domain
    bounds = zip(domain.lower, domain.upper, strict=True)
    return {
        "name": name,
        "class": f"{kind.__module__}:{kind.__qualname__}",
        "source": None if source is None else _source(source),
        "parameters": dict(parameters or {}),
        "fields": list(problem.fields),
        "networks": {part: list(names) for part, names in problem.network_fields().items()},
        "coordinates": list(domain.names),
        "time": domain.time,
        "bounds": [[float(low), float(high)] for low, high in bounds],
        "box": isinstance(domain, Box),
    }


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _source(path: str | os.PathLike[str]) -> dict[str, str]:
    try:
        return {"path": os.fspath(path), "sha256": file_sha256(path)}
    except OSError as error:
        raise ProblemError(f"problem {path}: cannot be read: {error.strerror}") from error


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        module = sys.modules.get(package)
        return getattr(module, "__version__", None)


def _device_name(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def _git(root: Path, *arguments: str) -> str | None:
    """What a git command prints, or ``None`` if it fails."""
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
