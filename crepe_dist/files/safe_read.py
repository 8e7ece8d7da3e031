"""TODO docstring."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from crepe_dist.errors import UserError

MAX_NAMES_BYTES = 1 << 22  # size of a file of class names
SPECIAL_FILES = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def fingerprint(path: str | Path) -> list[Any]:
    """Return what changes if a file is replaced or written to: its path, without links, its size and its time."""
    about = os.stat(path)
    return [os.path.realpath(path), about.st_size, about.st_mtime_ns]


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading; reject pipes, which could block for ever, and devices, which may never end.

    Args:
        follow: accept a symbolic link, as for a path that the user gives. Files of a data set or a saved state must
            not be links. Links among the parent folders are always followed.

    Raises:
        OSError: The file cannot be opened, or is a folder.
        ValueError: The path is a pipe, socket, device or rejected link.
    """
    _check_regular(path, os.stat(path, follow_symlinks=follow))
    # Check again once it is open: the path may have been swapped. O_NONBLOCK keeps a swapped-in FIFO from blocking.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    stream = os.fdopen(os.open(path, flags), "rb")
    try:
        _check_regular(path, os.fstat(stream.fileno()))
    except (OSError, ValueError):
        stream.close()
        raise
    return stream


def _check_regular(path: Path, about: os.stat_result) -> None:
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(about.st_mode):
        raise ValueError(f"{path} is {SPECIAL_FILES.get(stat.S_IFMT(about.st_mode), 'a device')}, not a file")


def read_bytes(path: Path, limit: int, *, follow: bool = True) -> bytes:
    """Read a whole file of at most ``limit`` bytes.

    Raises:
        OSError: See ``open_regular``.
        ValueError: See ``open_regular``; or the file is longer than ``limit``.
    """
    with open_regular(path, follow=follow) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} is longer than {limit:,} bytes")
    return data


def sha256(path: Path, *, follow: bool = True, beat: Callable[[], None] = lambda: None) -> str:
    """Compute the SHA-256 of a file, in hexadecimal.

    Args:
        beat: callback after each block of 1 MiB, such as a watchdog's heartbeat.
    """
    digest = hashlib.sha256()
    with open_regular(path, follow=follow) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            beat()
    return digest.hexdigest()


def identity(path: Path) -> dict[str, Any]:
    """Return a file's entry in a manifest: its size in bytes and its SHA-256."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def printable(name: Path | str) -> str:
    """Return a file name with undecodable bytes escaped. Linux allows any bytes in a name."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read_names(file: Path) -> list[str]:
    """Read a file of class names: the lines that are not blank, without surrounding spaces.

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
