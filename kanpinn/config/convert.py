"""Plain data to option dataclasses, held to their type hints, with messages a user can act on.

The hints are the specification: ``Annotated[int, Gt(0), "what it is"] = 8``. Structure (nested
dataclasses, lists, mappings, and which member of a union is meant) is walked here, so that every
message has the key's path and what is allowed there; single values and their constraints are
checked by pydantic. Nothing is converted but integers to floats, lists to tuples, and text to paths
and other types that have a text form.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin

from annotated_types import MaxLen, MinLen
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from kanpinn.config.hints import (
    allowed,
    annotated,
    either,
    flat,
    is_mapping,
    is_sequence,
    keys_of,
    members,
    strip,
    tag_of,
)
from kanpinn.errors import MAX_NAME, ConfigError, suggestion

MAX_SHOWN = 5
"""Most errors shown at once."""
LARGEST_INTEGER = 2**63 - 1

_INVALID: Any = object()
_STRICT = (bool, int, float, str)
_NUMBERED = re.compile(r"\[(\d+)\]")


class Errors:
    """What is wrong, key by key.

    Attributes:
        found: pairs of dotted path and message.
    """

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def add(self, path: str, message: str) -> Any:
        """Add a message; returns what stands for a value that could not be had."""
        self.found.append((path, message))
        return _INVALID

    def check(self, source: str, origins: Mapping[str, str] | None = None) -> None:
        """Raise ConfigError if there are any: a line for each, with ``source`` in front.

        ``origins`` maps a key to the override that gave it.
        """
        if not self.found:
            return
        lines = []
        for path, message in self.found[:MAX_SHOWN]:
            given = [text for key, text in (origins or {}).items() if within(path, key)]
            where = f"{source}, override {given[-1]}" if given else source
            lines.append(one_line(f"{where}: {path}: {message}" if path else f"{where}: {message}"))
        if len(self.found) > MAX_SHOWN:
            lines[-1] += " (and more errors)"
        raise ConfigError("\n".join(lines))

    @property
    def enough(self) -> bool:
        """Whether there are so many that looking for more is of no use."""
        return len(self.found) > 4 * MAX_SHOWN


def one_line(text: str) -> str:
    """A text with line breaks and other control characters escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def within(path: str, key: str) -> bool:
    """Whether a dotted path is a key or lies below it."""
    return path == key or path.startswith(key + ".")


def join(path: str, name: str | int) -> str:
    """The dotted path of an entry."""
    return f"{path}.{name}" if path else str(name)


