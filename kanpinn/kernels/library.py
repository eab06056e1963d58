"""The compiled kernels: built once with the machine's C++ compiler, then found in a cache.

The source has a plain C interface and includes nothing but its own headers and the standard
library's, so that it compiles without PyTorch and fits every build of it.
"""

from __future__ import annotations

import ctypes
import getpass
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from threading import Lock

from kanpinn.errors import ConfigError

LOG = logging.getLogger("kanpinn")
SWITCH, OFF = "KANPINN_KERNELS", "torch"  # turns the compiled kernels off
COMPILERS = ("g++", "clang++", "c++")
# With the second set where the first is refused: not every compiler knows the machine it runs on.
FLAGS = (("-march=native",), ())
SOURCE = "spline_layer.cpp"  # includes the headers beside it
COMMON = ("-std=c++17", "-O3", "-shared", "-fPIC", "-Wno-ignored-attributes")
PATIENCE = 300  # seconds a compiler may take


@dataclass(frozen=True)
class Kernels:
    """What is at hand.

    Attributes:
        library: the compiled kernels; ``None`` where PyTorch's operators stand in for them.
        description: for people: what made them, or why there are none.
    """

    library: ctypes.CDLL | None
    description: str


_LOCK = Lock()
_UNUSED = ContextVar("kernels_unused", default=False)
_FOUND: list[Kernels] = []  # of this process, once asked for


def kernels(tell: Callable[[str], None] = LOG.warning) -> Kernels:
    """The kernels, compiled at the first call on this machine.

    The environment variable ``KANPINN_KERNELS=torch`` does without; ``CXX`` names a compiler.

    Args:
        tell: hears of what takes time, and of what went wrong.

    Raises:
        ConfigError: if ``KANPINN_KERNELS`` has another value.
    """
    if _UNUSED.get():
        return Kernels(None, "PyTorch kernels")
    if not _FOUND:
        with _LOCK:
            if not _FOUND:
                _FOUND.append(_find(tell))
    return _FOUND[0]


def kernels_expected() -> bool:
    """Whether there will be kernels once they are asked for, as far as can be told at no cost.

    Raises:
        ConfigError: as for :func:`kernels`.
    """
    if _FOUND:
        return _FOUND[0].library is not None
    return _wanted() and bool(_compiler() or _cached(f"{_stem()}-*.so"))


def _wanted() -> bool:
    """Whether the environment leaves the kernels on."""
    value = os.environ.get(SWITCH, "")
    if value.lower() not in ("", OFF):
        raise ConfigError(f"environment variable {SWITCH}: found {value!r}; allowed: {OFF}")
    return not value


def _compiler() -> list[str] | None:
    """Command of the compiler that the environment names, or of the first one at hand."""
    named = shlex.split(os.environ.get("CXX", ""))
    for first, *more in [named] if named else [[name] for name in COMPILERS]:
        found = shutil.which(first)
        if found is not None:
            return [found, *more]
    return None


@contextmanager
def kernels_unused() -> Iterator[None]:
    """Do without the kernels in this thread for a while, where compiling would take too long."""
    token = _UNUSED.set(True)
    try:
        yield
    finally:
        _UNUSED.reset(token)


def _find(tell: Callable[[str], None]) -> Kernels:
    """Kernels from the cache, from the compiler, or none."""
    if not _wanted():
        return Kernels(None, f"PyTorch kernels ({SWITCH}={OFF})")
    compiler = _compiler()
    if compiler is None:
        for path in _cached(f"{_stem()}-*.so"):
            library = _loaded(path, tell)
            if library is not None:
                return Kernels(library, "kernels compiled before")
        wanted = os.environ.get("CXX") or "a C++ compiler"
        return Kernels(None, f"PyTorch kernels ({wanted} was not found)")
    name = Path(compiler[0]).name
    try:
        return Kernels(_compiled(compiler, tell), f"kernels compiled by {name}")
    except (OSError, subprocess.SubprocessError) as error:
        tell(f"no compiled kernels: {_reason(error)}")
        return Kernels(None, f"PyTorch kernels ({name} failed)")


def _compiled(compiler: Sequence[str], tell: Callable[[str], None]) -> ctypes.CDLL:
    """Kernels from the cache, or built into it."""
    version = subprocess.run(
        [*compiler, "--version"], capture_output=True, text=True, check=True, timeout=PATIENCE
    ).stdout.partition("\n")[0]
    by = hashlib.sha256(repr((version, compiler[1:])).encode()).hexdigest()
    name = f"{_stem()}-{by[:8]}.so"
    for path in _cached(name):
        library = _loaded(path, tell)
        if library is not None:
            return library
    target = cache_folder() / name
    command = " ".join(compiler)
    tell(f"compiling the kernels with {command} (once on this machine, less than a minute)")
    with as_file(files("kanpinn.kernels")) as folder:
        _build(compiler, folder / SOURCE, target)
    return ctypes.CDLL(str(target))


def _loaded(path: Path, tell: Callable[[str], None]) -> ctypes.CDLL | None:
    """A library, unless the file is damaged or lies where nothing may be executed."""
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        tell(f"the kernels in {path} cannot be used: {error}")
        return None


@cache
def _stem() -> str:
    """What names of kernels begin with that are these, for this processor."""
    key = hashlib.sha256(repr((COMMON, FLAGS)).encode())
    with as_file(files("kanpinn.kernels")) as folder:
        for path in sorted(path for path in folder.iterdir() if path.suffix in (".cpp", ".h")):
            key.update(path.read_bytes())
    key.update(_processor())
    return f"kernels-{key.hexdigest()[:20]}"


def _build(compiler: Sequence[str], source: Path, target: Path) -> None:
    """Compile into a file of another name, and move it to its place when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        for number, flags in enumerate(FLAGS):
            command = [*compiler, *COMMON, *flags, str(source), "-o", str(built)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            if done.returncode == 0:
                break
            if number == len(FLAGS) - 1:
                done.check_returncode()
        os.replace(built, target)


def cache_folder() -> Path:
    """Where compiled kernels are kept: the user's cache, or the user's folder among temporaries.

    Raises:
        OSError: if neither can be written, or the second could be by others.
    """
    try:
        folder = _user_cache()
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # a home that cannot be written, or none
        pass
    own = _temporary_cache()
    own.mkdir(mode=0o700, exist_ok=True)
    if not _is_safe(own):
        raise OSError(f"{own} can be written by others")
    return own


def _cached(pattern: str) -> list[Path]:
    """Files of such a name where kernels may be kept, in a cache that cannot be written too."""
    found: list[Path] = []
    with suppress(OSError, RuntimeError):
        found += _user_cache().glob(pattern)
    with suppress(OSError):
        own = _temporary_cache()
        if own.is_dir() and _is_safe(own):
            found += own.glob(pattern)
    return found


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kanpinn"


def _temporary_cache() -> Path:
    # In a container a user may have a number alone.
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    return Path(tempfile.gettempdir()) / f"kanpinn-{user}"


def _is_safe(folder: Path) -> bool:
    """Whether nobody else could plant a library in a folder."""
    found = folder.stat()
    return not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)


def _processor() -> bytes:
    """What tells processors apart that share a home folder but not their instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return (platform.machine() + platform.processor()).encode()
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return (platform.machine() + features).encode()


def _reason(error: Exception) -> str:
    """One line: of a compiler its first complaint."""
    lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else repr(error))
