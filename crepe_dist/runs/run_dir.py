"""Directory of a run: its files, its lock, its result, and the record that reports and comparisons read from it.

The module has four subjects, in this order: ``RunDir`` (paths, lock, removable files), ``Result`` (``result.json``),
the choice of the directory (the same command returns to the same directory), and ``RunRecord`` (settings, scores and
history of a run).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import HASH
from crepe_dist.data.dataset import SAMPLE, Dataset, Documents, dataset_folder, open_dataset
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.distributed.signals import SUPERVISION_ID_ENV
from crepe_dist.errors import UserError
from crepe_dist.files.atomic_write import fsync, is_temporary, remove_temporary, temporary_files, write_text
from crepe_dist.files.json_file import read_json, write_json
from crepe_dist.formatting import percent, score_name
from crepe_dist.runs import checkpoint
from crepe_dist.runs.checkpoint import CONFIG, FOLDER, RESULT, RUN_KEY_FILE, RUNS, read_result_file
from crepe_dist.runs.metrics import History
from crepe_dist.runs.scores import AnyScores, MulticlassScores, MultilabelScores
from crepe_dist.sealed_json import damaged_error, digest, write_sealed_json
from crepe_dist.settings.aliases import current_settings
from crepe_dist.settings.config import Config, flatten
from crepe_dist.settings.fields import is_title
from crepe_dist.settings.yaml_file import read

# Time limit in seconds for the processes of an earlier group to end. NFS keeps the locks of a dead client for 90 s.
LOCK_SECONDS = 100.0
# Number of seconds after which a message about a wait is printed. Processes of an earlier group usually end sooner.
WAIT_MESSAGE_SECONDS = 3.0
SUPERVISION_FILE = "supervision"  # File with the id of the driver that started the run.
REMOVED_PREFIX = ".removed"  # Prefix of the name of a folder while it is deleted.
LEARNED_SPLITS = ("train", "validation")  # Splits that the parameters depend on.
Settings = dict[str, Any]


@dataclass(frozen=True)
class RunDir:
    """The directory of a run.

    Every run has ``config.yaml``, ``run.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/``, ``state/``,
    ``stacks/`` and ``verified/``. A finished run also has ``result.json``. A run with unlabelled texts has
    ``supervised/`` and ``pseudo_labels/``. The directory ``refit/`` exists during a refit.
    """

    path: Path

    @property
    def state(self) -> Path:
        """Directory of the saved states."""
        return self.path / "state"

    @property
    def supervised(self) -> RunDir:
        """Directory of the supervised model, which is trained before the unlabelled texts are used."""
        former = self.path / "first"  # Name of the directory in earlier versions.
        return RunDir(former if former.is_dir() else self.path / "supervised")

    @property
    def refit(self) -> RunDir:
        """Directory of the refit, which trains the n-gram table on all rows after the validation split has chosen."""
        return RunDir(self.path / "refit")

    @property
    def pseudo_labels(self) -> Path:
        """Directory of the pseudo labels of the unlabelled texts."""
        return self.path / "pseudo_labels"

    def stack_path(self, rank: int) -> Path:
        """Return the path of the file to which the watchdog of a rank writes stack traces."""
        return self.path / "stacks" / f"rank_{rank}.txt"

    def verified_files_path(self) -> Path:
        """Return the file that lists the data files that this host has verified."""
        return self.path / "verified" / f"{socket.gethostname()}.json"

    @property
    def is_run(self) -> bool:
        """True if ``run.json`` was written by a run. Other programs also write files with this name."""
        return {"model", "optimizer", "training", "data"} <= (_identity(self.path) or {}).keys()

    @property
    def name(self) -> str:
        """Name given by ``--name``; empty if there is none."""
        with suppress(UserError):
            name = read(self.path / CONFIG).get("name")
            return name if isinstance(name, str) and is_title(name) else ""
        return ""

    def describe(self) -> str:
        """Read the name from ``config.yaml``, and return name and path for a message."""
        return f"{name} ({self.path})" if (name := self.name) else str(self.path)

    @property
    def result(self) -> dict[str, Any] | None:
        """Content of ``result.json``; ``None`` if the run is not finished."""
        return read_result_file(self.path)

    @property
    def is_refitted(self) -> bool:
        """True if the run is finished and its n-gram table was refitted."""
        return "refit" in (self.result or {}).get("provenance", {})

    def folders_with_temporary_files(self) -> tuple[Path, ...]:
        """Return the folders where killed processes can have left temporary files."""
        runs = self.path, self.supervised.path, self.refit.path
        return *runs, *(path / FOLDER for path in runs), self.pseudo_labels, self.verified_files_path().parent

    def removable_files(self) -> list[Path]:
        """List the files and folders that can be removed. Call this method while the directory is locked.

        Leftovers of killed processes can be removed from every run. In a finished run, the resume state, the folder
        of the refit, and all checkpoints except the reported and the latest one can also be removed. The latest one can
        be removed too if the n-gram table was refitted or the supervised model is reported, unless it is itself the
        reported one. In an unfinished run, only the leftovers are listed.
        """
        paths = [path for folder in self.folders_with_temporary_files() for path in temporary_files(folder)]
        paths += [path for path in self.state.glob(".*") if path.is_dir()]
        paths += self.path.glob(f"{REMOVED_PREFIX}-*")
        if (result := self.result) is None:
            return paths
        paths += [path for path in (self.state, *[self.refit.path] * self.is_refitted) if path.is_dir()]
        unlabelled = result["provenance"].get("unlabelled", {})
        # The supervised model's checkpoint replaced the student's checkpoint, so later checkpoints are not needed.
        is_final = self.is_refitted or unlabelled.get("reported") == checkpoint.SUPERVISED
        latest = [] if is_final else checkpoint.list_checkpoints(self.path / FOLDER)[:1]
        return paths + self.checkpoints_except({Path(result["checkpoint"]).name, *(path.name for path in latest)})

    def checkpoints_except(self, keep: Collection[str]) -> list[Path]:
        """List the files of the checkpoints whose name is not in ``keep``, the parameters first."""
        prefixes = tuple(f"{Path(name).stem}." for name in keep)
        files = (path for path in (self.path / FOLDER).glob("*") if checkpoint.FILE_PATTERN.fullmatch(path.name))
        removable = (path for path in files if not path.name.startswith(prefixes))
        return sorted(removable, key=lambda path: (path.suffix != ".params", path.name))

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove files and folders of the run. Files and folders that cannot be removed are skipped.

        The resume state is renamed before it is deleted, so that no command finds an incomplete state.
        """
        for path in paths:
            with suppress(OSError):
                if not path.is_dir() or path.is_symlink():
                    path.unlink()
                    continue
                if path == self.state:
                    path = path.rename(self.path / f"{REMOVED_PREFIX}-state")
                shutil.rmtree(path)

    def clean_up(self) -> None:
        """Remove the files that the run no longer needs. Call it while the directory is locked."""
        self.remove(self.removable_files())

    def lock(self) -> IO[str]:
        """Lock the directory for this process, until the returned file is closed or the process ends.

        Raises:
            UserError: Another process has locked the directory.
        """
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

    def lock_in_steps(self, timeout: float, say: Callable[[str], None]) -> Iterator[IO[str] | None]:
        """Try to lock the directory repeatedly. Yield ``None`` after each failed attempt, and finally the lock.

        Args:
            timeout: Number of seconds until the last attempt.
            say: Function that prints a message if the wait takes longer than ``WAIT_MESSAGE_SECONDS``.
        """
        start = time.monotonic()
        due, message_due = start + timeout, start + min(timeout, WAIT_MESSAGE_SECONDS)
        while True:
            try:
                lock = self.lock()
                for folder in self.folders_with_temporary_files():
                    remove_temporary(folder)
                yield lock
                return
            except UserError:
                now = time.monotonic()
                if now > due:
                    raise
                if now > message_due:
                    message_due = due + 1.0  # The message is printed only one time.
                    say(f"another process is training in {self.path}; waiting up to {timeout:.0f} s for it to end")
            yield None
            time.sleep(0.2)