def show(value: Any) -> str:
    """A value in a message, in YAML's words, on one short line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        return "an integer beyond 2^63"
    if isinstance(value, list | tuple):
        # not deeper: data that Python code gives may contain themselves
        entries = ["[...]" if isinstance(e, list | tuple) else show(e) for e in value[:6]]
        shown = ", ".join(entries)
        text = f"the list [{shown}{', ...' if len(value) > 6 else ''}]"
        return text if len(text) <= 60 else f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- values -------------------------------------------------------------------------------------
def convert(value: Any, hint: Any, path: str, errors: Errors, default: Any = None) -> Any:
    """The value that plain data stand for under a hint; what is wrong goes into ``errors``.

    ``default`` is the key's: a mapping that does not say which member of a union it is is one of
    the default's class.
    """
    options = members(hint)
    bases = [(member, strip(member)[0]) for member in options]
    if value is None and type(None) in options:
        return None
    if isinstance(value, Mapping):
        classes = [base for _, base in bases if dataclasses.is_dataclass(base)]
        if classes:
            return _convert_tagged(value, classes, path, errors, default)
        fitting = [m for m, base in bases if is_mapping(base) or base is Any]
    elif isinstance(value, list | tuple):
        fitting = [m for m, base in bases if is_sequence(base) or base is Any]
    else:
        fitting = [m for m, base in bases if _is_single(base)]
    if len(fitting) == 1 and not _is_single(strip(fitting[0])[0]):
        return _convert_one(value, fitting[0], path, errors)
    for member in fitting:
        attempt = Errors()
        result = _convert_one(value, member, path, attempt)
        if not attempt.found:
            return result
    names = [str(v) for _, base in bases if get_origin(base) is Literal for v in get_args(base)]
    return errors.add(
        path, f"found {show(value)}, allowed: {allowed(hint)}{suggestion(value, names)}"
    )


def _is_single(base: Any) -> bool:
    structured = is_sequence(base) or is_mapping(base) or dataclasses.is_dataclass(base)
    return not structured and base is not type(None)


def _convert_one(value: Any, member: Any, path: str, errors: Errors) -> Any:
    base, constraints = strip(member)
    if is_sequence(base):
        result = _convert_sequence(value, base, path, errors)
    elif is_mapping(base):
        result = _convert_mapping(value, get_args(base), path, errors)
    else:
        return _convert_single(value, base, constraints, path, errors)
    if result is not _INVALID and not _length_fits(result, constraints):
        return errors.add(path, f"found {len(result)} entries, allowed: {_lengths(constraints)}")
    return result


def _convert_single(
    value: Any, base: Any, constraints: tuple[Any, ...], path: str, errors: Errors
) -> Any:
    """A value without structure, checked by pydantic."""
    if get_origin(base) is Literal:
        same = [v for v in get_args(base) if type(v) is type(value) and v == value]
        return same[0] if same else errors.add(path, "not one of the choices")
    if base is int and isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        return errors.add(path, "too large")
    try:
        adapter = _adapter(base, constraints)
        if isinstance(value, str):
            value.encode()  # lone surrogates could not be saved
        if base is float and type(value) is int:
            value = float(value)
        return adapter.validate_python(value)
    except (ValidationError, UnicodeError, OverflowError):
        return errors.add(path, "not valid")
    except (PydanticUserError, TypeError) as error:
        name = getattr(base, "__name__", str(base))
        raise ConfigError(f"{path}: a config cannot give the type {name}") from error


@lru_cache(maxsize=1024)
def _adapter(base: Any, constraints: tuple[Any, ...]) -> TypeAdapter[Any]:
    config = ConfigDict(strict=base in _STRICT, allow_inf_nan=False, arbitrary_types_allowed=True)
    return TypeAdapter(annotated(base, constraints), config=config)


def _convert_sequence(value: Sequence[Any], base: Any, path: str, errors: Errors) -> Any:
    args, known = get_args(base), len(errors.found)
    fixed = get_origin(base) is tuple and args and args[-1] is not Ellipsis
    if fixed and len(value) != len(args):
        return errors.add(path, f"found {show(value)}, allowed: {allowed(base)}")
    hints = args if fixed else (args[0] if args else Any,) * len(value)
    entries = []
    for number, (entry, hint) in enumerate(zip(value, hints, strict=True)):
        entries.append(convert(entry, hint, join(path, number), errors))
        if errors.enough:
            break
    if len(errors.found) > known:
        return _INVALID
    return entries if (get_origin(base) or base) is list else tuple(entries)


def _convert_mapping(
    value: Mapping[Any, Any], args: tuple[Any, ...], path: str, errors: Errors
) -> Any:
    known, result = len(errors.found), {}
    for key, entry in value.items():
        if not isinstance(key, str):
            errors.add(path, f"found the key {show(key)}, allowed: text")
        else:
            hint = args[1] if args else Any
            result[key] = convert(entry, hint, join(path, key[:MAX_NAME]), errors)
        if errors.enough:
            break
    return _INVALID if len(errors.found) > known else result


def _length_fits(value: Any, constraints: tuple[Any, ...]) -> bool:
    single = [c for group in constraints for c in flat(group)]
    least = max((c.min_length for c in single if isinstance(c, MinLen)), default=0)
    most = min((c.max_length for c in single if isinstance(c, MaxLen)), default=math.inf)
    return bool(least <= len(value) <= most)


def _lengths(constraints: tuple[Any, ...]) -> str:
    single = [c for group in constraints for c in flat(group)]
    words = [f"at least {c.min_length}" for c in single if isinstance(c, MinLen)]
    words += [f"at most {c.max_length}" for c in single if isinstance(c, MaxLen)]
    return " and ".join(words)


def _convert_tagged(
    value: Mapping[Any, Any], classes: list[Any], path: str, errors: Errors, default: Any
) -> Any:
    """A dataclass, picked from several by its tag."""
    tags = {cls: tag for cls in classes if (tag := tag_of(cls))}
    if len(classes) == 1:
        return convert_dataclass(value, classes[0], path, errors)
    if len(tags) < len(classes):
        raise ConfigError(
            f"{path}: {', '.join(c.__name__ for c in classes)} need a key to be told "
            "apart by: one that allows a single text each"
        )
    name = next(iter(tags.values()))[0]
    if name not in value and type(default) in classes:
        return convert_dataclass(value, type(default), path, errors, classes)
    choices = [tag for _, tag in tags.values()]
    for cls, (_, choice) in tags.items():
        if value.get(name) == choice:
            return convert_dataclass(value, cls, path, errors, classes)
    found = f"found {show(value[name])}" if name in value else "missing"
    hint = suggestion(value.get(name), choices)
    return errors.add(join(path, name), f"{found}, allowed: {either(choices)}{hint}")


def convert_dataclass(
    value: Mapping[Any, Any], cls: Any, path: str, errors: Errors, siblings: Sequence[Any] = ()
) -> Any:
    """An instance of a dataclass; errors that it raises itself are gathered too."""
    known = len(errors.found)
    arguments = convert_fields(value, cls, path, errors, siblings)
    if len(errors.found) > known:
        return _INVALID
    try:
        return cls(**arguments)
    except ConfigError as error:
        key, _, rest = str(error).partition(": ")
        key, top = _NUMBERED.sub(r".\1", key), path.partition(".")[0]
        if rest and top and within(key, top):  # the message names its key itself
            return errors.add(key, rest)
        if rest and key.partition(".")[0] in arguments:  # it starts at a key of its own
            return errors.add(join(path, key), rest)
        return errors.add(path, str(error))


def convert_fields(
    value: Mapping[Any, Any],
    cls: Any,
    path: str,
    errors: Errors,
    siblings: Sequence[Any] = (),
    done: Sequence[str] = (),
) -> dict[str, Any]:
    """The arguments of a dataclass that a mapping gives; unknown and missing keys are errors.

    ``siblings`` are the classes it was picked from; keys in ``done`` are left to the caller.
    """
    keys = {key.name: key for key in keys_of(cls)}
    arguments = {}
    for name, entry in value.items():
        if errors.enough:
            break
        if name in done:
            continue
        if name in keys:
            key = keys[name]
            arguments[name] = convert(entry, key.hint, join(path, name), errors, key.default)
        else:
            errors.add(join(path, str(name)[:MAX_NAME]), _unknown(name, list(keys), cls, siblings))
    for name, key in keys.items():
        if key.required and name not in value and name not in done:
            errors.add(join(path, name), f"missing, allowed: {allowed(key.hint)}")
    return arguments


def _unknown(name: Any, names: list[str], cls: Any, siblings: Sequence[Any]) -> str:
    owners = [tag for other in siblings if name in {k.name for k in keys_of(other)}
              if (tag := tag_of(other))]  # fmt: skip
    own = tag_of(cls)
    if owners and own:
        choices = either([tag for _, tag in owners])
        what = f"unknown key for {own[0]} {own[1]} (it belongs to {choices})"
    else:
        what = f"unknown key{suggestion(name, names)}"
    end = "" if what.endswith("?") else ";"
    return f"{what}{end} allowed: {', '.join(names) if names else 'none'}"


# --- and back -----------------------------------------------------------------------------------
def plain(value: Any) -> Any:
    """What YAML and JSON can hold: dataclasses and mappings as dicts, tuples as lists.

    Raises:
        ConfigError: for a value that has no such form.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tag = tag_of(type(value))
        names = [key.name for key in keys_of(type(value))]
        names.sort(key=lambda name: tag is None or name != tag[0])
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    try:
        return TypeAdapter(type(value)).dump_python(value, mode="json")
    except Exception as error:  # pydantic raises several kinds for types it does not know
        raise ConfigError(f"{type(value).__name__}: has no form that a config can hold") from error
