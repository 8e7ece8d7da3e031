"""Outputs that must not be replaced: pipes, devices, and the open files of a process, such as ``/dev/stdout``."""

import fcntl
import os
import re
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

OPEN_FILES = re.compile(r"/proc/\d+(/task/\d+)?/fd")  # Folder of the open files of a process.
MAX_LINKS = 40  # Maximum number of consecutive links that are followed, as in Linux.


def is_stream(path: Path) -> bool:
    """Return whether a path leads to a pipe, a character device, or a file that a process has open (``/dev/stdout``).

    A stream must be written to directly. If a file replaced it, other programs would no longer receive the data.
    """
    return _open_file(path) is not None or _is_pipe_or_device(path)


def _is_pipe_or_device(path: Path) -> bool:
    with suppress(OSError):
        mode = path.stat().st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
    return False


def _open_file(path: Path) -> Path | None:
    """Follow links, such as ``/dev/stdout``, to an open file in ``/proc``. Return ``None`` if they lead elsewhere."""
    for _ in range(MAX_LINKS):
        path = Path(os.path.realpath(path.parent), path.name)
        if OPEN_FILES.fullmatch(str(path.parent)):
            return path
        if not path.is_symlink():
            return None
        path = path.parent / os.readlink(path)
    return None


def _descriptor(path: Path) -> int | None:
    """Return the file descriptor of this process that a path leads to; ``None`` for other paths."""
    opened = _open_file(path)
    return int(opened.name) if opened and opened.parent == Path(f"/proc/{os.getpid()}/fd") else None


def open_stream(path: Path, errors: str = "strict") -> TextIO:
    """Open a stream (see ``is_stream``) for UTF-8 text. New text is appended to what was written before."""
    number = _descriptor(path)
    if number is None:
        number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY)
    else:
        # The descriptor is duplicated. If the path were opened a second time, the new descriptor would start at the
        # beginning of a redirected file, and overwrite its content.
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        number = os.dup(number)
    return os.fdopen(number, "w", encoding="utf-8", errors=errors)


def find_write_problem(path: Path) -> str:
    """Return the reason why a path from the user cannot be written; "" if no problem was found.

    Raises:
        OSError: The path cannot be examined.
    """
    if (number := _descriptor(path)) is not None:
        is_for_reading = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        return "it is open for reading only" if is_for_reading else ""
    target = Path(os.path.realpath(path))
    if not is_stream(path):
        if target.is_symlink() or (target.exists() and not target.is_file()):  # A cycle of links, a folder, or a disk.
            return "it is not a file"
        if not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
            return "its folder does not exist, or writing there is not permitted"
    return "writing there is not permitted" if target.exists() and not os.access(target, os.W_OK) else ""
