"""The page ``docs/config.md``, made from the options themselves.

``python -m kanpinn.config.reference > docs/config.md`` writes it anew.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any, get_args

from kanpinn.config.convert import plain
from kanpinn.config.hints import Key, allowed, keys_of, members, strip, tag_of
from kanpinn.config.overrides import RESUMABLE_KEYS
from kanpinn.config.run_config import ProblemConfig, RunConfig
from kanpinn.registry import GROUP, problem_class

HEAD = """\
# Config reference

Made from the options themselves by `python -m kanpinn.config.reference > docs/config.md`: not to be
edited by hand.

A config is a YAML file in UTF-8. Everything but `problem` has a default; the `config.yaml` that a
run saves has all of them. Any key can be given on the command line too, dotted, with a value in
YAML; entries of a list count from 0:
`kanpinn solve configs/poisson.yaml model.width=8 training.phases.0.steps=10`.

- Plain values mean what the core schema of YAML 1.2 says: `1e-3` is a number, `no` and `on` are
  text. Only whole numbers are converted, where a number is wanted: `8.0` is no integer, `"8"` is no
  number, and `1` is not `true`.
- Unknown and repeated keys are refused, and so are `.nan` and `.inf`, tags, anchors and aliases.
- Paths are relative to the folder of the config file, those in overrides included.
- In `model`, in a schedule, and in the entries of `phases` and `inputs`, one key says what the
  section is: `type`, `kind`, `optimiser` and `map`. It may be left out where the section has a
  default.
- `N` in a title stands for the number of an entry.
"""

RESUME = """\
## Resuming

`--resume` goes on with a run. Its config may differ only in these keys and what is below them:
budgets, logging, the device and the name.
"""

DEFAULT_TEXTS: dict[tuple[Any, str], str] = {(RunConfig, "name"): "name of the file"}
ALLOWED_TEXTS: dict[tuple[Any, str], str] = {
    (RunConfig, "problem"): "text, or a mapping with `name`"
}


def reference() -> str:
    """The page, in Markdown."""
    lines = [HEAD]
    for title, cls in sections(RunConfig, ""):
        lines += _section(title, cls)
    lines += ["## Shipped problems", "", "Their parameters stand beside `name`.", ""]
    for name, cls in _shipped_problems():
        lines += _section(f"`problem` with `name: {name}`", cls, level=3)
    lines += [RESUME.strip(), "", ", ".join(f"`{key}`" for key in RESUMABLE_KEYS) + "."]
    return "\n".join(lines) + "\n"


def sections(cls: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Title and class of every options dataclass below one, itself included, each once."""
    seen: set[Any] = set()

    def walk(cls: Any, path: str) -> Iterator[tuple[str, Any]]:
        if cls in seen or cls is ProblemConfig:
            return
        seen.add(cls)
        tag = tag_of(cls)
        with_tag = f" with `{tag[0]}: {tag[1]}`" if tag else ""
        yield (f"`{path}`{with_tag}" if path else "Top level"), cls
        for key in keys_of(cls):
            for suffix, inner in _dataclasses_in(key.hint):
                yield from walk(inner, f"{path}.{key.name}{suffix}".lstrip("."))

    yield from walk(cls, path)


def _dataclasses_in(hint: Any, suffix: str = "") -> Iterator[tuple[str, Any]]:
    for member in members(hint):
        base: Any = strip(member)[0]
        if dataclasses.is_dataclass(base):
            yield suffix, base
        else:
            for arg in get_args(base):
                if arg is not Ellipsis:
                    yield from _dataclasses_in(arg, f"{suffix}.N")


def _section(title: str, cls: Any, level: int = 2) -> list[str]:
    doc = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0]
    lines = [f"{'#' * level} {title}", "", doc.replace("``", "`"), ""]
    if not dataclasses.is_dataclass(cls):
        return [*lines, "No keys.", ""]
    tag, keys = tag_of(cls), keys_of(cls)  # type: ignore[arg-type]
    lines += ["| key | allowed | default | meaning |", "|---|---|---|---|"]
    for key in sorted(keys, key=lambda key: not (tag and key.name == tag[0])):
        default = DEFAULT_TEXTS.get((cls, key.name)) or _default(key)
        words = ALLOWED_TEXTS.get((cls, key.name)) or allowed(key.hint)
        meaning = key.description or ("says which it is" if tag and key.name == tag[0] else "")
        cells = [f"`{key.name}`", words, default, meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def _default(key: Key) -> str:
    """A default as written in YAML, on one line."""
    if key.required:
        return "required"
    value: Any = key.default
    if dataclasses.is_dataclass(value):
        return _entry(value)
    if isinstance(value, tuple) and any(dataclasses.is_dataclass(entry) for entry in value):
        return f"[{', '.join(_entry(entry) for entry in value)}]"
    return f"`{value if isinstance(value, str) else json.dumps(plain(value))}`"


def _entry(value: Any) -> str:
    tag = tag_of(type(value))
    return f"`{{{tag[0]}: {tag[1]}}}`" if tag else "see below"


def _shipped_problems() -> list[tuple[str, Any]]:
    """Registered problems of kanpinn's own distribution."""
    points = entry_points(group=GROUP)
    own = sorted(p.name for p in points if p.dist is not None and p.dist.name == "kanpinn")
    return [(name, problem_class(name)) for name in own]


if __name__ == "__main__":
    sys.stdout.write(reference())
