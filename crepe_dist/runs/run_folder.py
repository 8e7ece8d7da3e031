"""The folder that a run writes to; the same command finds the same folder again."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from crepe_dist.data.dataset import Dataset
from crepe_dist.distributed.control import SUPERVISED_AS
from crepe_dist.distributed.world import World, once
from crepe_dist.errors import UserError
from crepe_dist.files import is_temporary, read_bytes, read_json, remove_temporary, write_json, write_text
from crepe_dist.runs.checkpoint import CONFIG, FOLDER, RUNS, result_of
from crepe_dist.settings.config import Config, digest
from crepe_dist.settings.fields import is_title
from crepe_dist.settings.yaml_file import read

IDENTITY = "run.json"
LOCK_SECONDS = 100.0  # for an earlier group's processes to end; NFS keeps a dead client's locks for 90 s
SOON = 3.0  # seconds that an earlier group's processes usually take to end
SUPERVISION = "supervision"  # file with the id of the driver that started the run


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run.

    It contains ``config.yaml``, ``run.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/``, ``state/``,
    ``stacks/``, ``verified/``, ``trackers.json`` if there are any, and, once the run is finished, ``result.json``. With
    unlabelled texts, there are also ``first/`` and ``lesson/``.
    """

    path: Path

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def first(self) -> RunFolder:
        """Folder of the network that is trained before unlabelled texts are used."""
        return RunFolder(self.path / "first")

    @property
    def lesson(self) -> Path:
        """Folder of soft labels."""
        return self.path / "lesson"

    def stacks(self, rank: int) -> Path:
        """Return the file to which the watchdog of a rank writes stacks."""
        return self.path / "stacks" / f"rank_{rank}.txt"

    def verified(self) -> Path:
        """Return the file in which this host records the data files that it has verified."""
        return self.path / "verified" / f"{socket.gethostname()}.json"

    @property
    def is_run(self) -> bool:
        """True for the folder of a run; other programs may write a ``run.json``, too."""
        return {"model", "optimizer", "training", "data"} <= (_identity(self.path) or {}).keys()

    @property
    def name(self) -> str:
        """Name given by ``--name``; empty if there is none."""
        try:
            name = read(self.path / CONFIG).get("name") if (self.path / CONFIG).is_file() else None
        except UserError:
            return ""
        return name if isinstance(name, str) and is_title(name) else ""

    def __str__(self) -> str:
        return f"{name} ({self.path})" if (name := self.name) else str(self.path)

    @property
    def result(self) -> dict[str, Any] | None:
        """Content of ``result.json``; ``None`` if the run is not finished."""
        return result_of(self.path)

    def folders(self) -> tuple[Path, ...]:
        """Return the folders in which killed processes leave temporary files."""
        first = self.first
        networks = self.path, self.path / FOLDER, self.lesson, first.path, first.path / FOLDER, first.lesson
        return *networks, self.verified().parent

    def lock(self) -> IO[str]:
        """Lock the folder for this process until the returned file is closed or the process ends."""
        file = (self.path / ".lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise UserError(
                f"another process is training in {self.path}",
                remedy="wait for it to end, or start another run with --fresh",
            ) from error
        return file

    def lock_in_steps(self, patience: float, say: Callable[[str], None]) -> Iterator[IO[str] | None]:
        """Retry ``lock``, yielding ``None`` after each failed attempt and finally the lock.

        Args:
            patience: seconds until the last attempt.
            say: prints a message if the wait takes longer than ``SOON``.
        """
        began = time.monotonic()
        due, soon = began + patience, began + min(patience, SOON)
        while True:
            try:
                lock = self.lock()
                for folder in self.folders():
                    remove_temporary(folder)
                yield lock
                return
            except UserError:
                now = time.monotonic()
                if now > due:
                    raise
                if now > soon:
                    soon = due + 1.0
                    say(f"another process is training in {self.path}; waiting up to {patience:.0f} s for it to end")
            yield None
            time.sleep(0.2)


def choose_folder(config: Config, data: Dataset, ranks: World) -> RunFolder:
    """Choose the run's folder on rank 0, and check that every rank sees it.

    Raises:
        UserError: on every rank, as ``choose``, or if a host does not share the folder.
    """
    folder = ranks.on_root("run folder", once(lambda: choose(config, data.name, data.fingerprint)))
    chosen = Path(ranks.broadcast(folder and str(folder.path), "run folder"))

    def seen() -> RunFolder:
        if not chosen.is_dir():
            raise UserError(
                f"the run folder {chosen} is not visible on this host", remedy="choose a --run-dir that all hosts share"
            )
        return RunFolder(chosen)

    return ranks.agree("run folder", seen)


