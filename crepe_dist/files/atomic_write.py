"""Atomic writers. A file contains either its old or its new content, even after a kill or a power failure.

The writers treat two kinds of paths differently. A path that the user specifies, such as the value of ``--json``, is
written with ``follow``: the target of a link is replaced, and a pipe or a device is written to. A path that this
package chooses inside a folder is written without ``follow``: the link itself is replaced, because an untrusted folder
could contain a link to any of the user's files.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from crepe_dist.files.output_streams import is_stream, open_stream

TEMPORARY_NAME = re.compile(r"\..+\.\d+")  # Name of the temporary file of ``atomic_replace``.


def write_text(path: Path, text: str, *, follow: bool = False) -> None:
    """Write a UTF-8 text file atomically; see ``atomic_text``."""
    with atomic_text(path, follow=follow) as stream:
        stream.write(text)


@contextmanager
def name_path_in_errors(path: Path) -> Iterator[None]:
    """Add the path to an ``OSError`` that occurs in the block, because write errors do not contain the path.

    Raises:
        OSError: The error of the block, with the path and an error number.
    """
    try:
        yield
    except OSError as error:
        if (
            error.filename is not None or type(error) is not OSError
        ):  # Subclasses concern connections and processes, not files.
            raise
        full = shutil.disk_usage(path.parent).free < 1 << 16
        number = error.errno or (errno.ENOSPC if full else errno.EIO)
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def atomic_text(path: Path, errors: str = "strict", *, follow: bool = False) -> Iterator[TextIO]:
    """Open a UTF-8 file for writing. The file replaces ``path`` if the block succeeds; see ``atomic_replace``.

    Args:
        errors: Error handler of the encoding, as in ``open``.
        follow: Whether the user specified the path. If so, the target of a link is replaced, and text for a stream (see
            ``is_stream``) is written to the stream.
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
    """Provide the path of a temporary file for the block to write.

    If the block succeeds, the temporary file is flushed to disk and replaces ``path``. Otherwise it is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with name_path_in_errors(path):
            yield temporary
            fsync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_temporary(path: Path) -> bool:
    """Return whether a file is a temporary file of ``atomic_replace``. A killed process may have left it behind."""
    return TEMPORARY_NAME.fullmatch(path.name) is not None and path.is_file() and not path.is_symlink()


def temporary_files(folder: Path) -> list[Path]:
    """List the temporary files that killed processes left behind, and the temporary files of this process.

    Files of other running processes on this host are not listed.
    """
    own, paths = f".{os.getpid()}", filter(is_temporary, folder.iterdir() if folder.is_dir() else ())
    return [path for path in paths if path.suffix == own or not Path("/proc", path.suffix[1:]).exists()]


def remove_temporary(folder: Path) -> None:
    """Remove the files that ``temporary_files`` lists."""
    for path in temporary_files(folder):
        path.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Flush a file or the entries of a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
