"""Atomic writes, checksums, and readers for untrusted files.

A file written here is either complete or absent, even after a kill or a power failure. Readers never block on a pipe,
read a device, follow a symbolic link out of a folder, or exceed their memory limits.

Writers treat two kinds of paths differently. A path that the user gives, such as the value of ``--json``, is written
with ``follow``: the target of a link is replaced, and a pipe or a device is written to. Names that this package chooses
inside a folder are written without ``follow``: a link is replaced, because a folder from elsewhere could contain a link
to any file of the user.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from crepe_dist.errors import UserError

PREFIX = "crepe-scratch-"
LOCK = ".lock"  # held as long as the folder is in use
YOUNG = 60.0  # seconds in which a new folder may not have been locked yet
OPEN_FILES = re.compile(r"/proc/\d+(/task/\d+)?/fd")  # folder of the files that a process has open
MAX_LINKS = 40  # in a row, as for the kernel
TEMPORARY = re.compile(r"\..+\.\d+")  # name of a file that ``replacing`` has not renamed yet
MAX_NAMES_BYTES = 1 << 22  # size of a file of class names
MAX_JSON_BYTES = 1 << 25  # enough for the manifest of 65,536 classes
# Limits on memory: JSON made of brackets or commas takes many times its length once parsed. Manifests have few.
MAX_JSON_CONTAINERS = 1 << 18
MAX_JSON_VALUES = 1 << 21
MAX_DIGITS = 300  # of an integer: float64 holds any of them
MAX_FLOAT = sys.float_info.max
# Signs in full width count as the usual ones in East Asian versions. Blanks before them do not always help.
_FORMULA = re.compile(r"'*(?:[\t\r]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20]\s*\S)")
_NUMBER = re.compile(r"\s*[+-]?[\d.,\s]*\d(?:[eE][+-]?\d+)?\s*%?\s*", re.ASCII)
GUARDED = "apostrophe before formulas"  # name of an empty column, which a table keeps when a spreadsheet saves it
ANSWERED = ("predicted_class", "predicted_probability", "characters_cut", "problem")  # columns of ``predict``
SPECIAL_FILES = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def write_json(path: Path, value: Any, indent: int | None = 2, *, follow: bool = False) -> None:
    """Write a value as JSON, as ``atomic_text`` does."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n", follow=follow)


def write_text(path: Path, text: str, *, follow: bool = False) -> None:
    """Write a UTF-8 text file, as ``atomic_text`` does."""
    with atomic_text(path, follow=follow) as stream:
        stream.write(text)


