"""Selection and locking of the directory of a run. The same command selects the same directory again."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from crepe_dist.data.dataset import Dataset
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.distributed.signals import SUPERVISION_ID_ENV
from crepe_dist.errors import UserError
from crepe_dist.files.atomic_write import is_temporary, write_text
from crepe_dist.files.json_file import write_json
from crepe_dist.runs.checkpoint import CONFIG, RUN_KEY_FILE, RUNS
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.sealed_json import digest
from crepe_dist.settings.config import Config, flatten

# Time limit in seconds for the processes of an earlier group to end. NFS keeps the locks of a dead client for 90 s.
LOCK_SECONDS = 120.0
SUPERVISION_FILE = "supervision"  # File with the id of the driver that started the run.


def select_run_dir(config: Config, data: Dataset, group: ProcessGroup) -> RunDir:
    """Select the directory of a run on rank 0, and check that every rank can access it. Every rank must call this
    function.

    Raises:
        UserError: The directory cannot be used (``select_run_dir_on_rank0``), or is not visible on a host. Every rank
            raises this error.
    """
    folder = group.run_on_rank0("run folder", lambda: select_run_dir_on_rank0(config, data.name, data.fingerprint))
    chosen = Path(group.broadcast_json(folder and str(folder.path), "run folder"))

    def check() -> RunDir:
        if not chosen.is_dir():
            remedy = "choose a --run-dir that all hosts share"
            raise UserError(f"the run folder {chosen} is not visible on this host", remedy=remedy)
        return RunDir(chosen)

    return group.run_on_all("run folder", check)


def lock_on_rank0(
    folder: RunDir, group: ProcessGroup, may_be_restarted: bool, say: Callable[[str], None]
) -> AbstractContextManager[Any]:
    """Lock the directory on rank 0. Every rank must call this function.

    Args:
        may_be_restarted: Whether a launcher or the elastic driver has started this process. It may replace processes
            that were lost, so wait up to ``LOCK_SECONDS`` for their lock to be released.

    Raises:
        UserError: Another process trains in the directory. Every rank raises this error.
    """
    timeout = LOCK_SECONDS if may_be_restarted else 0.0
    return group.run_steps_on_rank0("lock", folder.lock_in_steps(timeout, say)) or nullcontext()


def select_run_dir_on_rank0(config: Config, data_name: str, data_fingerprint: str) -> RunDir:
    """Select the directory of a run, and create it if it does not exist. Only rank 0 may call this function.

    The directory is ``runs/<data>-<hash>`` or ``config.run_dir``. If ``fresh`` is True, a new run with the same
    settings gets the suffix -2, -3, and so on, and later commands use the newest run. Processes that the elastic driver
    has restarted return to the run of the first processes.

    Raises:
        UserError: The directory cannot be created, belongs to a run with other settings, or contains unrelated files.
    """
    identity = {**config.run_key(), "data": data_fingerprint}
    base = Path(config.run_dir) if config.run_dir else RUNS / f"{data_name}-{digest(identity)[:10]}"
    taken = [base] if base.exists() else []
    while taken and (following := _numbered(base, len(taken) + 1)).exists():
        taken.append(following)
    if len(taken) > 1 and _is_uninitialized(taken[-1]):
        taken.pop()  # A process was killed while it created this folder.
    same = [path for path in taken if RunDir(path).run_key == identity]
    supervision = os.environ.get(SUPERVISION_ID_ENV, "")
    is_restart = bool(same and supervision) and _supervision(same[-1]) == supervision
    if not taken or (config.fresh and not is_restart):
        path = base if taken and _is_uninitialized(base) else _numbered(base, len(taken) + 1)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the run folder {path} cannot be created", error.strerror or str(error), "choose another --run-dir"
            ) from error
        _initialize(path, identity, supervision)
    else:
        path = same[-1] if same else base
        _check(path, identity, supervision)
    chosen = RunDir(path)
    settings, file = config.to_yaml(), path / CONFIG
    if not file.is_file() or file.read_bytes() != settings.encode():
        # The report of a finished run is then older than this file, so the report will be rewritten.
        write_text(file, settings)
    return chosen


def _numbered(base: Path, number: int) -> Path:
    return base if number == 1 else base.with_name(f"{base.name}-{number}")


def _supervision(path: Path) -> str:
    file = path / SUPERVISION_FILE
    return file.read_text(encoding="utf-8").strip() if file.is_file() and not file.is_symlink() else ""


def _is_uninitialized(path: Path) -> bool:
    """Return whether the initialisation of this directory was interrupted.

    The directory then contains only a supervision file and temporary files.
    """
    return path.is_dir() and all(file.name == SUPERVISION_FILE or is_temporary(file) for file in path.iterdir())


def _initialize(path: Path, identity: dict[str, Any], supervision: str) -> None:
    """Write the first files of a run. ``run.json`` is last, because it marks the directory as belonging to a run."""
    if supervision:
        write_text(path / SUPERVISION_FILE, f"{supervision}\n")
    write_json(path / RUN_KEY_FILE, identity)


def _check(path: Path, identity: dict[str, Any], supervision: str) -> None:
    """Check that an existing directory belongs to a run with these settings. Initialise an empty directory.

    Raises:
        UserError: The directory contains unrelated files, or its run has other settings.
    """
    if not (path / RUN_KEY_FILE).is_file():
        if not _is_uninitialized(path):
            raise UserError(f"{path} is neither empty nor a run's folder", remedy="choose another --run-dir")
        _initialize(path, identity, supervision)
        return
    former, requested = map(flatten, (RunDir(path).read_run_key(), identity))
    if former != requested:
        names = sorted(name for name in {**former, **requested} if former.get(name) != requested.get(name))
        raise UserError(
            f"{path} was started with other settings",
            f"different: {', '.join(f'{name} {former.get(name)} → {requested.get(name)}' for name in names)}",
            f"resume it with --config {path / CONFIG}, choose another --run-dir, or start another run with --fresh",
        )
