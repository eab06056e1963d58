"""What the type hints of options say: the keys of a dataclass, and in words what each allows."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt
from pydantic.types import StringConstraints

from kanpinn.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of an options dataclass.

    Attributes:
        name: as written in a config.
        hint: its type, with constraints.
        required: whether it has no default.
        default: its default, ``None`` if it is required.
        description: one line, empty if there is none.
    """

    name: str
    hint: Any
    required: bool
    default: Any
    description: str


def strip(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The bare type and its constraints; descriptions (plain text) are left out."""
    constraints: list[Any] = []
    while True:
        if get_origin(hint) is Annotated:
            hint, *found = get_args(hint)
            constraints = [*found, *constraints]
        elif hasattr(hint, "__value__"):  # type X = ...
            hint = hint.__value__
        else:
            return hint, tuple(c for c in constraints if not isinstance(c, str))


@lru_cache(maxsize=4096)
def members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, which its constraints are handed down to, or the hint alone."""
    base, constraints = strip(hint)
    if get_origin(base) not in (Union, types.UnionType):
        return (annotated(base, constraints),)
    return tuple(m for entry in get_args(base) for m in members(annotated(entry, constraints)))


def annotated(base: Any, constraints: tuple[Any, ...]) -> Any:
    """A type with constraints: what :func:`strip` takes apart."""
    return Annotated[base, *constraints] if constraints and base is not type(None) else base


@lru_cache(maxsize=256)
def keys_of(cls: type) -> tuple[Key, ...]:
    """The keys of a dataclass: its fields that ``__init__`` takes and that are not hidden.

    Raises:
        ConfigError: if its annotations cannot be resolved.
    """
    try:
        hints = get_type_hints(cls, include_extras=True)
    except Exception as error:  # anything may stand in a user's annotation
        raise ConfigError(f"{cls.__name__}: annotations cannot be read: {error}") from error
    keys = []
    for field in dataclasses.fields(cls):
        if not field.init or field.metadata.get("hidden"):
            continue
        hint, default = hints[field.name], field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        required = default is dataclasses.MISSING
        notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        text = next((note for note in notes if isinstance(note, str)), "")
        keys.append(Key(field.name, hint, required, None if required else default, text))
    return tuple(keys)


def tag_of(cls: type) -> tuple[str, str] | None:
    """Key and value that tell a dataclass from others in a union: ``optimiser``, ``adam``."""
    for key in keys_of(cls):
        base, _ = strip(key.hint)
        if get_origin(base) is Literal and len(get_args(base)) == 1:
            return key.name, get_args(base)[0]
    return None


def allowed(hint: Any) -> str:
    """What a hint allows, in words: ``an integer from 2 to 8 or a list (each: ...)``."""
    words: list[str] = []
    options = members(hint)
    tagged = [tag for m in options if dataclasses.is_dataclass(strip(m)[0]) if (tag := _tag(m))]
    for member in options:
        base, constraints = strip(member)
        if dataclasses.is_dataclass(base) and _tag(member):
            text = f"a mapping with {tagged[0][0]} {either([tag for _, tag in tagged])}"
        else:
            text = _allowed_one(base, constraints)
        if text not in words:
            words.append(text)
    return " or ".join(words)


def _tag(member: Any) -> tuple[str, str] | None:
    return tag_of(strip(member)[0])


def either(words: Sequence[str]) -> str:
    """``a, b or c``."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _allowed_one(base: Any, constraints: tuple[Any, ...]) -> str:
    origin, args = get_origin(base), get_args(base)
    if base is type(None):
        return "null"
    if base is bool:
        return "true or false"
    if base in (int, float):
        return _allowed_number(base, constraints)
    if base is str:
        patterns = [c.pattern for c in constraints if isinstance(c, StringConstraints)]
        return " ".join(["text", *(f"matching {p}" for p in patterns if p)])
    if origin is Literal:
        return either([str(value) for value in args])
    if is_sequence(base):
        return _allowed_sequence(origin, args)
    if is_mapping(base):
        return f"a mapping (each value: {allowed(args[1])})" if args else "a mapping"
    if dataclasses.is_dataclass(base):
        return "a mapping"
    if base is Path:
        return "a path"
    if isinstance(base, type) and issubclass(base, Enum):
        return either([str(entry.value) for entry in base])
    return "anything" if base is Any else getattr(base, "__name__", str(base))


def _allowed_number(base: type, constraints: tuple[Any, ...]) -> str:
    whole = base is int
    word = "an integer" if whole else "a number"
    found = [c for group in constraints for c in flat(group)]
    least: Any = next((c.ge for c in found if isinstance(c, Ge)), None)
    most = next((c.le for c in found if isinstance(c, Le)), None)
    above: Any = next((c.gt for c in found if isinstance(c, Gt)), None)
    below = next((c.lt for c in found if isinstance(c, Lt)), None)
    if whole and above is not None:
        least, above = math.floor(above) + 1, None
    if least is not None and most is not None:
        return f"{word} from {_number(least)} to {_number(most)}"
    limits = {"of at least": least, "above": above, "of at most": most, "below": below}
    words = [f"{name} {_number(x)}" for name, x in limits.items() if x is not None]
    return " ".join([word, " and ".join(words)]).strip()


def _number(x: Any) -> str:
    """A bound: 0 for 0.0 too, since equal hints share one place in the caches."""
    return str(int(x)) if abs(x) < 1e9 and x == int(x) else str(x)


def flat(constraint: Any) -> list[Any]:
    """Single constraints of a group such as ``Interval``."""
    return list(constraint) if isinstance(constraint, GroupedMetadata) else [constraint]


def _allowed_sequence(origin: Any, args: tuple[Any, ...]) -> str:
    if not args:
        return "a list"
    if origin is not tuple or args[-1] is Ellipsis:
        return f"a list (each: {allowed(args[0])})"
    texts = [allowed(arg) for arg in args]
    each = f"each: {texts[0]}" if len(set(texts)) == 1 else "; ".join(texts)
    return f"a list of {len(args)} ({each})"


def is_sequence(base: Any) -> bool:
    """Whether a bare type is a list or tuple."""
    return (get_origin(base) or base) in (tuple, list, Sequence)


def is_mapping(base: Any) -> bool:
    """Whether a bare type is a mapping with text keys."""
    return (get_origin(base) or base) in (dict, Mapping)
