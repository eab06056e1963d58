"""The configs of a study's cases: all are read before the first one runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanpinn.api.preparation import prepare
from kanpinn.config import RunConfig, parse_config, read_yaml, to_dict
from kanpinn.errors import ConfigError, ProblemError, suggestion
from kanpinn.study import SEED, Case, Design


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
    def at(cls, path: Path) -> Base:
        """The config in a file."""
        return cls(read_yaml(path), str(path), path.parent)

    @classmethod
    def of(cls, design: Design, file: Path) -> Base | None:
        """The base of a design that stands in a file; ``None`` where every case has its own."""
        if design.base is None:
            return None
        if isinstance(design.base, str):
            return cls.at(file.parent / design.base)
        return cls(design.base, f"{file}: base", file.parent)

    def config(self, overrides: list[str] | None = None) -> RunConfig:
        """The config with some of its keys changed."""
        return parse_config(self.data, self.source, self.folder, overrides or ())


def bases_of(design: Design, file: Path) -> dict[str, Base]:
    """All base configs by their paths, that of the study as ``""``.

    Raises:
        ConfigError: naming the file that cannot be used.
    """
    own = Base.of(design, file)
    found = {} if own is None else {"": own}
    for case in design.cases():
        if case.base is not None and case.base not in found:
            if not isinstance(case.base, str):
                raise ConfigError(
                    f"{file}: case {case.title}: base: found {case.base!r}; a path is needed"
                )
            found[case.base] = Base.at(file.parent / case.base)
    return found


def resolve_cases(
    design: Design, bases: Mapping[str, Base], file: Path
) -> list[tuple[Case, dict[str, Any]]]:
    """All cases, each with its resolved config.

    Raises:
        ConfigError: naming the case whose config cannot be used.
    """
    known = {name: to_dict(base.config()) for name, base in bases.items()}
    return [
        (case, _resolve(design, case, bases[case.base or ""], file, known[case.base or ""]))
        for case in design.cases()
    ]


def check_cases(configs: Sequence[tuple[Case, dict[str, Any]]], file: Path) -> None:
    """Put problems, models and training together, once for all seeds; what cannot be is refused.

    The user's own code is left to the runs: what it does wrong concerns its own case alone.

    Raises:
        ConfigError: naming the case.
    """
    alike = {
        tuple(pair for pair in case.labels.items() if pair[0] != SEED): (case, data)
        for case, data in configs
    }
    for case, data in alike.values():
        if ":" in data["problem"]["name"]:  # a class in a user's file
            continue
        try:
            prepare({**data, "name": "case"})
        except ProblemError:
            continue
        except ConfigError as error:
            words = str(error).removeprefix("config: ")
            raise ConfigError(f"{file}: case {case.title}: {words}") from error


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
