"""The directory of a run: its files, its lock, its result, and the record that reports and comparisons read from it.

The module has four subjects, in this order: ``RunDir`` (paths, lock, removable files), ``Result`` (``result.json``),
the choice of the directory (the same command finds the same directory again), and ``RunRecord`` (settings, scores and
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

# Time limit for an earlier group's processes to end. NFS keeps a dead client's locks for 90 s.
LOCK_SECONDS = 100.0
WAIT_MESSAGE_SECONDS = 3.0  # seconds that an earlier group's processes usually take to end
SUPERVISION_FILE = "supervision"  # file with the id of the driver that started the run
REMOVED_PREFIX = ".removed"  # prefix of a state while it is deleted
LEARNED_SPLITS = ("train", "validation")  # splits whose documents decide the parameters
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
        """Return the file in which this host records the data files that it has verified."""
        return self.path / "verified" / f"{socket.gethostname()}.json"

    @property
    def is_run(self) -> bool:
        """Whether ``run.json`` is that of a run. Other programs also write files with this name."""
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
        """Whether the run is finished and its n-gram table was refitted."""
        return "refit" in (self.result or {}).get("provenance", {})

    def folders_with_temporary_files(self) -> tuple[Path, ...]:
        """Return the folders in which killed processes leave temporary files."""
        runs = self.path, self.supervised.path, self.refit.path
        return *runs, *(path / FOLDER for path in runs), self.pseudo_labels, self.verified_files_path().parent

    def removable_files(self) -> list[Path]:
        """List the files and folders that can be removed; call while the directory is locked.

        Leftovers of killed processes can be removed from every run. A finished run no longer needs its resume state,
        the folder of its refit, and its checkpoints except the reported and the latest checkpoint. It does not need the
        latest checkpoint either if the n-gram table was refitted or the supervised model is reported. An unfinished run
        needs its resume states and the checkpoints that the states name.
        """
        paths = [path for within in self.folders_with_temporary_files() for path in temporary_files(within)]
        paths += [path for path in self.state.glob(".*") if path.is_dir()]
        paths += self.path.glob(f"{REMOVED_PREFIX}-*")
        if (result := self.result) is None:
            return paths
        paths += [path for path in (self.state, *[self.refit.path] * self.is_refitted) if path.is_dir()]
        taught = result["provenance"].get("unlabelled", {})
        # The supervised model's checkpoint replaced the student's checkpoint, so no later checkpoint is of use.
        is_final = self.is_refitted or taught.get("reported") == checkpoint.SUPERVISED
        latest = [] if is_final else checkpoint.list_checkpoints(self.path / FOLDER)[:1]
        return paths + self.checkpoints_except({Path(result["checkpoint"]).name, *(path.name for path in latest)})

    def checkpoints_except(self, keep: Collection[str]) -> list[Path]:
        """List the files of the checkpoints whose name is not in ``keep``, the parameters first."""
        kept = tuple(f"{Path(name).stem}." for name in keep)
        files = (path for path in (self.path / FOLDER).glob("*") if checkpoint.FILE_PATTERN.fullmatch(path.name))
        others = (path for path in files if not path.name.startswith(kept))
        return sorted(others, key=lambda path: (path.suffix != ".params", path.name))

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove files and folders of the run; skip each that cannot be removed.

        The resume state is renamed before it is deleted, so that no command finds half of a state.
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
        """Remove the files that the finished run no longer needs; call while the directory is locked."""
        self.remove(self.removable_files())

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

    def lock_in_steps(self, timeout: float, say: Callable[[str], None]) -> Iterator[IO[str] | None]:
        """Retry ``lock``, yielding ``None`` after each failed attempt and finally the lock.

        Args:
            patience: seconds until the last attempt.
            say: prints a message if the wait takes longer than ``SOON``.
        """
        began = time.monotonic()
        due, soon = began + timeout, began + min(timeout, WAIT_MESSAGE_SECONDS)
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
                if now > soon:
                    soon = due + 1.0
                    say(f"another process is training in {self.path}; waiting up to {timeout:.0f} s for it to end")
            yield None
            time.sleep(0.2)


def disk_usage(path: Path) -> int:
    """Return the size in bytes of a file, or the sum of the sizes of all files in a folder."""
    total = 0
    for file in path.rglob("*") if path.is_dir() and not path.is_symlink() else (path,):
        with suppress(OSError):
            about = file.lstat()
            total += about.st_size * (not stat.S_ISDIR(about.st_mode))
    return total


@dataclass(frozen=True)
class Result:
    """Outcome of a run.

    Attributes:
        run_dir: the run's folder.
        checkpoint: the reported .params file.
        epoch: the reported epoch, from 1.
        chosen_by: "validation split" (see ``best_epoch``), or "last epoch" if the data have none.
        test_accuracy: test accuracy of the reported epoch, a fraction; the micro F1 of several labels.
        test_loss: test loss of the reported epoch, in nats per document, of the probabilities that ``predict`` gives.
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
    """Read the result of a run; ``None`` if it is not finished."""
    if (saved := folder.result) is None:
        return None
    checkpoint.check_present(folder.path, Path(saved["checkpoint"]).name)
    values = {name: saved[name] for name in ("epoch", "chosen_by", "test_accuracy", "test_loss")}
    return Result(folder.path, folder.path / saved["checkpoint"], **values)