@contextmanager
def name_path_in_errors(path: Path) -> Iterator[None]:
    """Name the file or folder in an error of writing it; the system, and NumPy, do not.

    Raises:
        OSError: with the name and an error number.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or type(error) is not OSError:  # the others are of connections and processes
            raise
        full = shutil.disk_usage(path.parent).free < 1 << 16
        number = error.errno or (errno.ENOSPC if full else errno.EIO)
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def atomic_text(path: Path, errors: str = "strict", *, follow: bool = False) -> Iterator[TextIO]:
    """Open a UTF-8 file to write as ``replacing`` does.

    Args:
        follow: the user gives the path. The target of a link is replaced, in the folder of the target. A stream (see
            ``is_stream``) is written to.
    """
    if follow and is_stream(path):
        with open_stream(path, errors) as stream:
            yield stream
        return
    path = Path(os.path.realpath(path)) if follow else path
    with atomic_replace(path) as temporary, temporary.open("w", encoding="utf-8", errors=errors) as stream:
        yield stream


def is_stream(path: Path) -> bool:
    """Return whether a path leads to a pipe, a character device, or a file that a process has open (``/dev/stdout``).

    Data can only be written to a stream. Replacing a stream by a file would remove it for all other programs.
    """
    return _open_file(path) is not None or _is_pipe_or_device(path)


def _is_pipe_or_device(path: Path) -> bool:
    with suppress(OSError):
        mode = path.stat().st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
    return False


def _open_file(path: Path) -> Path | None:
    """Follow links until one is the entry of an open file in ``/proc``, as for ``/dev/stdout``; ``None`` for others."""
    for _ in range(MAX_LINKS):
        path = Path(os.path.realpath(path.parent), path.name)
        if OPEN_FILES.fullmatch(str(path.parent)):
            return path
        if not path.is_symlink():
            return None
        path = path.parent / os.readlink(path)
    return None


def _descriptor(path: Path) -> int | None:
    """Return the number of the open file of this process that a path leads to; ``None`` for other paths."""
    opened = _open_file(path)
    return int(opened.name) if opened and opened.parent == Path(f"/proc/{os.getpid()}/fd") else None


def open_stream(path: Path, errors: str = "strict") -> TextIO:
    """Open a stream to write UTF-8 text after everything that was written to it so far; see ``is_stream``."""
    number = _descriptor(path)
    if number is None:
        number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY)
    else:
        # A second opening would have a position of its own: it would overwrite what a redirected file contains.
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        number = os.dup(number)
    return os.fdopen(number, "w", encoding="utf-8", errors=errors)


def unwritable(path: Path) -> str:
    """Return the reason why a path that the user gives cannot be written; empty if no reason is known.

    Raises:
        OSError: The path cannot be examined.
    """
    if (number := _descriptor(path)) is not None:
        is_for_reading = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        return "it is open for reading only" if is_for_reading else ""
    target = Path(os.path.realpath(path))
    if not is_stream(path):
        if target.is_symlink() or (target.exists() and not target.is_file()):  # a circle of links, a folder, a disk
            return "it is not a file"
        if not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
            return "its folder does not exist, or writing there is not permitted"
    return "writing there is not permitted" if target.exists() and not os.access(target, os.W_OK) else ""


@contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """Provide the path of a temporary file, which replaces ``path`` if the block succeeds, and is removed otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with name_path_in_errors(path):
            yield temporary
            sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_csv(
    path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = (), *, follow: bool = False
) -> None:
    """Write a CSV file, as ``atomic_text`` does; all rows have the columns of the first. See ``cell``.

    Args:
        columns: columns of a file without rows.
    """
    rows = iter(rows)
    first = next(rows, None)
    with atomic_text(path, errors="replace", follow=follow) as stream:
        writer = csv.writer(stream, lineterminator="\r\n")
        writer.writerow(map(cell, columns if first is None else first))
        for row in rows if first is None else chain([first], rows):
            writer.writerow(map(cell, row.values()))


def cell(value: Any) -> Any:
    """Return a value as the cell of a CSV file: a text with an apostrophe first if a spreadsheet would compute it.

    A formula can start programs and send other cells to a server, and texts and class names may come from anybody
    (OWASP, "CSV Injection").
    """
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def cells(values: Iterable[Any]) -> list[Any]:
    """Return the ``cell`` of each value."""
    # Most begin with a letter or digit, as no formula does.
    return [value if type(value) is not str or value[:1].isalnum() else cell(value) for value in values]


def unescape_cell(text: str) -> str:
    """Return the value of a cell that ``cell`` made."""
    return text[1:] if text.startswith("'") and _is_formula(text[1:]) else text


def state(path: str | Path) -> list[Any]:
    """Return what changes if a file is replaced or written to: its path, without links, its size and its time."""
    about = os.stat(path)
    return [os.path.realpath(path), about.st_size, about.st_mtime_ns]


def has_guards(columns: Collection[str]) -> bool:
    """Tell by the names of a table's columns whether ``cell`` made it: texts to label, or answers."""
    return GUARDED in columns or all(name in columns for name in ANSWERED)


def _is_formula(text: str) -> bool:
    if text[:1].isalnum():
        return False
    return _FORMULA.match(text) is not None and _NUMBER.fullmatch(text) is None


