"""Dotted keys: overrides of a config, and the keys in which two configs differ."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from kanpinn.config.convert import show
from kanpinn.config.yaml_text import parse_yaml
from kanpinn.errors import ConfigError

RESUMABLE_KEYS = (
    "name",
    "device",
    "threads",
    "cuda_graphs",
    "figures",
    "training.phases.*.steps",
    "training.work",
    "training.target",
    "training.time_limit",
    "training.log_every",
    "training.checkpoint_every",
)
"""Keys, and what is below them, that may change when a run is resumed: budgets, logging, device."""


MAX_KEY = 200  # characters of a dotted key


def split_override(text: str) -> tuple[str, Any]:
    """Key and value of ``KEY=VALUE``; the value is read as YAML.

    Raises:
        ConfigError: if it is not of that form.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")) or len(key) > MAX_KEY:
        raise ConfigError(
            f"override {text[:60]!r}: allowed: KEY=VALUE with a dotted key, e.g. model.width=8"
        )
    return key, parse_yaml(value, f"override {text[:60]!r}")


def apply_overrides(data: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the values of some dotted keys replaced; a list's entries count from 0.

    Raises:
        ConfigError: for a key that leads through a value that has no keys.
    """
    result = copy.deepcopy(dict(data))
    for key, value in overrides.items():
        parts = key.split(".")
        if len(parts) > 1 and parts[0] == "problem" and isinstance(result.get("problem"), str):
            result["problem"] = {"name": result["problem"]}
        node: Any = result
        for depth, part in enumerate(parts[:-1]):
            node = _entry(node, part, parts, depth)
        if isinstance(node, list):
            node[_index(node, parts[-1], parts, len(parts) - 1)] = value
        elif isinstance(node, dict):
            node[parts[-1]] = value
        else:
            raise _no_keys(parts, len(parts) - 1, node)
    return result


def _entry(node: Any, part: str, parts: Sequence[str], depth: int) -> Any:
    """The entry of a container that a key leads through; missing mappings are made."""
    if isinstance(node, list):
        return node[_index(node, part, parts, depth)]
    if not isinstance(node, dict):
        raise _no_keys(parts, depth, node)
    if node.get(part) is None:
        if parts[depth + 1].isdecimal():
            name = ".".join(parts[: depth + 1])
            raise ConfigError(
                f"override {'.'.join(parts)}: the config has no list {name}; give all of it: "
                f"{name}=[...]"
            )
        node[part] = {}
    return node[part]


def _index(node: Sequence[Any], part: str, parts: Sequence[str], depth: int) -> int:
    if part.isascii() and part.isdecimal() and len(part) < 7 and int(part) < len(node):
        return int(part)
    last = len(node) - 1
    entries = f"allowed: 0{f' to {last}' if last else ''}" if node else "but it is empty"
    raise ConfigError(
        f"override {'.'.join(parts)}: {'.'.join(parts[:depth])} is a list; found entry "
        f"{part[:60]!r}, {entries}"
    )


def _no_keys(parts: Sequence[str], depth: int, node: Any) -> ConfigError:
    return ConfigError(
        f"override {'.'.join(parts)}: {'.'.join(parts[:depth])} is {str(node)[:60]!r} in the "
        "config and has no keys"
    )


def differing_keys(
    a: Mapping[str, Any], b: Mapping[str, Any], ignore: Sequence[str] = RESUMABLE_KEYS
) -> list[str]:
    """Dotted keys in which two resolved configs differ, in the order of ``a``.

    A list of another length counts as one key. Keys that match a pattern in ``ignore``, part by
    part, are left out, and so is all that lies below them.
    """
    return [key for key in _differences(a, b, "") if not any(_matches(key, p) for p in ignore)]


def described_changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """In words, what differs from ``a`` to ``b`` beside the name: ``KEY FOUND -> FOUND``."""
    keys = differing_keys(a, b, ignore=("name",))
    return [f"{key} {show(_value(a, key))} -> {show(_value(b, key))}" for key in keys]


def _value(config: Any, key: str) -> Any:
    """The value of a dotted key; ``None`` where there is none."""
    for part in key.split("."):
        if isinstance(config, Mapping):
            config = config.get(part)
        elif isinstance(config, list) and part.isdecimal() and int(part) < len(config):
            config = config[int(part)]
        else:
            return None
    return config


def _differences(a: Any, b: Any, path: str) -> Iterator[str]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        names = list(dict.fromkeys([*a, *b]))
        missing = object()
        pairs = [(name, a.get(name, missing), b.get(name, missing)) for name in names]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = [(n, *both) for n, both in enumerate(zip(a, b, strict=True))]
    else:
        if type(a) is not type(b) or a != b:
            yield path
        return
    for name, left, right in pairs:
        yield from _differences(left, right, f"{path}.{name}" if path else str(name))


def _matches(key: str, pattern: str) -> bool:
    parts, wanted = key.split("."), pattern.split(".")
    return len(parts) >= len(wanted) and all(map(fnmatchcase, parts, wanted))
