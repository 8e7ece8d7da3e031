"""Verification of the files of a data set folder by the checksums in its manifest."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crepe_dist import invocation, machine
from crepe_dist.data.dataset import Dataset
from crepe_dist.errors import UserError
from crepe_dist.files import read_json, sha256, write_json

LIBC = ctypes.CDLL(None)
LIBC.signal.restype, LIBC.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)


@contextmanager
def truncation_explained(folder: Path) -> Iterator[None]:
    """End the process with a message, not in silence, if a mapped file of the folder is truncated within the block.

    The kernel then sends SIGBUS to the thread that reads, where Python's own handlers never run.
    """
    message = UserError(
        f"a file of {folder} was truncated while it was read",
        "the kernel ended a read of it by SIGBUS; copying over a file in place does this",
        f"{invocation.typed('prepare')} --verify {shlex.quote(str(folder))} names it; prepare the data again",
    )

    def end(number: int) -> None:
        os.write(2, f"{message}\n".encode())
        os._exit(message.code)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    before = LIBC.signal(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        LIBC.signal(signal.SIGBUS, before)


def verify(dataset: Dataset, record: Path | None = None, beat: Callable[[], None] = lambda: None) -> None:
    """Compare the SHA-256 of every file with the manifest.

    Args:
        record: cache file with the size, times and inode of verified files. A file that still has these is not read
            again.
        beat: callback during reading, such as a watchdog's heartbeat.

    Raises:
        UserError: A file differs from the manifest; the message names it.
    """
    splits = dataset.manifest["parts"].values()
    digests = {file: about["sha256"] for split in splits for file, about in split["files"].items()}
    known = _read_record(record)
    attributes = {file: _attributes(dataset.folder / file) for file in digests}
    unread = [file for file in digests if known.get(file) != [digests[file], *attributes[file]]]
    with ThreadPoolExecutor(machine.cores()) as pool:
        for file, digest in zip(unread, pool.map(lambda file: _digest(dataset.folder / file, beat), unread)):
            if digest != digests[file]:
                raise UserError(
                    f"{dataset.folder / file} was altered since it was prepared",
                    "its SHA-256 is not the one in the manifest",
                    "prepare the data again",
                )
    if record is not None and unread:
        record.parent.mkdir(exist_ok=True)
        write_json(record, {file: [digests[file], *stat] for file, stat in attributes.items()})


def _digest(path: Path, beat: Callable[[], None]) -> str:
    try:
        return sha256(path, follow=False, beat=beat)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be verified", str(error), "prepare the data again") from error


def _attributes(path: Path) -> list[int]:
    about = path.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]


def _read_record(path: Path | None) -> dict[str, Any]:
    try:
        known = read_json(path) if path is not None else {}
    except (OSError, ValueError):
        return {}  # verify reads all files then
    return known if isinstance(known, dict) else {}
