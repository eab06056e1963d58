"""Errors a user of kanpinn can meet, each with the exit code the command line gives it.

Every message is one line that names what is wrong, where, and what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_DIVERGED = 3
EXIT_TARGET_MISSED = 4
EXIT_INTERRUPTED = 130

MAX_NAME = 60  # characters; a longer name is near to nothing


def suggestion(name: Any, allowed: Iterable[str]) -> str:
    """``; did you mean 'width'?`` if a name is near an allowed one, otherwise nothing."""
    if not isinstance(name, str) or len(name) > MAX_NAME:
        return ""
    near = difflib.get_close_matches(name, list(allowed), 1)
    return f"; did you mean {near[0]!r}?" if near and near[0] != name else ""


class KanpinnError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code: ClassVar[int] = EXIT_FAILURE


class ConfigError(KanpinnError):
    """A config file, an override or an option that cannot be used."""

    exit_code = EXIT_USAGE


class ProblemError(ConfigError):
    """A problem definition that contradicts itself or the model it is given."""


class ExpressionError(ConfigError):
    """An expression that cannot be parsed, or uses a name that is not allowed."""


class DataError(ConfigError):
    """A data file that cannot be used: missing, malformed, or with unusable values."""


class DomainError(KanpinnError):
    """Points that do not lie in the domain, or have the wrong shape or type."""

    exit_code = EXIT_USAGE


class DeviceError(ConfigError):
    """An unknown device, or one that this machine does not have."""


class KnotError(ConfigError):
    """Knots that are unsorted, repeated, not finite, or too few."""


class NestingError(KanpinnError):
    """Knots that do not nest: the coarse spline space is not inside the fine one."""


class ConditioningError(KanpinnError):
    """A change of basis so ill-conditioned that its result would carry no digits."""


class CheckpointError(KanpinnError):
    """A checkpoint that is missing, truncated, corrupted, foreign, or of a newer schema."""


class ForeignFileError(CheckpointError):
    """A file that is no checkpoint of kanpinn at all: the wrong one was named."""

    exit_code = EXIT_USAGE


class RunFolderError(KanpinnError):
    """A run folder that cannot be written, or already holds a run."""

    exit_code = EXIT_USAGE


class DivergedError(KanpinnError):
    """Training became non-finite and could not be recovered."""

    exit_code = EXIT_DIVERGED