def disk_usage(path: Path) -> int:
    """Return the size in bytes of a file, or the sum of the sizes of all files in a folder."""
    total = 0
    for file in path.rglob("*") if path.is_dir() and not path.is_symlink() else (path,):
        with suppress(OSError):
            status = file.lstat()
            total += status.st_size * (not stat.S_ISDIR(status.st_mode))
    return total


@dataclass(frozen=True)
class Result:
    """Result of a finished run.

    Attributes:
        run_dir: Directory of the run.
        checkpoint: Path of the reported .params file.
        epoch: Number of the reported epoch, from 1.
        chosen_by: "validation split" if a validation split selected the epoch (``ModelSelection``); otherwise "last
            epoch".
        test_accuracy: Test accuracy of the reported epoch, as a fraction. If documents have multiple labels, it is the
            micro F1.
        test_loss: Test loss of the reported epoch, in nats per document. It is the loss of the calibrated
            probabilities, which ``predict`` returns.
    """

    run_dir: Path
    checkpoint: Path
    epoch: int
    chosen_by: str
    test_accuracy: float
    test_loss: float

    def __str__(self) -> str:
        return (
            f"test {checkpoint.score_name(self.checkpoint.name)} {percent(self.test_accuracy)}, loss "
            f"{self.test_loss:.4f} "
            f"(epoch {self.epoch}, {self.chosen_by})\n{self.checkpoint}"
        )