def write_result(
    folder: RunDir, reported: dict[str, Any], chosen_by: str, provenance: dict[str, Any], group: ProcessGroup
) -> Result:
    """Write ``result.json`` on rank 0, which marks the run as finished, and tidy the folder; every rank calls it.

    Args:
        reported: record of the reported epoch.
        chosen_by: as in ``Result``.
        provenance: data, processes, device and environment of the run, for its report.

    Raises:
        UserError: on every rank, if the reported checkpoint is gone.
    """

    def write() -> None:
        checkpoint.check_present(folder.path, reported["checkpoint"])
        names = ("epoch", "test_accuracy", "test_loss", "test_uncalibrated_loss")
        scores = {name: reported[name] for name in names if name in reported}
        path = f"{FOLDER}/{reported['checkpoint']}"
        result = {"checkpoint": path, "chosen_by": chosen_by, **scores, "provenance": provenance}
        write_sealed_json(folder.path / RESULT, checkpoint.RESULT_FORMAT, result)
        fsync(folder.path)  # the state of a finished run is removed next

    group.run_on_rank0("result", write)
    result = read_result(folder)
    assert result is not None
    if group.is_root:
        # Only now may the state be removed: a run without a result is resumed from its state.
        folder.clean_up()
    return result


def select_run_dir(config: Config, data: Dataset, group: ProcessGroup) -> RunDir:
    """Choose the run's folder on rank 0, and check that every rank sees it.

    Raises:
        UserError: on every rank, as ``choose``, or if a host does not share the folder.
    """
    folder = group.run_on_rank0("run folder", lambda: select_run_dir_on_rank0(config, data.name, data.fingerprint))
    chosen = Path(group.broadcast_object(folder and str(folder.path), "run folder"))

    def seen() -> RunDir:
        if not chosen.is_dir():
            remedy = "choose a --run-dir that all hosts share"
            raise UserError(f"the run folder {chosen} is not visible on this host", remedy=remedy)
        return RunDir(chosen)

    return group.run_on_all("run folder", seen)


def lock_on_rank0(
    folder: RunDir, group: ProcessGroup, is_supervised: bool, say: Callable[[str], None]
) -> AbstractContextManager[Any]:
    """Lock the folder on rank 0; every rank calls it. Under a driver, wait for earlier processes to end.

    Raises:
        UserError: on every rank, if another process trains in the folder.
    """
    patience = LOCK_SECONDS if is_supervised else 0.0
    return group.run_steps_on_rank0("lock", folder.lock_in_steps(patience, say)) or nullcontext()


