"""TODO docstring."""

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

from crepe_dist.files.atomic_write import name_path_in_errors

PREFIX = "crepe-scratch-"
LOCK = ".lock"  # held as long as the folder is in use
YOUNG = 60.0  # seconds in which a new folder may not have been locked yet


def cache_folder() -> Path:
    """Return the folder for files that can be downloaded or computed again. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crepe_dist"


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