def read_result(folder: RunDir) -> Result | None:
    """Read the result of a run. Return ``None`` if the run is not finished."""
    if (saved := folder.result) is None:
        return None
    checkpoint.check_present(folder.path, Path(saved["checkpoint"]).name)
    values = {name: saved[name] for name in ("epoch", "chosen_by", "test_accuracy", "test_loss")}
    return Result(folder.path, folder.path / saved["checkpoint"], **values)


def write_result(
    folder: RunDir, reported: dict[str, Any], chosen_by: str, provenance: dict[str, Any], group: ProcessGroup
) -> Result:
    """Write ``result.json`` on rank 0, and clean up the directory. Every rank calls it.

    The file marks the run as finished.

    Args:
        reported: Record of the reported epoch.
        chosen_by: Value of ``Result.chosen_by``.
        provenance: Data, processes, device and environment of the run, for its report.

    Raises:
        UserError: The reported checkpoint is missing. Every rank raises it.
    """

    def write() -> None:
        checkpoint.check_present(folder.path, reported["checkpoint"])
        names = ("epoch", "test_accuracy", "test_loss", "test_uncalibrated_loss")
        scores = {name: reported[name] for name in names if name in reported}
        path = f"{FOLDER}/{reported['checkpoint']}"
        result = {"checkpoint": path, "chosen_by": chosen_by, **scores, "provenance": provenance}
        write_sealed_json(folder.path / RESULT, checkpoint.RESULT_FORMAT, result)
        fsync(folder.path)  # The result must be on disk before the clean-up removes the state.

    group.run_on_rank0("result", write)
    result = read_result(folder)
    assert result is not None
    if group.is_root:
        # The clean-up removes the state, so it follows the write of the result. A run without a result needs its state.
        folder.clean_up()
    return result


