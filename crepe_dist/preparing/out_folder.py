"""The folder that a preparation makes: complete or not at all, and never in place of other files."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crepe_dist.data import dataset
from crepe_dist.errors import UserError

KINDS = "labels|targets|weights|codes|texts|offsets|origins|ids|id_offsets"
REPORTS = (dataset.MANIFEST, dataset.QUARANTINE, dataset.CONTRADICTIONS, dataset.REPORT, dataset.REPORT_NUMBERS)
OURS = re.compile(
    rf"({'|'.join(dataset.ALL_SPLITS)})\.({KINDS})(-\d+)?\.(npy|bin)|" + "|".join(map(re.escape, REPORTS))
)


@contextmanager
def new_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Provide a temporary folder beside ``out`` that replaces it on success and is removed on failure.

    Leftovers of a killed preparation are cleaned up first.
    """
    try:
        out = out.resolve()  # keep a symbolic link and replace its target
    except (OSError, RuntimeError) as error:  # a cycle of links
        raise UserError(f"{out} cannot be made", str(error), "choose another --out") from error
    _recover(out)
    check_out(out, overwrite)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made", str(error), "choose another --out") from error
    try:
        yield partial
        check_out(out, overwrite)  # another process may have created it meanwhile
        if out.exists():
            old = out.with_name(f".{out.name}.old-{os.getpid()}")
            out.rename(old)
            partial.rename(out)
            shutil.rmtree(old)
        else:
            partial.rename(out)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise UserError(f"{out} could not be written", error.strerror or str(error), "free some space there") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _recover(out: Path) -> None:
    """Remove the leftovers of killed preparations and restore a folder that one was about to replace."""
    if not out.parent.is_dir():
        return
    for path in out.parent.glob(f".{out.name}.*-*"):
        kind, _, process = path.name[len(out.name) + 2 :].partition("-")
        if kind not in ("partial", "old", "copies") or not _is_left(process):
            continue
        if kind == "old" and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def leftovers(out: Path) -> list[Path]:
    """List folders that killed preparations of other data sets left beside ``out``."""
    hidden = out.absolute().parent.glob(".*.partial-*")
    return [path for path in hidden if path.is_dir() and _is_left(path.name.rpartition("-")[2])]


def _is_left(process: str) -> bool:
    return process.isdecimal() and not Path("/proc", process).exists()


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse to replace anything but a data set folder without foreign files, and only with ``overwrite``."""
    if not out.exists():
        return
    if not overwrite:
        raise UserError(f"{out} exists", remedy="choose another --out, or replace it with --overwrite")
    if not (out / dataset.MANIFEST).is_file() or not all(OURS.fullmatch(path.name) for path in out.iterdir()):
        raise UserError(
            f"{out} is not replaced",
            "it is not a prepared data set, or it contains other files",
            "choose another --out",
        )