def lock_on_root(
    folder: RunFolder, ranks: World, is_supervised: bool, say: Callable[[str], None]
) -> AbstractContextManager[Any]:
    """Lock the folder on rank 0; every rank calls it. Under a driver, wait for earlier processes to end.

    Raises:
        UserError: on every rank, if another process trains in the folder.
    """
    patience = LOCK_SECONDS if is_supervised else 0.0
    return ranks.on_root("lock", folder.lock_in_steps(patience, say)) or nullcontext()


def choose(config: Config, data_name: str, data_fingerprint: str) -> RunFolder:
    """Choose the run's folder, and create it if it does not exist; only rank 0 calls this.

    It is ``runs/<data>-<hash>`` or ``config.run_dir``. With ``fresh``, a further run with the same settings gets the
    suffix -2, -3, …; later commands use the newest one. Processes restarted by a driver return to its run.
    """
    identity = {**config.identity(), "data": data_fingerprint}
    # Runs with overfit_batches are tests, so no command may find them as the newest run.
    folder = RUNS / "overfit" if config.training.overfit_batches else RUNS
    base = Path(config.run_dir) if config.run_dir else folder / f"{data_name}-{digest(identity)[:10]}"
    taken = [base] if base.exists() else []
    while taken and (following := _numbered(base, len(taken) + 1)).exists():
        taken.append(following)
    if len(taken) > 1 and _is_unclaimed(taken[-1]):
        taken.pop()  # a process was killed while it made this folder
    same = [path for path in taken if _identity(path) == identity]
    supervision = os.environ.get(SUPERVISED_AS, "")
    is_restart = bool(same and supervision) and _supervision(same[-1]) == supervision
    if not taken or (config.fresh and not is_restart):
        path = base if taken and _is_unclaimed(base) else _numbered(base, len(taken) + 1)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the run folder {path} cannot be created", error.strerror or str(error), "choose another --run-dir"
            ) from error
        _claim(path, identity, supervision)
    else:
        path = same[-1] if same else base
        _check(path, identity, supervision)
    chosen = RunFolder(path)
    settings = replace(config, name=config.name or chosen.name or None).to_yaml()
    if not _has_text(path / CONFIG, settings):
        write_text(path / CONFIG, settings)  # the report of a finished run is made again, as it is older now
    return chosen


def _has_text(path: Path, text: str) -> bool:
    data = text.encode("utf-8")
    try:
        return read_bytes(path, len(data)) == data
    except (OSError, ValueError):
        return False


def _numbered(base: Path, number: int) -> Path:
    return base if number == 1 else base.with_name(f"{base.name}-{number}")


def _identity(path: Path) -> dict[str, Any] | None:
    try:
        return _read(path / IDENTITY)
    except UserError:
        return None  # `_check` reports it, if this folder is the chosen one


def _supervision(path: Path) -> str:
    file = path / SUPERVISION
    return file.read_text(encoding="utf-8").strip() if file.is_file() and not file.is_symlink() else ""


def _is_unclaimed(path: Path) -> bool:
    """Return whether a folder holds nothing but what a process leaves that was killed before ``_claim`` had ended."""
    return path.is_dir() and all(file.name == SUPERVISION or is_temporary(file) for file in path.iterdir())


def _claim(path: Path, identity: dict[str, Any], supervision: str) -> None:
    """Make a folder that of a run; the file written last makes it so."""
    if supervision:
        write_text(path / SUPERVISION, f"{supervision}\n")
    write_json(path / IDENTITY, identity)


def _check(path: Path, identity: dict[str, Any], supervision: str) -> None:
    if not path.is_dir():
        raise UserError(f"{path} is not a folder", remedy="choose another --run-dir")
    if not (path / IDENTITY).is_file():
        if not _is_unclaimed(path):
            raise UserError(
                f"{path} is neither empty nor a run's folder", f"it has no {IDENTITY}", "choose another --run-dir"
            )
        _claim(path, identity, supervision)
        return
    before = _read(path / IDENTITY)
    if before != identity:
        raise UserError(
            f"{path} was started with other settings",
            f"different: {', '.join(_differences(before, identity))}",
            f"resume it with --config {path / CONFIG}, choose another --run-dir, or start another run with --fresh",
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path, follow=False)
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read", str(error), "choose another --run-dir, or start another run with --fresh"
        ) from error
    return values


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            names += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            names.append(f"{prefix}{key} {old} → {new}" if key != "data" else "the data")
    return names
