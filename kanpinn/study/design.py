"""A study's design: a base config, and the axes that its cases vary."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kanpinn.errors import ConfigError

KEYS = ("base", "axes", "name")
SEED = "seed"  # the axis that medians are taken over
# Columns of the tables, which no axis can be called like.
COLUMNS = frozenset(
    {"status", "window", "level", "intervals", "h", "parameters", "points", "steps", "evaluations"}
    | {"seconds", "loss_before", "loss_after", "loss", "heldout_residual", "rel_l2", "order"}
    | {"ended_by", "runs", "left_out", "rel_l2_q1", "rel_l2_q3", "optimiser_limited"}
)
LONGEST_NAME = 80  # characters of a case's folder
MOST_CASES = 10_000

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One run of a study.

    Attributes:
        labels: by axis, the value in words.
        changes: dotted keys of the base config, and their values here.
    """

    labels: Mapping[str, str]
    changes: Changes

    @property
    def title(self) -> str:
        """All labels in a line."""
        return ", ".join(f"{axis}={label}" for axis, label in self.labels.items()) or "base"

    @property
    def folder(self) -> str:
        """Name of the case's folder: readable, and different for different changes."""
        digest = hashlib.sha256(json.dumps(self.changes, sort_keys=True).encode()).hexdigest()[:8]
        words = re.sub(r"[^A-Za-z0-9.=+-]+", "_", self.title.replace(", ", "_"))
        return f"{words[:LONGEST_NAME]}-{digest}"

    @property
    def overrides(self) -> list[str]:
        """The changes as on the command line of ``solve``."""
        return [f"{key}={json.dumps(value)}" for key, value in self.changes.items()]


@dataclass(frozen=True)
class Design:
    """A base config and the axes of a study; its cases are all combinations.

    Attributes:
        name: of the study.
        base: path of the base config, relative to the study's file.
        axes: by name, the labels of its values and what each changes.
    """

    name: str
    base: str
    axes: Mapping[str, Mapping[str, Changes]] = field(default_factory=dict)

    def cases(self) -> list[Case]:
        """All combinations, the last axis fastest."""
        return list(self._combinations())

    def _combinations(self) -> Iterator[Case]:
        for combination in itertools.product(*(axis.items() for axis in self.axes.values())):
            labels = dict(zip(self.axes, (label for label, _ in combination), strict=True))
            changes: dict[str, Any] = {}
            for _, part in combination:
                changes.update(part)
            yield Case(labels, changes)


def parse_design(data: Mapping[str, Any], source: str, default_name: str) -> Design:
    """The design that a study's YAML file holds.

    Args:
        data: what the file holds.
        source: names it in messages.
        default_name: of a study that gives itself none.

    Raises:
        ConfigError: for unknown keys, empty axes, or axes that change the same thing.
    """
    for key in data:
        if key not in KEYS:
            raise ConfigError(f"{source}: {key}: unknown key; allowed: {', '.join(KEYS)}")
    base = data.get("base")
    if not isinstance(base, str):
        raise ConfigError(f"{source}: base: found {base!r}; a path of a config is needed")
    name = data.get("name", re.sub(r"\W+", "_", default_name))
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
        raise ConfigError(
            f"{source}: name: found {name!r}; a letter, then letters, digits and .+-_"
        )
    given = data.get("axes")
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{source}: axes: found {given!r}; a mapping of at least one is needed")
    axes = {str(axis): _axis(str(axis), values, source) for axis, values in given.items()}
    _check_distinct(axes, source)
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MOST_CASES:
        raise ConfigError(f"{source}: axes: {count} cases; at most {MOST_CASES} are allowed")
    return Design(name, base, axes)


def _axis(name: str, values: Any, source: str) -> dict[str, Changes]:
    """Labels and changes of an axis: a list of values of a key, or named sets of changes."""
    where = f"{source}: axes.{name}"
    if name in COLUMNS:
        raise ConfigError(f"{where}: is a column of the report; choose another name for the axis")
    if not isinstance(values, Sequence | Mapping) or isinstance(values, str) or not values:
        raise ConfigError(
            f"{where}: found {values!r}; allowed: a list of values of the key {name}, or a mapping "
            "of labels to the keys they change"
        )
    if isinstance(values, Mapping):
        for label, changes in values.items():
            if not isinstance(changes, Mapping):
                raise ConfigError(f"{where}.{label}: found {changes!r}; KEY: VALUE is needed")
        return {str(label): dict(changes) for label, changes in values.items()}
    axis: dict[str, Changes] = {_label(value): {name: value} for value in values}
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise ConfigError(f"{where}: found a value that is not finite")
    if len(axis) < len(values):
        raise ConfigError(f"{where}: a value is repeated")
    return axis


def _label(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) else json.dumps(value)


def _check_distinct(axes: Mapping[str, Mapping[str, Changes]], source: str) -> None:
    """Refuse axes that change the same key, or one inside of another's."""
    keys = {
        axis: {key for changes in values.values() for key in changes}
        for axis, values in axes.items()
    }
    for one, other in itertools.combinations(axes, 2):
        for a, b in itertools.product(sorted(keys[one]), sorted(keys[other])):
            if a == b or a.startswith(f"{b}.") or b.startswith(f"{a}."):
                raise ConfigError(f"{source}: axes {one} and {other} contradict: both change {a}")
