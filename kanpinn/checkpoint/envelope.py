"""The file around the HDF5 image: a user block with length and SHA-256, and an atomic write.

The first 512 bytes are an HDF5 user block, which HDF5 tools skip. It holds lines of text::

    kanpinn checkpoint, format 1
    length <bytes that follow the user block>
    sha256 <of those bytes, in hexadecimal>

filled up with zero bytes. They are checked before the HDF5 library reads a byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from pathlib import Path

from kanpinn.errors import CheckpointError, ForeignFileError

USER_BLOCK = 512
FORMAT = 1
_MAGIC = b"kanpinn checkpoint, format "
_HEADER = re.compile(_MAGIC + rb"(\d{1,9})\nlength (\d{1,18})\nsha256 ([0-9a-f]{64})\n\0*")
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def write_sealed(path: str | os.PathLike[str], image: bytes) -> None:
    """Write an HDF5 image, its user block left out, behind a new one, durably and all or nothing.

    The file is written beside the target, forced to the disk and renamed. Whatever happens, the
    target is either the previous file or the new one, whole.

    Args:
        path: the file; its folder exists.
        image: the HDF5 file without its user block of 512 bytes.

    Raises:
        CheckpointError: if the file cannot be written; the previous one is then untouched.
    """
    target = Path(os.path.realpath(path))  # a link to a file elsewhere stays a link
    temporary = target.with_name(target.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # left over by a process that was killed
        with open(temporary, "xb") as file:
            file.write(_header(image))
            file.write(image)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _force_folder(target.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"checkpoint {path}: cannot be written: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_sealed(path: str | os.PathLike[str]) -> bytes:
    """The whole file, user block included, after every byte of it has been checked.

    Raises:
        CheckpointError: saying what is wrong, without the file's name.
    """
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError("is not a regular file")
            head = file.read(USER_BLOCK)
            length = _declared_length(head)
            found = status.st_size - USER_BLOCK
            if found != length:
                what = "truncated" if found < length else "longer than it was written"
                raise CheckpointError(f"is {what}: {found} bytes of data, {length} were written")
            data = head + file.read(length)
    except FileNotFoundError as error:
        raise CheckpointError("does not exist") from error
    except IsADirectoryError as error:
        raise CheckpointError("is a folder, a file is needed") from error
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "it does not fit into memory"
        raise CheckpointError(f"cannot be read: {reason}") from error
    # Comparing the whole block also finds damage in the part of it that says nothing.
    if _header(memoryview(data)[USER_BLOCK:]) != head:
        raise CheckpointError("is corrupted: its SHA-256 is not the one that was written")
    return data


def _header(image: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(image).hexdigest().encode()
    text = _MAGIC + b"%d\nlength %d\nsha256 %s\n" % (FORMAT, len(image), digest)
    return text.ljust(USER_BLOCK, b"\0")


def _declared_length(head: bytes) -> int:
    """The length that the user block states, or the reason why it is none of ours."""
    if not head:
        raise CheckpointError("is empty")
    known = head[: len(_MAGIC)]
    if known != _MAGIC[: len(known)]:
        if head.startswith(_HDF5_SIGNATURE):
            raise ForeignFileError("is an HDF5 file of another program")
        raise ForeignFileError("is not a kanpinn checkpoint")
    if len(head) < USER_BLOCK:
        raise CheckpointError(f"is truncated: it has {len(head)} bytes")
    number = re.match(rb"\d{1,9}(?=\n)", head[len(_MAGIC) :])
    if number and int(number[0]) > FORMAT:
        raise CheckpointError(
            f"has file format {int(number[0])}, this kanpinn reads {FORMAT}: it needs a newer one"
        )
    match = _HEADER.fullmatch(head)
    if match is None:
        raise CheckpointError("is corrupted: its first 512 bytes are damaged")
    return int(match[2])


def _force_folder(folder: Path) -> None:
    """Make a rename in the folder durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
