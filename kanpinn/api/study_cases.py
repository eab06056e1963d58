"""The configs of a study's cases: all are read before the first one runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanpinn.config import RunConfig, parse_config, read_yaml, to_dict
from kanpinn.errors import ConfigError, suggestion
from kanpinn.study import Case, Design


@dataclass(frozen=True)
class Base:
    """A study's base config, as it stands.

    Attributes:
        data: what the file, or the study itself, holds.
        source: names it in messages.
        folder: that paths are relative to.
    """

    data: Mapping[str, Any]
    source: str
    folder: Path

    @classmethod
    def of(cls, design: Design, file: Path) -> Base:
        """The base of a design that stands in a file."""
        if isinstance(design.base, str):
            path = file.parent / design.base
            return cls(read_yaml(path), str(path), path.parent)
        return cls(design.base, f"{file}: base", file.parent)

    def config(self, overrides: list[str] | None = None) -> RunConfig:
        """The config with some of its keys changed."""
        return parse_config(self.data, self.source, self.folder, overrides or ())


def resolve_cases(design: Design, base: Base, file: Path) -> list[tuple[Case, dict[str, Any]]]:
    """All cases, each with its resolved config.

    Raises:
        ConfigError: naming the case whose config cannot be used.
    """
    known = to_dict(base.config())
    return [(case, _resolve(design, case, base, file, known)) for case in design.cases()]


def _resolve(
    design: Design, case: Case, base: Base, file: Path, known: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        config = base.config(case.overrides)
        work = case.work_override(config.training)
        return to_dict(base.config([*case.overrides, *work]) if work else config)
    except ConfigError as error:
        key = _unknown_key(case, str(error))
        if key is None:
            raise ConfigError(f"{file}: case {case.title}: {error}") from error
        where = "axes" if key in design.axes else f"case {case.title}"
        near = suggestion(key, _dotted(known)) or "; allowed: its keys, and labels for other names"
        raise ConfigError(
            f"{file}: {where}: {key}: names nothing in the base config{near}"
        ) from error


def _unknown_key(case: Case, message: str) -> str | None:
    """The key of a case that a message calls unknown, for whatever the rest of the config says."""
    for key in case.changes:
        parts = key.split(".")
        starts = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        if any(f" {start}: unknown key;" in message for start in starts):
            return key
    return None


def _dotted(data: Mapping[str, Any], path: str = "") -> list[str]:
    """All keys of a config, those that hold others included."""
    found = []
    for name, value in data.items():
        found.append(f"{path}{name}")
        if isinstance(value, Mapping):
            found += _dotted(value, f"{path}{name}.")
    return found
