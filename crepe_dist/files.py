"""Files that survive a kill at any instant, complete or not there at all, their checksums, and what is read of them.

What is read may come from anywhere: nothing here waits for a pipe, follows a device or a link to where it was not sent,
or takes more memory than its limits say.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from crepe_dist.errors import UserError

NAMES_BYTES = 1 << 22  # of a file of class names
JSON_BYTES = 1 << 25  # room for the manifest of 65,536 classes
# Parsed JSON takes many times its length where it is nothing but brackets or commas; a manifest has few of them.
JSON_CONTAINERS = 1 << 18
JSON_VALUES = 1 << 21
JSON_DIGITS = 400  # of an integer: none below the largest float is refused, and none takes long to convert
KINDS = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as stream:
        stream.write(text)


@contextmanager
def written_whole(path: Path, errors: str = "strict") -> Iterator[TextIO]:
    """A text file that takes its name at the end of the block, or is removed if that fails or is interrupted."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", errors=errors) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def cache() -> Path:
    """The folder for what can be fetched again; it may not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crepe_dist"


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """Opens a file for reading, if it is a regular one: a FIFO would wait for ever, a device never end.

    Args:
        follow: whether the name may be a symbolic link, as it may where a user gives it; the files of a folder that
            came as a whole (a data set, a state) have to be in it. Links among the folders above are followed.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is something else.
    """
    _check_regular(path, os.stat(path, follow_symlinks=follow))
    # Looked at again once it is open, since it may have been exchanged; O_NONBLOCK is for a FIFO that took its place.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    stream = os.fdopen(os.open(path, flags), "rb")
    try:
        _check_regular(path, os.fstat(stream.fileno()))
    except (OSError, ValueError):
        stream.close()
        raise
    return stream


def _check_regular(path: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is {KINDS.get(stat.S_IFMT(found.st_mode), 'a device')}, not a file")


def read_bytes(path: Path, limit: int, *, follow: bool = True) -> bytes:
    """A whole file of at most ``limit`` bytes.

    Raises:
        OSError, ValueError: as ``open_regular``, or it is longer.
    """
    with open_regular(path, follow=follow) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} is longer than {limit:,} bytes")
    return data


def read_json(path: Path, limit: int = JSON_BYTES, *, follow: bool = True) -> Any:
    """The value in a JSON file of at most ``limit`` bytes; of memory it takes some eight times as much at most.

    Raises:
        OSError, ValueError: as ``read_bytes``, or it is no JSON in UTF-8, nested too deep, has too many values, an
            integer of too many digits, or a key twice (which of the two counts differs between readers).
    """
    data = read_bytes(path, limit, follow=follow)
    if data.count(b"[") + data.count(b"{") > JSON_CONTAINERS or data.count(b",") > JSON_VALUES:
        raise ValueError(f"{path} holds more values than such a file can")
    try:
        return parse_json(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_json(data: bytes) -> Any:
    """The value of some JSON in UTF-8; a ``ValueError`` says what is wrong."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_int=_integer)
        if b"\\u" in data:  # half a pair of surrogates can be told in JSON, but nothing can be written of it
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deep") from None


def json_lines(path: Path, longest: int = 1 << 20, *, follow: bool = True) -> Iterator[Any]:
    """The values of a file of JSON lines, each of at most ``longest`` bytes.

    Raises:
        OSError, ValueError: as ``read_json``.
    """
    with open_regular(path, follow=follow) as stream:
        number = 0
        while line := stream.readline(longest + 1):
            number += 1
            if len(line) > longest:
                raise ValueError(f"{path}, line {number}: longer than {longest:,} bytes")
            try:
                yield parse_json(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} stands there twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > JSON_DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)


def sha256(path: Path, *, follow: bool = True, beat: Callable[[], None] = lambda: None) -> str:
    """SHA-256 of a file's content.

    Args:
        beat: called after each block.

    Raises:
        OSError, ValueError: as ``open_regular``.
    """
    digest = hashlib.sha256()
    with open_regular(path, follow=follow) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            beat()
    return digest.hexdigest()


def identity(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as manifests hold them."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def printable(name: Path | str) -> str:
    """A file's name in characters that can be written anywhere: on Linux it may hold any bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read_names(file: Path) -> list[str]:
    """Return the lines of a file of class names.

    Raises:
        UserError: it cannot be read, is not UTF-8, or far longer than names are.
    """
    try:
        text = read_bytes(file, NAMES_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8", str(error), f"iconv -t UTF-8 -f LATIN1 {file}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read", str(error), "give a file with a class a line") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