def select_run_dir_on_rank0(config: Config, data_name: str, data_fingerprint: str) -> RunDir:
    """Choose the run's folder, and create it if it does not exist; only rank 0 calls this.

    The folder is ``runs/<data>-<hash>`` or ``config.run_dir``. With ``fresh``, another run with the same settings gets
    the suffix -2, -3, …; later commands use the newest run. Processes that the elastic driver restarts return to the
    run that its first processes chose.
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
    with suppress(UserError):  # `_check` reports it, if this folder is the chosen one
        return _read(path / RUN_KEY_FILE)
    return None


def _supervision(path: Path) -> str:
    file = path / SUPERVISION_FILE
    return file.read_text(encoding="utf-8").strip() if file.is_file() and not file.is_symlink() else ""


def _is_uninitialized(path: Path) -> bool:
    """Return whether a folder holds only leftovers of a process that was killed before ``_claim`` had ended."""
    return path.is_dir() and all(file.name == SUPERVISION_FILE or is_temporary(file) for file in path.iterdir())


def _initialize(path: Path, identity: dict[str, Any], supervision: str) -> None:
    """Make a folder the directory of a run. ``run.json`` marks it as such, and is therefore written last."""
    if supervision:
        write_text(path / SUPERVISION_FILE, f"{supervision}\n")
    write_json(path / RUN_KEY_FILE, identity)


def _check(path: Path, identity: dict[str, Any], supervision: str) -> None:
    if not (path / RUN_KEY_FILE).is_file():
        if not _is_uninitialized(path):
            raise UserError(f"{path} is neither empty nor a run's folder", remedy="choose another --run-dir")
        _initialize(path, identity, supervision)
        return
    before, now = (flatten(current_settings(each)) for each in (_read(path / RUN_KEY_FILE), identity))
    if before != now:
        names = sorted(name for name in {**before, **now} if before.get(name) != now.get(name))
        raise UserError(
            f"{path} was started with other settings",
            f"different: {', '.join(f'{name} {before.get(name)} → {now.get(name)}' for name in names)}",
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
        given_name: name given by ``--name``; empty if there is none.
        settings: values of the settings by dotted name.
        result: content of ``result.json``; ``None`` if the run is not finished.
        checkpoint: the reported .params file.
        description: the description beside the checkpoint.
        scores: scores of the reported epoch by split; empty for several labels or many classes.
        label_scores: the same for several labels; empty for one class per document.
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
        """Name of the score that is called accuracy in the records."""
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
        """Data, processes, device and environment of the run; empty if it is not finished."""
        return dict(self.result["provenance"]) if self.result else {}

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data (``Dataset.fingerprint``)."""
        return str(self.metadata["data"]["fingerprint"])

    def has_same_test_split(self, other: RunRecord) -> bool:
        """Return whether both runs are known to have been scored on the same test documents."""
        return bool(self.metadata["data"]["test"] == other.metadata["data"]["test"])

    @property
    def data_folder(self) -> Path:
        """Folder that held the data during training."""
        source = str(self.settings.get("data.source", SAMPLE))
        return Path(self.provenance["data"]) if self.provenance else dataset_folder(source)

    def non_default_settings(self) -> Settings:
        """Return the settings that differ from this version's defaults, such as those computed from the data."""
        usual = flatten(Config().to_dict())
        return {name: value for name, value in self.settings.items() if usual.get(name, value) != value}

    def open_dataset(self, folder: Path | None) -> Dataset:
        """Open the data that the run was trained on.

        Args:
            folder: current folder of the data; ``None``: the folder used in training.
        """
        data = open_dataset(folder or self.data_folder)
        if data.fingerprint != self.fingerprint:
            raise UserError(
                f"{data.folder} is not the data of this run", "its fingerprint differs", "name the data with --data"
            )
        return data

    def seen_in_training(self, documents: Documents) -> dict[str, npt.NDArray[np.bool_]]:
        """Return which documents repeat a text of the train split and of the validation split, each bool [documents].

        Raises:
            UserError: the data of the run are gone, or are other data.
        """
        splits, hashes = self.open_dataset(None).splits, documents.source_rows[:, HASH]
        return {name: np.isin(hashes, splits[name].source_rows[:, HASH]) for name in LEARNED_SPLITS if name in splits}


def open_run_of_checkpoint(path: Path) -> RunRecord | None:
    """Read the run of a checkpoint; ``None`` for a checkpoint that is in no run's folder."""
    run_dir = path.absolute().parent.parent
    return open_run(run_dir, path) if (run_dir / CONFIG).is_file() else None


def open_run(run_dir: Path, path: Path | None = None) -> RunRecord:
    """Read the run in a folder.

    Args:
        run_dir: the folder, or the start of its name in ``runs/``.
        path: checkpoint to describe; default: the one that the run reports.
    """
    run_dir = checkpoint.resolve_run_name(str(run_dir))
    if not run_dir.exists():
        raise checkpoint.not_found_error(run_dir)
    if not (run_dir / checkpoint.FOLDER).is_dir():
        raise UserError(f"{run_dir} is not a run's folder with a scored epoch", remedy="name a folder in runs/")
    path = path or checkpoint.resolve_model(str(run_dir))
    description = checkpoint.read_metadata(path)
    if description is None:
        raise UserError(f"{path} has no description beside it", remedy="name another run")
    if missing := {"epoch", "metrics", "numerics", "data"} - description.keys():
        raise damaged_error(path.with_suffix(".json"), KeyError(min(missing)), "name another run")
    folder, config, scores = RunDir(run_dir), run_dir / CONFIG, checkpoint.read_scores(path)
    return RunRecord(
        path=run_dir,
        given_name=folder.name,
        settings=flatten(read(config)) if config.is_file() else {},
        result=folder.result,
        checkpoint=path,
        metadata=description,
        multiclass_scores={name: score for name, score in scores.items() if isinstance(score, MulticlassScores)},
        multilabel_scores={name: score for name, score in scores.items() if isinstance(score, MultilabelScores)},
        history=History.from_run_dir(run_dir),
    )