def select_run_dir(config: Config, data: Dataset, group: ProcessGroup) -> RunDir:
    """Select the directory of a run on rank 0, and check that every rank can access it. Every rank calls it.

    Raises:
        UserError: The directory cannot be used (``select_run_dir_on_rank0``), or a host does not share it. Every rank
            raises it.
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
    folder: RunDir, group: ProcessGroup, is_supervised: bool, say: Callable[[str], None]
) -> AbstractContextManager[Any]:
    """Lock the directory on rank 0. Every rank calls it.

    Args:
        is_supervised: Whether the elastic driver has started this process. The function then waits for the processes of
            an earlier group to end.

    Raises:
        UserError: Another process trains in the directory. Every rank raises it.
    """
    timeout = LOCK_SECONDS if is_supervised else 0.0
    return group.run_steps_on_rank0("lock", folder.lock_in_steps(timeout, say)) or nullcontext()


def select_run_dir_on_rank0(config: Config, data_name: str, data_fingerprint: str) -> RunDir:
    """Select the directory of a run, and create it if it does not exist. Only rank 0 calls it.

    The directory is ``runs/<data>-<hash>`` or ``config.run_dir``. With ``fresh``, a new run with the same settings gets
    the suffix -2, -3, and so on, and later commands use the newest run. Processes that the elastic driver has restarted
    return to the run of the first processes.

    Raises:
        UserError: The directory cannot be created, belongs to a run with other settings, or has other files.
    """
    identity = {**config.run_key(), "data": data_fingerprint}
    base = Path(config.run_dir) if config.run_dir else RUNS / f"{data_name}-{digest(identity)[:10]}"
    taken = [base] if base.exists() else []
    while taken and (following := _numbered(base, len(taken) + 1)).exists():
        taken.append(following)
    if len(taken) > 1 and _is_uninitialized(taken[-1]):
        taken.pop()  # A process was killed while it created this folder.
    same = [path for path in taken if _identity(path) == identity]
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
    settings, file = replace(config, name=config.name or chosen.name or None).to_yaml(), path / CONFIG
    if not file.is_file() or file.read_bytes() != settings.encode():
        write_text(file, settings)  # The report of a finished run is now older than this file, so it is written again.
    return chosen


def _numbered(base: Path, number: int) -> Path:
    return base if number == 1 else base.with_name(f"{base.name}-{number}")


def _identity(path: Path) -> dict[str, Any] | None:
    """Return the content of ``run.json``. Return ``None`` if it cannot be read."""
    # If the directory is selected, ``_check`` reports the error.
    with suppress(UserError):
        return _read(path / RUN_KEY_FILE)
    return None


def _supervision(path: Path) -> str:
    file = path / SUPERVISION_FILE
    return file.read_text(encoding="utf-8").strip() if file.is_file() and not file.is_symlink() else ""


def _is_uninitialized(path: Path) -> bool:
    """Return whether the initialisation of this directory was interrupted.

    The directory then contains only a supervision file and temporary files.
    """
    return path.is_dir() and all(file.name == SUPERVISION_FILE or is_temporary(file) for file in path.iterdir())


def _initialize(path: Path, identity: dict[str, Any], supervision: str) -> None:
    """Write the first files of a run. ``run.json`` is written last, because it marks the directory as a run's."""
    if supervision:
        write_text(path / SUPERVISION_FILE, f"{supervision}\n")
    write_json(path / RUN_KEY_FILE, identity)


