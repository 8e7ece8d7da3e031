"""Disk space of a run: what it takes, and what it no longer needs once it is finished."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from crepe_dist.files import temporary_files
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_folder import RunFolder

REMOVED = ".removed"  # prefix of a state while it is deleted


def superfluous(folder: RunFolder) -> list[Path]:
    """List what a run can do without; call while the folder is locked.

    Besides leftovers of killed processes, these are the saved state of a finished run, and its checkpoints but the
    reported and the latest one. An unfinished run needs its states, and the checkpoints that these refer to.
    """
    paths = [path for within in folder.folders() for path in temporary_files(within)]
    paths += [path for path in folder.state.glob(".*") if path.is_dir()]
    paths += folder.path.glob(f"{REMOVED}-*")
    result = folder.result
    if result is None:
        return paths
    if folder.state.is_dir():
        paths.append(folder.state)
    provenance = result["provenance"]
    student = provenance.get("unlabelled", {}).get("reported") != "first network"  # else its checkpoints are refused
    latest = checkpoint.listed(folder.path / checkpoint.FOLDER)[:student]
    return paths + other_checkpoints(folder, {Path(result["checkpoint"]).name, *(path.name for path in latest)})


def other_checkpoints(folder: RunFolder, keep: Collection[str]) -> list[Path]:
    """List the files of the checkpoints whose name is not in ``keep``, the parameters first."""
    kept = tuple(f"{Path(name).stem}." for name in keep)
    files = (path for path in (folder.path / checkpoint.FOLDER).glob("*") if checkpoint.FILE.fullmatch(path.name))
    others = (path for path in files if not path.name.startswith(kept))
    return sorted(others, key=lambda path: (path.suffix != ".params", path.name))


def remove(folder: RunFolder, paths: Iterable[Path]) -> None:
    """Remove files and folders of a run; skip what cannot be removed.

    A state gets another name first, so that no command finds half of it.
    """
    for path in paths:
        with suppress(OSError):
            if not path.is_dir() or path.is_symlink():
                path.unlink()
                continue
            if path == folder.state:
                path = path.rename(folder.path / f"{REMOVED}-state")
            shutil.rmtree(path)


def tidy(folder: RunFolder) -> None:
    """Remove what a finished run no longer needs; call while the folder is locked."""
    remove(folder, superfluous(folder))


def size(path: Path) -> int:
    """Return the size of a file, or of the files in a folder, in bytes."""
    total = 0
    for file in path.rglob("*") if path.is_dir() and not path.is_symlink() else (path,):
        with suppress(OSError):
            about = file.lstat()
            total += about.st_size * (not stat.S_ISDIR(about.st_mode))
    return total
