"""Readers for untrusted files. They never block on a pipe, read a device, or exceed their memory limits."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from crepe_dist.errors import UserError

MAX_NAMES_BYTES = 1 << 22  # Maximum size of a file that contains class names.
# Names of file types for messages.
SPECIAL_FILES = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def fingerprint(path: str | Path) -> list[Any]:
    """Return the path, size and time of a file. At least one of them changes if the file is replaced or written to.

    Links in the path are resolved. The size is in bytes, and the time of modification in nanoseconds.
    """
    status = os.stat(path)
    return [os.path.realpath(path), status.st_size, status.st_mtime_ns]


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading. Reject pipes, which could block forever, and devices, which may be endless.

    Args:
        follow: Whether the file may be a symbolic link. Paths from the user may be links. Files of a data set or of a
            saved state must not be links. Links among the parent folders are always followed.

    Raises:
        OSError: The file cannot be opened, or is a folder.
        ValueError: The path is a pipe, a socket or a device, or a link although ``follow`` is false.
    """
    _check_regular(path, os.stat(path, follow_symlinks=follow))
    # Another program could replace the file between the check and the opening, so the open file is checked again. With
    # O_NONBLOCK, opening does not block even if the file was replaced by a pipe.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    stream = os.fdopen(os.open(path, flags), "rb")
    try:
        _check_regular(path, os.fstat(stream.fileno()))
    except (OSError, ValueError):
        stream.close()
        raise
    return stream


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is {SPECIAL_FILES.get(stat.S_IFMT(status.st_mode), 'a device')}, not a file")


def read_bytes(path: Path, limit: int, *, follow: bool = True) -> bytes:
    """Read a whole file of at most ``limit`` bytes.

    Raises:
        OSError: See ``open_regular``.
        ValueError: See ``open_regular``. Also raised if the file is longer than ``limit``.
    """
    with open_regular(path, follow=follow) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} is longer than {limit:,} bytes")
    return data


def sha256(path: Path, *, follow: bool = True, on_block: Callable[[], None] = lambda: None) -> str:
    """Compute the SHA-256 of a file, in hexadecimal.

    Args:
        on_block: Function that is called after each block of 1 MiB, for example to send a heartbeat to the watchdog.
    """
    digest = hashlib.sha256()
    with open_regular(path, follow=follow) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            on_block()
    return digest.hexdigest()


def manifest_entry(path: Path) -> dict[str, Any]:
    """Return the entry of a file in a manifest: its size in bytes and its SHA-256."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def escape_path(name: Path | str) -> str:
    """Escape the bytes of a file name that are not UTF-8. Linux allows any byte except ``/`` and NUL in a name."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read_names(file: Path) -> list[str]:
    """Read the class names in a file, one per line. Blank lines are skipped, and surrounding spaces are removed.

    Raises:
        UserError: The file cannot be read, is not UTF-8, or is longer than ``MAX_NAMES_BYTES``.
    """
    try:
        text = read_bytes(file, MAX_NAMES_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8", str(error), f"iconv -t UTF-8 -f LATIN1 {file}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read", str(error), "give a file with one class name per line") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