def _check(path: Path, identity: dict[str, Any], supervision: str) -> None:
    """Check that an existing directory belongs to a run with these settings. Initialise an empty directory.

    Raises:
        UserError: The directory has other files, or its run has other settings.
    """
    if not (path / RUN_KEY_FILE).is_file():
        if not _is_uninitialized(path):
            raise UserError(f"{path} is not empty, and is not a run's folder", remedy="choose another --run-dir")
        _initialize(path, identity, supervision)
        return
    former, requested = (flatten(current_settings(values)) for values in (_read(path / RUN_KEY_FILE), identity))
    if former != requested:
        names = sorted(name for name in {**former, **requested} if former.get(name) != requested.get(name))
        raise UserError(
            f"{path} was started with other settings",
            f"different: {', '.join(f'{name} {former.get(name)} → {requested.get(name)}' for name in names)}",
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


@dataclass(frozen=True)
class RunRecord:
    """A run with at least one scored epoch.

    Attributes:
        path: Directory of the run.
        given_name: Name given by ``--name``; empty if there is none.
        settings: Values of the settings by dotted name.
        result: Content of ``result.json``; ``None`` if the run is not finished.
        checkpoint: Path of the reported .params file.
        metadata: Metadata of the checkpoint.
        multiclass_scores: Scores of the reported epoch by split. Empty if documents have multiple labels, or if there
            are too many classes to store scores.
        multilabel_scores: The same scores if documents have multiple labels; otherwise empty.
        history: Steps and epochs of the run.
    """

    path: Path
    given_name: str
    settings: Settings
    result: dict[str, Any] | None
    checkpoint: Path
    metadata: dict[str, Any]
    multiclass_scores: dict[str, MulticlassScores]
    multilabel_scores: dict[str, MultilabelScores]
    history: History

    @property
    def name(self) -> str:
        return self.given_name or self.path.absolute().name

    @property
    def score_name(self) -> str:
        """Name of the score that the records call accuracy: accuracy or micro F1."""
        return score_name("labels" in self.metadata)

    @property
    def classes(self) -> list[str]:
        return list(self.metadata["classes"])

    @property
    def epoch(self) -> int:
        return int(self.metadata["epoch"])

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the reported epoch, by name."""
        return dict(self.metadata["metrics"])

    @property
    def test_scores(self) -> AnyScores | None:
        """Scores of the reported epoch on the test split; ``None`` if they are not stored."""
        return self.multiclass_scores.get("test") or self.multilabel_scores.get("test")

    @property
    def provenance(self) -> dict[str, Any]:
        """Data, processes, device and environment of the run. Empty if the run is not finished."""
        return dict(self.result["provenance"]) if self.result else {}

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data (``Dataset.fingerprint``)."""
        return str(self.metadata["data"]["fingerprint"])

    def has_same_test_split(self, other: RunRecord) -> bool:
        """Return whether both runs were evaluated on the same test documents."""
        return bool(self.metadata["data"]["test"] == other.metadata["data"]["test"])

    @property
    def data_folder(self) -> Path:
        """Folder that contained the data during training."""
        source = str(self.settings.get("data.source", SAMPLE))
        return Path(self.provenance["data"]) if self.provenance else dataset_folder(source)

    def non_default_settings(self) -> Settings:
        """Return the settings that differ from the defaults of this version. Some are computed from the data."""
        defaults = flatten(Config().to_dict())
        return {name: value for name, value in self.settings.items() if defaults.get(name, value) != value}

    def open_dataset(self, folder: Path | None) -> Dataset:
        """Open the data that the run was trained on.

        Args:
            folder: Current folder of the data. ``None``: the folder of the data during training.

        Raises:
            UserError: The folder contains no data, or other data.
        """
        data = open_dataset(folder or self.data_folder)
        if data.fingerprint != self.fingerprint:
            raise UserError(
                f"{data.folder} is not the data of this run", "its fingerprint differs", "name the data with --data"
            )
        return data

    def seen_in_training(self, documents: Documents) -> dict[str, npt.NDArray[np.bool_]]:
        """Return masks of the documents whose text equals the text of a document that the run was trained on.

        Returns:
            One mask, bool [documents], for each of the splits ``LEARNED_SPLITS``.

        Raises:
            UserError: The data of the run no longer exist, or have changed.
        """
        splits, hashes = self.open_dataset(None).splits, documents.source_rows[:, HASH]
        return {name: np.isin(hashes, splits[name].source_rows[:, HASH]) for name in LEARNED_SPLITS if name in splits}


def open_run_of_checkpoint(path: Path) -> RunRecord | None:
    """Read the run of a checkpoint. Return ``None`` if the checkpoint is not in the directory of a run."""
    run_dir = path.absolute().parent.parent
    return open_run(run_dir, path) if (run_dir / CONFIG).is_file() else None


def open_run(run_dir: Path, path: Path | None = None) -> RunRecord:
    """Read the run in a directory.

    Args:
        run_dir: Directory of the run, or the start of its name in ``runs/``.
        path: Checkpoint of the run. ``None``: the reported checkpoint.

    Raises:
        UserError: The directory is not the directory of a run with a scored epoch, or a file is damaged.
    """
    run_dir = checkpoint.resolve_run_name(str(run_dir))
    if not run_dir.exists():
        raise checkpoint.not_found_error(run_dir)
    if not (run_dir / checkpoint.FOLDER).is_dir():
        raise UserError(f"{run_dir} is not a run's folder with a scored epoch", remedy="name a folder in runs/")
    path = path or checkpoint.resolve_model(str(run_dir))
    metadata = checkpoint.read_metadata(path)
    if metadata is None:
        raise UserError(f"{path} has no .json file beside it", remedy="name another run")
    if missing := {"epoch", "metrics", "numerics", "data"} - metadata.keys():
        raise damaged_error(path.with_suffix(".json"), KeyError(min(missing)), "name another run")
    folder, config, scores = RunDir(run_dir), run_dir / CONFIG, checkpoint.read_scores(path)
    return RunRecord(
        path=run_dir,
        given_name=folder.name,
        settings=flatten(read(config)) if config.is_file() else {},
        result=folder.result,
        checkpoint=path,
        metadata=metadata,
        multiclass_scores={name: score for name, score in scores.items() if isinstance(score, MulticlassScores)},
        multilabel_scores={name: score for name, score in scores.items() if isinstance(score, MultilabelScores)},
        history=History.from_run_dir(run_dir),
    )
