"""TODO docstring."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from crepe_dist.files.output_streams import is_stream, open_stream

TEMPORARY = re.compile(r"\..+\.\d+")  # name of a file that ``replacing`` has not renamed yet


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


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
