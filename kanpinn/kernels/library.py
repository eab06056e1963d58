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
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from threading import Lock

LOG = logging.getLogger("kanpinn")
SWITCH = "KANPINN_KERNELS"  # "torch" turns the compiled kernels off
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


def kernels(tell: Callable[[str], None] = LOG.info) -> Kernels:
    """The kernels, compiled at the first call on this machine.

    The environment variable ``KANPINN_KERNELS=torch`` does without; ``CXX`` names a compiler.

    Args:
        tell: hears of what takes time, and of what went wrong.
    """
    if _UNUSED.get():
        return Kernels(None, "PyTorch kernels")
    if not _FOUND:
        with _LOCK:
            if not _FOUND:
                _FOUND.append(_find(tell))
    return _FOUND[0]


def kernels_expected() -> bool:
    """Whether there will be kernels once they are asked for, as far as can be told at no cost."""
    if _FOUND:
        return _FOUND[0].library is not None
    return os.environ.get(SWITCH, "").lower() != "torch" and _compiler() is not None


def _compiler() -> str | None:
    """The compiler that the environment names, or the first one at hand."""
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [named] if named else COMPILERS)), None)


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
    if os.environ.get(SWITCH, "").lower() == "torch":
        return Kernels(None, f"PyTorch kernels ({SWITCH}=torch)")
    compiler = _compiler()
    if compiler is None:
        wanted = os.environ.get("CXX") or "a C++ compiler"
        return Kernels(None, f"PyTorch kernels ({wanted} was not found)")
    name = Path(compiler).name
    try:
        return Kernels(_compiled(compiler, tell), f"kernels compiled by {name}")
    except (OSError, subprocess.SubprocessError) as error:
        tell(f"the kernels could not be compiled: {_reason(error)}")
        return Kernels(None, f"PyTorch kernels ({name} failed)")


def _compiled(compiler: str, tell: Callable[[str], None]) -> ctypes.CDLL:
    """Kernels from the cache, or built into it."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=True, timeout=PATIENCE
    ).stdout.partition("\n")[0]
    with as_file(files("kanpinn.kernels")) as folder:
        key = hashlib.sha256()
        sources = sorted(path for path in folder.iterdir() if path.suffix in (".cpp", ".h"))
        texts = (path.read_bytes() for path in sources)
        for part in (*texts, version.encode(), repr((COMMON, FLAGS)).encode()):
            key.update(part)
        key.update(_processor())
        target = cache_folder() / f"kernels-{key.hexdigest()[:20]}.so"
        if not target.exists():
            tell(
                f"compiling the kernels with {compiler} (once on this machine, about half a minute)"
            )
            _build(compiler, folder / SOURCE, target)
    return ctypes.CDLL(str(target))


def _build(compiler: str, source: Path, target: Path) -> None:
    """Compile into a file of another name, and move it to its place when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        for number, flags in enumerate(FLAGS):
            command = [compiler, *COMMON, *flags, str(source), "-o", str(built)]
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
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(base).expanduser() / "kanpinn"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # a home that cannot be written, or none
        pass
    own = Path(tempfile.gettempdir()) / f"kanpinn-{getpass.getuser()}"
    own.mkdir(mode=0o700, exist_ok=True)
    found = own.stat()
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        raise OSError(f"{own} can be written by others")  # who could plant a library there
    return own


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
