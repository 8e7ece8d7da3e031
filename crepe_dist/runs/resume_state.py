"""Resumable state of a run: parameters, optimizer state and position, as plain arrays and JSON (no pickle).

``<run>/state/step_<n>_<epochs scored>/`` holds ``parameters.safetensors``, ``optimizer.safetensors`` and, written last,
``manifest.json`` with the position and the size and SHA-256 of these files. A state is written under a temporary name
and then renamed. The one before the newest is kept in case the newest gets damaged.
"""

from __future__ import annotations

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
from crepe_dist.version import __version__

FORMAT = 8
MANIFEST = "manifest.json"
FILES = ("parameters.safetensors", "optimizer.safetensors")
SMOOTHING = 0.01  # weight of a new value in the moving average of the loss, as in the notebook
RESTART = "start another run with --fresh; with --init-from, from a checkpoint of this one"


@dataclass
class TrainerState:
    """Position of a run, and everything else to restore besides arrays.

    Attributes:
        step: steps done since the run started.
        epoch: number of the current epoch, from 1.
        documents: documents of the epoch trained on so far, over all ranks.
        moving_loss: moving average of the loss within the epoch, as in the notebook; ``None`` at its start.
        loss_sum: sum of the losses of the epoch's documents, in nats.
        seconds: training time of the epoch.
        epochs: records of the finished epochs.
        precision: precision of the last steps; empty before the first save.
        kernels: what computed them, see ``Backend.build_name``; empty before the first save.
        loss_scale: value of ``GradScaler.state_dict``.
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
        """Mean loss of the epoch's documents so far, in nats; 0 before the first."""
        return self.loss_sum / max(self.documents, 1)

    def record_step(self, documents: int, loss: float) -> None:
        """Count a step, whether or not the parameters were updated.

        Args:
            documents: number of documents in the global batch.
            loss: sum of their losses, in nats.
        """
        self.step += 1
        self.documents += documents
        mean, before = loss / documents, self.smoothed_loss
        self.smoothed_loss = mean if before is None else (1 - SMOOTHING) * before + SMOOTHING * mean
        self.loss_sum += loss

    def restore(self, other: TrainerState) -> None:
        """Become equal to ``other``."""
        vars(self).update(vars(other.copy()))

    def copy(self) -> TrainerState:
        return replace(self, epochs=list(self.epochs))

    def begin_epoch(self, epoch: int) -> None:
        self.epoch, self.smoothed_loss = epoch, None
        self.documents = 0
        self.loss_sum = self.seconds = 0.0


@dataclass(frozen=True)
class ResumeState:
    """Copy of everything that a run needs to resume."""

    progress: TrainerState
    parameters: Arrays
    optimizer: Arrays

    @property
    def name(self) -> str:
        """Folder name; the alphabetical order is the order of saves."""
        return f"step_{self.progress.step:08d}_{len(self.progress.epochs):04d}"


@dataclass(frozen=True)
class LoadedState:
    """A saved state.

    Attributes:
        damaged: newer states that cannot be used, each with the reason.
        version: version of the package that saved it.
    """

    path: Path
    state: ResumeState
    damaged: list[str]
    version: str


def save(folder: Path, state: ResumeState, last_intact: Path | None = None) -> Path:
    """Write a state into ``folder``, and then remove all others except ``good``.

    If the write fails, such as on a full disk, remove the others first, and write once more.

    Args:
        good: folder of the last state known to be intact, kept in case the new one gets damaged.
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
        usual = stat.S_IMODE(partial.stat().st_mode) & 0o666
        for name, arrays in zip(FILES, (snapshot.parameters, snapshot.optimizer)):
            save_file(arrays, str(partial / name))
            (partial / name).chmod(usual)
            fsync(partial / name)
        files = {name: manifest_entry(partial / name) for name in FILES}
        position = {"version": __version__, "progress": asdict(snapshot.progress)}
        write_sealed_json(partial / MANIFEST, FORMAT, {**position, "files": files})
        fsync(partial)
        if final.exists():  # it is damaged: the run would have resumed from it otherwise
            final.rename(folder / f".damaged-{os.getpid()}-{final.name}")
        partial.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise error if isinstance(error, OSError) else OSError(str(error)) from error
    fsync(folder)


def _prune(folder: Path, newest: Path, good: Path | None) -> bool:
    """Remove all other states; return whether there were any."""
    others = [path for path in folder.iterdir() if path not in (newest, good)]
    for path in others:
        shutil.rmtree(path, ignore_errors=True)
    return bool(others)


def num_scored_epochs(folder: Path) -> list[int]:
    """Return the number of scored epochs of each saved state."""
    counts = (path.name.rpartition("_")[2] for path in folder.glob("step_*"))
    return [int(count) for count in counts if count.isdecimal()]


def load_newest(folder: Path) -> LoadedState | None:
    """Load the newest intact state; ``None`` if there is no state at all."""
    damaged: list[str] = []
    for path in sorted(folder.glob("step_*"), reverse=True):
        try:
            snapshot, version = _load(path)
            return LoadedState(path, snapshot, damaged, version)
        except UserError as error:
            damaged.append(f"{error.what}: {error.why}" if error.why else error.what)
        except (OSError, ValueError, SafetensorError) as error:
            damaged.append(f"{path} is damaged: {error}"[:500])
    if damaged:
        raise UserError(f"no saved state in {folder} can be used", "; ".join(damaged), RESTART)
    return None


def _load(path: Path) -> tuple[ResumeState, str]:
    """Load a state, and the version of the package that saved it."""
    manifest = read_record(path / MANIFEST, FORMAT, RESTART)
    for name, expected in manifest["files"].items():
        if {"bytes": (path / name).lstat().st_size, "sha256": sha256(path / name, follow=False)} != expected:
            raise ValueError(f"{name} does not match its checksum")
    parameters, optimizer = (load_file(str(path / name)) for name in FILES)
    return ResumeState(TrainerState(**manifest["progress"]), parameters, optimizer), manifest["version"]
