"""Reading and writing YAML: plain data only, and the numbers scientists write.

Plain scalars mean what the core schema of YAML 1.2 says (https://yaml.org/spec/1.2.2, chapter 10):
``1e-3`` is a number, ``no`` is text. Only mappings with text keys, lists, text, numbers, booleans
and null can come out of a file, whatever is in it: tags, anchors and aliases are refused, and so
are repeated keys.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from kanpinn.errors import ConfigError

MAX_BYTES = 1_000_000
"""Largest config file that is read."""
MAX_DEPTH = 20
"""Deepest nesting of lists and mappings in a config."""
MAX_VALUES = 20_000
"""Most entries (values and keys) of a config."""

_NULL = re.compile(r"(~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(
    r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
)
# The same parser with or without the C library; the C one is 20 times as fast.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: missing, empty, binary, too large, malformed, or no mapping.
    """
    data = parse_yaml(_read_text(path), str(path))
    if data is None:
        raise ConfigError(f"{path}: empty; a config needs at least the key 'problem'")
    if not isinstance(data, dict):
        found = "a list" if isinstance(data, list) else repr(data)[:60]
        raise ConfigError(f"{path}: found {found} at the top, allowed: a mapping (KEY: VALUE)")
    return data


def parse_yaml(text: str, source: str) -> Any:
    """The data in a YAML text, ``None`` for an empty one; ``source`` names it in messages.

    Raises:
        ConfigError: malformed, or with something that a config may not hold.
    """
    try:
        text.encode()  # lone surrogates, which a command line can hold
        return _Builder(source).build(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = " ".join(str(error.problem or error.context).split())
        raise ConfigError(f"{source}: {where}malformed YAML: {what}") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise ConfigError(
            f"{source}: binary, or with control characters; allowed: YAML text in UTF-8"
        ) from error


def dump_yaml(data: Any) -> str:
    """YAML text of plain data, from which :func:`parse_yaml` gives the same back."""
    return yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True,
        width=100,
    )  # fmt: skip


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: a folder; allowed: a YAML file")
        if not path.is_file():
            raise ConfigError(f"{path}: no such file{_nearest_file(path)}")
        if path.suffix == ".py":
            raise ConfigError(
                f"{path}: Python; allowed: a YAML file, which takes a problem from there by "
                f"'problem: {path.name}:ClassName'"
            )
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: too large for a config; allowed: {MAX_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: binary, or not in UTF-8; allowed: YAML text in UTF-8"
        ) from error


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [entry.name for entry in path.parent.iterdir() if entry.suffix in {".yaml", ".yml"}]
    near = [path.with_name(name) for name in difflib.get_close_matches(path.name, names, 1)]
    shipped = path.parent / "configs" / f"{path.stem}.yaml"
    found = [shipped] if shipped.is_file() else near
    return f"; did you mean {str(found[0])!r}?" if found else ""


class _Builder:
    """Builds plain data from parser events, without recursion."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.open: list[list[Any] | dict[str, Any]] = []
        self.keys: list[str | None] = []  # of every open mapping, the key whose value comes next
        self.root: Any = None
        self.documents = self.values = 0

    def build(self, events: Iterable[yaml.Event]) -> Any:
        """The data of the only document."""
        for event in events:
            self.values += 1
            if self.values > MAX_VALUES:
                self._refuse(event, f"more than {MAX_VALUES} entries")
            match event:
                case yaml.DocumentStartEvent():
                    self.documents += 1
                    if self.documents > 1:
                        self._refuse(event, "a second document; allowed: one")
                case yaml.AliasEvent():
                    self._refuse(
                        event, f"an alias (*{(event.anchor or '')[:60]}); allowed: plain data"
                    )
                case yaml.ScalarEvent():
                    self._check_plain(event)
                    self._scalar(event)
                case yaml.SequenceStartEvent():
                    self._start(event, [])
                case yaml.MappingStartEvent():
                    self._start(event, {})
                case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                    self.open.pop()
                    self.keys.pop()
        return self.root

    def _start(self, event: yaml.NodeEvent, value: list[Any] | dict[str, Any]) -> None:
        self._check_plain(event)
        if len(self.open) >= MAX_DEPTH:
            self._refuse(event, f"nested deeper than {MAX_DEPTH}")
        if self._key_is_next():
            self._refuse(event, "a list or mapping as a key; allowed: text")
        self._add(value)
        self.open.append(value)
        self.keys.append(None)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        if not self._key_is_next():
            plain = event.implicit[0]
            self._add(self._resolve(event) if plain else event.value)
        elif event.value in self.open[-1]:
            self._refuse(event, f"the key {event.value[:60]!r} a second time")
        else:
            self.keys[-1] = event.value

    def _key_is_next(self) -> bool:
        return bool(self.open) and isinstance(self.open[-1], dict) and self.keys[-1] is None

    def _add(self, value: Any) -> None:
        if not self.open:
            self.root = value
            return
        top, key = self.open[-1], self.keys[-1]
        if isinstance(top, list):
            top.append(value)
        else:
            assert key is not None
            top[key], self.keys[-1] = value, None

    def _resolve(self, event: yaml.ScalarEvent) -> Any:
        text = event.value
        if _NULL.match(text):
            return None
        if _BOOL.match(text):
            return text.lower() == "true"
        if _INT.match(text):
            if len(text) > 400:
                self._refuse(event, f"a number of {len(text)} digits")
            return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)
        if _FLOAT.match(text):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return text

    def _check_plain(self, event: yaml.NodeEvent) -> None:
        if event.anchor is not None:
            self._refuse(event, f"an anchor (&{event.anchor[:60]}); allowed: plain data")
        tag = getattr(event, "tag", None)
        if tag is not None:
            self._refuse(event, f"a tag ({tag[:60]}); allowed: plain data")

    def _refuse(self, event: yaml.Event, what: str) -> None:
        mark = event.start_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{self.source}: {where}found {what}")


class _Dumper(yaml.SafeDumper):
    """Quotes what :func:`parse_yaml` would misread; lists of scalars go on one line."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - yaml's own interface

    def represent_sequence(
        self, tag: str, sequence: Any, flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        """A list, in one line if it holds nothing but scalars."""
        node = super().represent_sequence(tag, sequence, flow_style)
        node.flow_style = all(isinstance(child, yaml.ScalarNode) for child in node.value)
        return node

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Text; what YAML 1.1 took for line breaks is escaped, lest a parser folds it."""
        style = '"' if set(data) & set("\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)

    def ignore_aliases(self, data: Any) -> bool:
        """Equal objects are written out each time."""
        return True


_Dumper.add_representer(str, _Dumper.represent_str)
for _name, _pattern in {"null": _NULL, "bool": _BOOL, "int": _INT, "float": _FLOAT}.items():
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, None)
