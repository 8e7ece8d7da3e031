"""Resumable state of a run: parameters, optimizer state and position, as plain arrays and JSON (no pickle).

A state is a folder ``<run>/state/step_<step>_<number of finished epochs>``. It contains ``parameters.safetensors``,
``optimizer.safetensors`` and ``manifest.json``. The manifest is written last. It contains the position, and the size
and SHA-256 of the other two files. A state is written to a temporary folder, which is then renamed. The previous state
is retained, in case the newest state gets damaged.
"""

import os
import shutil
import stat
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from crepe_dist.data.arrays import Arrays
from crepe_dist.errors import UserError
from crepe_dist.files.atomic_write import fsync
from crepe_dist.files.safe_read import manifest_entry, sha256
from crepe_dist.sealed_json import read_record, write_sealed_json

FORMAT = 8  # Version of the saved state.
MANIFEST = "manifest.json"
FILES = ("parameters.safetensors", "optimizer.safetensors")
# Weight of a new value in the moving average of the loss, as in the original Gluon notebook.
SMOOTHING = 0.01
RESTART_HINT = "start another run with --fresh; add --init-from to start from a checkpoint of this run"


@dataclass
class TrainerState:
    """Position of a run, and all other values that a resumed run restores, except the arrays.

    Attributes:
        step: Number of steps since the start of the run.
        epoch: Number of the current epoch, from 1.
        documents: Number of documents that all ranks together have processed in this epoch.
        smoothed_loss: Moving average of the loss in this epoch, in nats per document; ``None`` before its first step.
        loss_sum: Sum of the losses of these documents, in nats.
        seconds: Training time of the epoch, in seconds.
        epochs: Records of the finished epochs (``checkpoint.epoch_record``).
        finished: Whether the last epoch has ended.
        precision: Precision of the last steps; empty before the first save.
        kernels: Kernels of the last steps (``Backend.build_name``); empty before the first save.
        loss_scale: Value of ``GradScaler.state_dict``.
    """

    step: int = 0
    epoch: int = 1
    documents: int = 0
    smoothed_loss: float | None = None
    loss_sum: float = 0.0
    seconds: float = 0.0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    precision: str = ""
    kernels: str = ""
    loss_scale: list[float] = field(default_factory=list)

    @property
    def train_loss(self) -> float:
        """Mean loss of the documents processed in this epoch, in nats; 0 before the first step of the epoch."""
        return self.loss_sum / max(self.documents, 1)

    def record_step(self, documents: int, loss: float) -> None:
        """Count a step. Steps that did not update the parameters are also counted.

        Args:
            documents: Number of documents in the global batch.
            loss: Sum of the losses of these documents, in nats.
        """
        self.step += 1
        self.documents += documents
        mean, previous = loss / documents, self.smoothed_loss
        self.smoothed_loss = mean if previous is None else (1 - SMOOTHING) * previous + SMOOTHING * mean
        self.loss_sum += loss

    def restore(self, other: "TrainerState") -> None:
        """Copy all values of ``other`` into this object.

        Other objects hold references to this object, so it is not replaced.
        """
        vars(self).update(vars(other.copy()))

    def copy(self) -> "TrainerState":
        return replace(self, epochs=list(self.epochs))

    def begin_epoch(self, epoch: int) -> None:
        self.epoch, self.smoothed_loss = epoch, None
        self.documents = 0
        self.loss_sum = self.seconds = 0.0


@dataclass(frozen=True)
class ResumeState:
    """Copy of everything that a resumed run needs: position, parameters and optimizer state."""

    progress: TrainerState
    parameters: Arrays
    optimizer: Arrays

    @property
    def name(self) -> str:
        """Name of the folder. The alphabetical order of the names is the order of the saves."""
        return f"step_{self.progress.step:08d}_{len(self.progress.epochs):04d}"


@dataclass(frozen=True)
class LoadedState:
    """State that was loaded from disk.

    Attributes:
        path: Folder of the state.
        state: Content of the folder.
        damaged: Descriptions of states that are newer than this state and cannot be used.
    """

    path: Path
    state: ResumeState
    damaged: list[str]


def save(folder: Path, state: ResumeState, last_intact: Path | None = None) -> Path:
    """Write a state into ``folder``. Then remove all older states except ``last_intact``.

    If the write fails, for example because the disk is full, the older states except ``last_intact`` are removed first,
    and the write is retried once. If there is nothing to remove, the error is raised.

    Args:
        last_intact: Folder of the newest state that is known to be intact. It is retained in case the new state gets
            damaged.
    """
    final = folder / state.name
    if final == last_intact:
        return final
    try:
        _write(folder, final, state)
    except OSError:
        if last_intact is None or not _prune(folder, last_intact, last_intact):
            raise
        _write(folder, final, state)
    _prune(folder, final, last_intact)
    return final


def _write(folder: Path, final: Path, snapshot: ResumeState) -> None:
    partial = folder / f".partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        # safetensors creates files that only the owner can read. Here, the files get the permissions of other new
        # files.
        permissions = stat.S_IMODE(partial.stat().st_mode) & 0o666
        for name, arrays in zip(FILES, (snapshot.parameters, snapshot.optimizer)):
            save_file(arrays, str(partial / name))
            (partial / name).chmod(permissions)
            fsync(partial / name)
        files = {name: manifest_entry(partial / name) for name in FILES}
        write_sealed_json(partial / MANIFEST, FORMAT, {"progress": asdict(snapshot.progress), "files": files})
        fsync(partial)
        if final.exists():
            # The existing state of this step is damaged. Otherwise, the run would have resumed from it.
            final.rename(folder / f".damaged-{os.getpid()}-{final.name}")
        partial.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise error if isinstance(error, OSError) else OSError(str(error)) from error
    fsync(folder)


def _prune(folder: Path, newest: Path, last_intact: Path | None) -> bool:
    """Remove all states except ``newest`` and ``last_intact``. Return whether there were any to remove."""
    removable = [path for path in folder.iterdir() if path not in (newest, last_intact)]
    for path in removable:
        shutil.rmtree(path, ignore_errors=True)
    return bool(removable)


def num_scored_epochs(folder: Path) -> list[int]:
    """Return the number of scored epochs of each saved state."""
    counts = (path.name.rpartition("_")[2] for path in folder.glob("step_*"))
    return [int(count) for count in counts if count.isdecimal()]


def load_newest(folder: Path) -> LoadedState | None:
    """Load the newest intact state. Return ``None`` if there is no state.

    Raises:
        UserError: There are states, but none of them can be used.
    """
    damaged: list[str] = []
    for path in sorted(folder.glob("step_*"), reverse=True):
        try:
            return LoadedState(path, _load(path), damaged)
        except UserError as error:
            damaged.append(f"{error.what}: {error.why}" if error.why else error.what)
        except (OSError, ValueError, SafetensorError) as error:
            damaged.append(f"{path} is damaged: {error}"[:500])
    if damaged:
        raise UserError(f"no saved state in {folder} can be used", "; ".join(damaged), RESTART_HINT)
    return None


def _load(path: Path) -> ResumeState:
    """Return the state in a folder."""
    manifest = read_record(path / MANIFEST, FORMAT, RESTART_HINT)
    for name, expected in manifest["files"].items():
        if {"bytes": (path / name).lstat().st_size, "sha256": sha256(path / name, follow=False)} != expected:
            raise ValueError(f"{name} does not match its checksum")
    parameters, optimizer = (load_file(str(path / name)) for name in FILES)
    return ResumeState(TrainerState(**manifest["progress"]), parameters, optimizer)
