"""What can be chosen by name: problems, models, bases, optimisers.

Problems are found through the entry-point group ``kanpinn.problems``, so that other packages can
add theirs, or in a file, ``path/to/file.py:ClassName``. A file's code runs when its class is asked
for, and only then.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from kanpinn.errors import KanpinnError, ProblemError
from kanpinn.models import ModelOptions, PowerReluLayer, SplineLayer
from kanpinn.optimisers import OPTIMISERS, AnyOptimiserOptions
from kanpinn.problem import Problem
from kanpinn.training.phase_options import AutoPhase

if TYPE_CHECKING:
    from kanpinn.config import ProblemConfig

GROUP = "kanpinn.problems"
"""The entry-point group: ``name = "package.module:ClassName"``."""


@dataclass(frozen=True)
class Entry:
    """Something with a name.

    Attributes:
        name: as written in a config.
        summary: one line.
    """

    name: str
    summary: str


@dataclass(frozen=True)
class ProblemSource:
    """The file a problem comes from.

    Attributes:
        path: absolute.
        class_name: the class in it.
        sha256: of the file's bytes, in hexadecimal.
    """

    path: Path
    class_name: str
    sha256: str


def problem_class(name: str, base_dir: Path | None = None) -> type[Problem]:
    """The class of a problem: a registered name, or ``file.py:ClassName``.

    A file relative to ``base_dir`` (the current folder by default) is executed, once for each
    content it has, as a private module.

    Raises:
        ProblemError: naming what is unknown, or the file and line of an exception in it.
    """
    located = _split(name, base_dir)
    if located is None:
        return _registered(name)
    path, class_name = located
    module = _load_file(path, _read(path))
    found = getattr(module, class_name, None)
    if isinstance(found, type) and issubclass(found, Problem):
        return found
    known = [key for key, value in vars(module).items() if _is_own_problem(value, module)]
    what = "has no class" if found is None else "is no subclass of kanpinn.Problem:"
    raise ProblemError(f"{path}: {what} {class_name!r}{_choices(class_name, known)}")


def build_problem(problem: ProblemConfig, base_dir: Path | None = None) -> Problem:
    """The problem that a config describes.

    Raises:
        ProblemError: if it cannot be made with these parameters.
        DataError: if its data cannot be used.
    """
    cls = problem_class(problem.name, base_dir)
    folder = base_dir or Path.cwd()
    parameters = {
        key: folder / value if isinstance(value, Path) else value
        for key, value in problem.parameters.items()
    }
    try:
        return cls(**parameters)
    except KanpinnError:
        raise
    except (Exception, SystemExit) as error:  # a user's own code runs here
        where = _last_line(error)
        raise ProblemError(f"problem {problem.name}: {_one_line(error)}{where}") from error


def problem_source(name: str, base_dir: Path | None = None) -> ProblemSource | None:
    """The file of ``file.py:ClassName`` and its SHA-256, ``None`` for a registered name.

    Nothing in the file is executed.

    Raises:
        ProblemError: if the file cannot be read.
    """
    located = _split(name, base_dir)
    if located is None:
        return None
    path, class_name = located
    return ProblemSource(path, class_name, hashlib.sha256(_read(path)).hexdigest())


def absolute_name(name: str, base_dir: Path | None = None) -> str:
    """A problem's name that means the same in every folder."""
    located = _split(name, base_dir)
    return name if located is None else f"{located[0]}:{located[1]}"


def list_problems() -> list[Entry]:
    """All registered problems; one that cannot be imported says so in its summary."""
    entries = []
    for name in sorted(_problem_points()):
        try:
            cls = _registered(name)
            entries.append(Entry(name, cls.summary or _first_line(cls)))
        except ProblemError as error:
            entries.append(Entry(name, f"cannot be used: {error}"))
    return entries


def list_models() -> list[Entry]:
    """The values of ``model.type``."""
    return _tagged(get_args(ModelOptions), "type")


