"""Temporary folders; those of killed processes are removed when the next one is made."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from crepe_dist.files import writing

PREFIX = "crepe-scratch-"
LOCK = ".lock"  # held as long as the folder is in use
YOUNG = 60.0  # seconds in which a new folder may not have been locked yet


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a temporary folder, and remove it at the end of the block."""
    for left in abandoned():
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name, (Path(name) / LOCK).open("w") as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with writing(Path(name)):
            yield Path(name)


def abandoned() -> list[Path]:
    """List this user's temporary folders whose process was killed."""
    return [path for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*") if _is_abandoned(path)]


def _is_abandoned(path: Path) -> bool:
    try:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or time.time() - status.st_mtime < YOUNG:
            return False
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
