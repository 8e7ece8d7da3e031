"""Resumable state of a run: parameters, optimizer state and position, as plain arrays and JSON (no pickle).

``<run>/state/step_<n>_<epochs scored>/`` holds ``parameters.safetensors``, ``optimizer.safetensors``, ``state.json``
and, written last, ``manifest.json`` with the size and SHA-256 of each file. A state is written under a temporary name
and then renamed. The one before the newest is kept in case the newest gets damaged.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import stat
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from crepe_dist.errors import UserError
from crepe_dist.files import finite, identity, integer, read_json, sha256, sync, write_json
from crepe_dist.settings.allowed_values import MANY
from crepe_dist.version import __version__

FORMAT = 5
MANIFEST = "manifest.json"
FILES = ("parameters.safetensors", "optimizer.safetensors", "state.json")
SMOOTHING = 0.01  # weight of a new value in the moving average of the loss, as in the notebook
CHECKPOINT = re.compile(r"[\w.]{1,80}\.params", re.ASCII)
MALFORMED = (ValueError, KeyError, TypeError, AttributeError)  # of JSON that is not as expected
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass
class Progress:
    """Position of a run, and everything else to restore besides arrays.

    Attributes:
        step: steps done since the run started.
        epoch: number of the current epoch, from 1.
        documents: documents of the epoch trained on so far, over all ranks.
        moving_loss: moving average of the loss within the epoch, as in the notebook; ``None`` at its start.
        loss_sum: sum of the losses of the epoch's documents, in nats.
        uncounted: documents of the epoch whose loss is not in ``loss_sum``, because it was not finite.
        seconds: training time of the epoch.
        epochs: records of the finished epochs.
        precision: precision of the last steps; empty before the first save.
        kernels: what computed them, see ``Plan.build``; empty before the first save.
        loss_scale: value of ``LossScale.state``.
    """

    step: int = 0
    epoch: int = 1
    documents: int = 0
    moving_loss: float | None = None
    loss_sum: float = 0.0
    uncounted: int = 0
    seconds: float = 0.0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    precision: str = ""
    kernels: str = ""
    loss_scale: list[float] = field(default_factory=list)

    @property
    def train_loss(self) -> float:
        """Mean loss of the epoch's documents so far, in nats; 0 before the first."""
        return self.loss_sum / max(self.documents - self.uncounted, 1)

    def count(self, documents: int, loss: float) -> None:
        """Count a step, whether or not the parameters were updated.

        Args:
            documents: number of documents in the global batch.
            loss: sum of their losses, in nats.
        """
        self.step += 1
        self.documents += documents
        if not math.isfinite(loss):
            self.uncounted += documents
        else:
            mean, before = loss / documents, self.moving_loss
            self.moving_loss = mean if before is None else (1 - SMOOTHING) * before + SMOOTHING * mean
            self.loss_sum += loss

    def restore(self, other: Progress) -> None:
        """Become equal to ``other``."""
        vars(self).update(vars(other.copy()))

    def copy(self) -> Progress:
        return replace(self, epochs=list(self.epochs))

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.documents = 0
        self.moving_loss = None
        self.loss_sum = 0.0
        self.uncounted = 0
        self.seconds = 0.0

    @classmethod
    def of(cls, saved: Any) -> Progress:
        """Convert from JSON."""
        if saved.keys() != {field.name for field in fields(cls)}:
            raise ValueError("the position was not written by this version")
        epochs, scale = (_list(saved[name]) for name in ("epochs", "loss_scale"))
        integer(saved["epoch"], 1, name="epoch")
        for name in ("step", "documents"):
            integer(saved[name], name=name)
        integer(saved["uncounted"], 0, saved["documents"], "uncounted")
        finite(saved["seconds"], 0, name="seconds")
        finite(saved["loss_sum"], name="loss_sum")
        if saved["moving_loss"] is not None:
            finite(saved["moving_loss"], name="moving_loss")
        for number in scale:
            finite(number, name="loss_scale")
        for record in epochs:
            _check_record(record)
        if any(after["epoch"] != before["epoch"] + 1 for before, after in zip(epochs, epochs[1:])):
            raise ValueError("the position holds epochs that do not follow each other")
        if epochs and saved["epoch"] - epochs[-1]["epoch"] not in (0, 1):
            raise ValueError(f"the position is in epoch {saved['epoch']}, after that of epoch {epochs[-1]['epoch']}")
        if saved["finished"] and not epochs:
            raise ValueError("the position is at the end of a run without epochs")
        if scale and not (len(scale) == 2 and scale[0] > 0):
            raise ValueError("the position holds an invalid loss scale")
        if type(saved["finished"]) is not bool or not all(
            type(saved[name]) is str for name in ("precision", "kernels")
        ):
            raise ValueError("the position was not written by this version")
        return cls(**saved)


def _list(saved: Any) -> list[Any]:
    if type(saved) is not list:
        raise ValueError(f"{str(saved)[:40]!r} is not a list")
    return saved


