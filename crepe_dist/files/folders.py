"""Temporary folders, and the cache folder."""

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from crepe_dist.files.atomic_write import name_path_in_errors

TEMPORARY_PREFIX = "crepe-scratch-"  # Start of the names of temporary folders.
LOCK_NAME = ".lock"  # Name of a file in a temporary folder. This file is locked while a process uses the folder.
# A folder without a lock counts as abandoned only from this age, because its process may not have locked it yet.
MIN_ABANDONED_SECONDS = 60.0


def cache_folder() -> Path:
    """Return the folder for files that can be downloaded or computed again. The folder may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crepe_dist"


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Create a temporary folder for the duration of the ``with`` block.

    Also remove the temporary folders that killed processes left behind.

    Args:
        parent: Folder that will contain the temporary folder. ``None`` selects the system's folder for temporary files.
    """
    for folder in list_abandoned(parent):
        shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=parent) as name:
        folder = Path(name)
        with (folder / LOCK_NAME).open("w") as lock:
            with suppress(OSError):  # Some file systems do not support locks.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with name_path_in_errors(folder):
                yield folder


def list_abandoned(parent: Path | None = None) -> list[Path]:
    """List this user's temporary folders that killed processes left behind."""
    folders = sorted(Path(parent or tempfile.gettempdir()).glob(f"{TEMPORARY_PREFIX}*"))
    return [path for path in folders if _is_abandoned(path)]


def _is_abandoned(path: Path) -> bool:
    try:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return False
        if time.time() - status.st_mtime < MIN_ABANDONED_SECONDS:
            return False
        with os.fdopen(os.open(path / LOCK_NAME, os.O_RDWR | os.O_NOFOLLOW), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # This fails while a process uses the folder.
        return True
    except FileNotFoundError:
        return path.is_dir()
    except OSError:
        return False