def is_temporary(path: Path) -> bool:
    """Return whether ``replacing`` made that file: a leftover, if its process was killed."""
    return TEMPORARY.fullmatch(path.name) is not None and path.is_file() and not path.is_symlink()


def temporary_files(folder: Path) -> list[Path]:
    """List the leftovers of killed processes, without the files that other processes of this host are writing."""
    own, paths = f".{os.getpid()}", filter(is_temporary, folder.iterdir() if folder.is_dir() else ())
    return [path for path in paths if path.suffix == own or not Path("/proc", path.suffix[1:]).exists()]


def remove_temporary(folder: Path) -> None:
    """Remove leftovers of killed processes; see ``temporary_files``."""
    for path in temporary_files(folder):
        path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Return the folder for files that can be downloaded or computed again. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crepe_dist"


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def read_json(path: Path, limit: int = MAX_JSON_BYTES, *, follow: bool = True) -> Any:
    """Read a JSON file of at most ``limit`` bytes. Parsing takes at most about eight times that much memory.

    Raises:
        OSError: See ``open_regular``.
        ValueError: See ``read_bytes``; or the file is not JSON in UTF-8, is nested too deeply, has too many values,
            an integer with too many digits, or a duplicate key (JSON readers disagree on which one counts).
    """
    data = read_bytes(path, limit, follow=follow)
    if data.count(b"[") + data.count(b"{") > MAX_JSON_CONTAINERS or data.count(b",") > MAX_JSON_VALUES:
        raise ValueError(f"{path} holds too many values")
    try:
        return parse_json(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_json(data: bytes) -> Any:
    """Parse JSON in UTF-8.

    Raises:
        ValueError: The text is not UTF-8, not JSON, or breaks a limit of ``read_json``.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_int=_integer)
        if b"\\u" in data:  # JSON can escape a lone surrogate, which could not be written to any file later
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None


def parse_finite(value: Any, least: float = -MAX_FLOAT, most: float = MAX_FLOAT, name: str = "a value") -> float:
    """Return a number from JSON that is finite and in a range.

    Args:
        name: name of the value, for the message.

    Raises:
        ValueError: The value is none; JSON may hold NaN, infinities and booleans, too.
    """
    if type(value) not in (int, float) or not least <= value <= most:  # false for NaN
        raise ValueError(f"{name} is {str(value)[:40]!r}, not a finite number{_range(least, most)}")
    return float(value)


def integer(value: Any, least: int = 0, most: int = 1 << 53, name: str = "a value") -> int:
    """Return a whole number from JSON that is in a range; see ``finite``.

    Raises:
        ValueError: The value is none.
    """
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {str(value)[:40]!r}, not a whole number{_range(least, most)}")
    return value


def _range(least: float, most: float) -> str:
    return "" if most == MAX_FLOAT else f" from {least:,} to {most:,}"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"duplicate key {twice[:80]!r}")
    return unique


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer with {len(digits):,} digits")
    return int(digits)


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


@contextmanager
def temporary_folder(place: Path | None = None) -> Iterator[Path]:
    """Make a temporary folder, in ``place`` or that of the system, and remove it at the end of the block."""
    for left in list_abandoned(place):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=place) as name, (Path(name) / LOCK).open("w") as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with name_path_in_errors(Path(name)):
            yield Path(name)


def list_abandoned(place: Path | None = None, names: str = f"{PREFIX}*") -> list[Path]:
    """List this user's folders whose process was killed: by default, the temporary ones of ``scratch``."""
    return [path for path in sorted(Path(place or tempfile.gettempdir()).glob(names)) if _is_abandoned(path)]


def _is_abandoned(path: Path) -> bool:
    try:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or time.time() - status.st_mtime < YOUNG:
            return False
        with os.fdopen(os.open(path / LOCK, os.O_RDWR | os.O_NOFOLLOW), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except FileNotFoundError:
        return path.is_dir()
    except OSError:
        return False