def list_bases() -> list[Entry]:
    """The bases of layers on knots."""
    bases = {"spline": SplineLayer, "power_relu": PowerReluLayer}
    return [Entry(name, _first_line(cls)) for name, cls in bases.items()]


def list_optimisers() -> list[Entry]:
    """The values of ``optimiser`` in a phase."""
    auto = _tagged([AutoPhase], "optimiser")
    return auto + [
        Entry(entry.name, _first_line(OPTIMISERS[entry.name]))
        for entry in _tagged(get_args(AnyOptimiserOptions), "optimiser")
    ]


# --- registered problems ------------------------------------------------------------------------
def _problem_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _registered(name: str) -> type[Problem]:
    points = _problem_points()
    if name not in points:
        end = _choices(name, sorted(points)) or ", and none is registered: is kanpinn installed?"
        raise ProblemError(f"unknown problem {name[:100]!r}{end}; or path/to/file.py:ClassName")
    target = points[name].value
    try:
        found = points[name].load()
    except (Exception, SystemExit) as error:  # another package's code runs here
        raise ProblemError(
            f"problem {name!r} ({target}) cannot be imported: {_one_line(error)}{_last_line(error)}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Problem)):
        raise ProblemError(f"problem {name!r}: {target} is no subclass of kanpinn.Problem")
    return found


# --- problems in files --------------------------------------------------------------------------
def _split(name: str, base_dir: Path | None) -> tuple[Path, str] | None:
    """Absolute path and class name of ``file.py:ClassName``, ``None`` for another name."""
    file, colon, class_name = name.rpartition(":")
    if not colon:
        if name.endswith(".py"):
            raise ProblemError(f"problem {name!r}: the class is missing, allowed: {name}:ClassName")
        return None
    if not file.endswith(".py") or not class_name.isidentifier():
        raise ProblemError(
            f"problem {name!r}, allowed: a registered name or path/to/file.py:ClassName"
        )
    return Path(os.path.abspath((base_dir or Path.cwd()) / file)), class_name


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ProblemError(f"{path}: no such file")
        return path.read_bytes()
    except OSError as error:
        raise ProblemError(f"{path}: cannot be read: {error.strerror}") from error


def _load_file(path: Path, code: bytes) -> ModuleType:
    """The module that a file's bytes make, under a private name.

    The bytes that are executed are those that were read, so a hash of them tells what ran.
    """
    digest = hashlib.sha256(os.fsencode(path) + b"\0" + code).hexdigest()
    name = f"_kanpinn_problem_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        exec(compile(code, str(path), "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception | SystemExit):
            line = error.lineno if isinstance(error, SyntaxError) else _line_in(error, path)
            raise ProblemError(f"{path}:{line or 1}: {_one_line(error)}") from error
        raise
    return module


def _is_own_problem(value: Any, module: ModuleType) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, Problem)
        and value.__module__ == module.__name__
    )


# --- words --------------------------------------------------------------------------------------
def _line_in(error: BaseException, path: Path) -> int | None:
    """The line of a file that an exception passed through last."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return lines[-1] if lines else None


def _last_line(error: BaseException) -> str:
    """`` (file:line)`` where an exception was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if len(frames) > 1 else ""


def _one_line(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return ": ".join(filter(None, [type(error).__name__, " ".join(text.split())[:200]]))


def _choices(name: str, known: Sequence[str]) -> str:
    if not known:
        return ""
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{hint} allowed: {', '.join(known)}"


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]


def _tagged(classes: Sequence[type], key: str) -> list[Entry]:
    """Names and summaries of option classes, told apart by a key with one value."""
    entries = []
    for cls in classes:
        hints: Mapping[str, Any] = get_type_hints(cls)
        if get_origin(hints[key]) is Literal:
            entries.append(Entry(get_args(hints[key])[0], _first_line(cls)))
    return entries