def _check_record(record: Any) -> None:
    """Check what a resumed run reads of the record of an epoch."""
    integer(record["epoch"], 1, MANY, "epoch")
    if not CHECKPOINT.fullmatch(record["checkpoint"]):
        raise ValueError(f"the checkpoint is {str(record['checkpoint'])[:40]!r}")
    finite(record["test_accuracy"], 0, 1, "test_accuracy")
    for name, value in record.items():
        if name.endswith("_accuracy"):
            finite(value, 0, 1, name)
        elif name.endswith(("_loss", "_error")) and type(value) not in (int, float):  # NaN after a divergence
            raise ValueError(f"{name} is {str(value)[:40]!r}")


@dataclass(frozen=True)
class Snapshot:
    """Copy of everything that a run needs to resume."""

    progress: Progress
    parameters: Arrays
    optimizer: Arrays

    @property
    def name(self) -> str:
        """Folder name; the alphabetical order is the order of saves."""
        return f"step_{self.progress.step:08d}_{len(self.progress.epochs):04d}"


@dataclass(frozen=True)
class Found:
    """A saved state.

    Attributes:
        damaged: newer states that cannot be used, each with the reason.
        version: version of the package that saved it.
    """

    path: Path
    snapshot: Snapshot
    damaged: list[str]
    version: str


def save(folder: Path, snapshot: Snapshot, good: Path | None = None) -> Path:
    """Write a state into ``folder``, and remove all others but ``good``; on a full disk, remove them first.

    Args:
        good: folder of the last state known to be intact, kept in case the new one gets damaged.
    """
    final = folder / snapshot.name
    if final == good:
        return final
    try:
        _write(folder, final, snapshot)
    except OSError:
        if good is None or not _prune(folder, good, good):
            raise
        _write(folder, final, snapshot)
    _prune(folder, final, good)
    return final


def _write(folder: Path, final: Path, snapshot: Snapshot) -> None:
    partial = folder / f".partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_file(snapshot.parameters, str(partial / FILES[0]))
        save_file(snapshot.optimizer, str(partial / FILES[1]))
        write_json(partial / FILES[2], asdict(snapshot.progress))
        usual = stat.S_IMODE((partial / FILES[2]).stat().st_mode)
        for name in FILES[:2]:
            (partial / name).chmod(usual)
            sync(partial / name)
        digests = {name: identity(partial / name) for name in FILES}
        write_json(partial / MANIFEST, {"format": FORMAT, "version": __version__, "files": digests})
        sync(partial)
        if final.exists():  # it is damaged: the run would have resumed from it otherwise
            final.rename(folder / f".damaged-{os.getpid()}-{final.name}")
        partial.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise error if isinstance(error, OSError) else OSError(str(error)) from error
    sync(folder)


def _prune(folder: Path, newest: Path, good: Path | None) -> bool:
    """Remove all other states; return whether there were any."""
    others = [path for path in folder.iterdir() if path not in (newest, good)]
    for path in others:
        shutil.rmtree(path, ignore_errors=True)
    return bool(others)


def scored_epochs(folder: Path) -> list[int]:
    """Return the number of scored epochs of each saved state."""
    counts = (path.name.rpartition("_")[2] for path in folder.glob("step_*"))
    return [int(count) for count in counts if count.isdecimal()]


def load_newest(folder: Path, epochs: int = MANY) -> Found | None:
    """Load the newest intact state; ``None`` if there is no state at all.

    Args:
        epochs: number of epochs of the run; a state beyond them counts as damaged.
    """
    damaged: list[str] = []
    for path in sorted(folder.glob("step_*"), reverse=True):
        try:
            snapshot, version = _load(path, epochs)
            return Found(path, snapshot, damaged, version)
        except (OSError, SafetensorError, *MALFORMED) as error:
            damaged.append(f"{path} ({type(error).__name__}: {error})"[:500])
    if damaged:
        raise UserError(
            f"no saved state in {folder} can be used",
            "; ".join(damaged),
            "finish the run with the version that started it, or start another with --fresh; with --init-from that "
            "can start from a checkpoint",
        )
    return None


def progress(path: Path) -> Progress | None:
    """Read the position of a state; ``None`` if it is damaged."""
    try:
        return Progress.of(read_json(path / FILES[2], follow=False))
    except (OSError, *MALFORMED):
        return None


def _load(path: Path, epochs: int) -> tuple[Snapshot, str]:
    """Load a state, and the version of the package that saved it."""
    manifest = read_json(path / MANIFEST, follow=False)
    if manifest["format"] != FORMAT:
        version = str(manifest["format"])[:40]
        raise ValueError(f"it has format {version}, which another version wrote; this one reads format {FORMAT}")
    for name in FILES:
        size, digest = manifest["files"][name]["bytes"], manifest["files"][name]["sha256"]
        if (path / name).lstat().st_size != size:
            raise ValueError(f"{name} does not have the size in its manifest, {size} bytes")
        if sha256(path / name, follow=False) != digest:
            raise ValueError(f"{name} does not match its checksum")
    progress = Progress.of(read_json(path / FILES[2], follow=False))
    if progress.epoch > epochs:
        raise ValueError(f"the position is in epoch {progress.epoch}, beyond the last of {epochs} epochs")
    snapshot = Snapshot(progress, load_file(str(path / FILES[0])), load_file(str(path / FILES[1])))
    return snapshot, str(manifest["version"])[:40]
