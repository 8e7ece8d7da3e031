"""The resumable state: parameters, optimiser and position, in plain arrays and JSON (no pickle).

``<run>/state/step_<n>/`` holds ``parameters.safetensors``, ``optimizer.safetensors``, ``state.json`` and, written
last, ``manifest.json`` with the SHA-256 of each. It is written under another name and renamed; older ones go after.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from crepe_dist.errors import UserError
from crepe_dist.files import sha256, sync, write_json

FORMAT = 1
MANIFEST = "manifest.json"
Arrays = dict[str, np.ndarray]


@dataclass
class Progress:
    """Where a run stands: all of its memory beside the arrays.

    Attributes:
        step: updates done since the run began.
        epoch: number of the current epoch.
        documents: documents of this epoch that were trained on, over all ranks.
        moving_loss: the notebook's moving average within this epoch, or ``None`` at its start.
        loss_sum: sum of the losses of this epoch's documents.
        seconds: training time of this epoch.
        epochs: one record for each finished epoch.
        finished: nothing is left to do.
        precision: that of the last steps, or empty.
    """

    step: int = 0
    epoch: int = 0
    documents: int = 0
    moving_loss: float | None = None
    loss_sum: float = 0.0
    seconds: float = 0.0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    precision: str = ""

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.documents = 0
        self.moving_loss = None
        self.loss_sum = 0.0
        self.seconds = 0.0


def save(folder: Path, progress: Progress, parameters: Arrays, optimizer: Arrays) -> Path:
    """Writes ``folder/step_<n>`` and removes the states before it."""
    final = folder / f"step_{progress.step:08d}"
    partial = folder / f".partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(parameters, str(partial / "parameters.safetensors"))
    save_file(optimizer, str(partial / "optimizer.safetensors"))
    write_json(partial / "state.json", {"format": FORMAT, **asdict(progress)})
    digests = {}
    for path in sorted(partial.iterdir()):
        sync(path)
        digests[path.name] = sha256(path)
    write_json(partial / MANIFEST, {"format": FORMAT, "files": digests})
    sync(partial)
    if final.exists():  # the same step again, such as "epoch trained" and then "epoch scored"
        stale = folder / f".stale-{os.getpid()}"
        shutil.rmtree(stale, ignore_errors=True)
        final.rename(stale)
    partial.rename(final)
    sync(folder)
    for old in folder.iterdir():
        if old != final:
            shutil.rmtree(old, ignore_errors=True)
    return final


def load_newest(folder: Path) -> tuple[Progress, Arrays, Arrays, list[str]] | None:
    """The newest state whose files are whole, with a list of those that are not; ``None`` if there is none at all.

    Raises:
        UserError: states are there but none is whole, or another version wrote them.
    """
    damaged: list[str] = []
    candidates = sorted(folder.glob("step_*"), reverse=True) + sorted(folder.glob(".stale-*"))
    for path in candidates:
        try:
            return (*_load(path), damaged)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            damaged.append(f"{path} ({error})")
    if damaged:
        raise UserError(
            f"no saved state in {folder} can be used",
            "; ".join(damaged),
            "start another run with --fresh, perhaps from a checkpoint with --init-from",
        )
    return None


def _load(path: Path) -> tuple[Progress, Arrays, Arrays]:
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{path} has format {manifest['format']}; this version goes on from format {FORMAT}",
            remedy="finish the run with the version that began it, or start another with --fresh",
        )
    for name in ("parameters.safetensors", "optimizer.safetensors", "state.json"):
        if sha256(path / name) != manifest["files"][name]:
            raise ValueError(f"{name} does not match its checksum")
    saved = json.loads((path / "state.json").read_text(encoding="utf-8"))
    saved.pop("format")
    return (
        Progress(**saved),
        load_file(str(path / "parameters.safetensors")),
        load_file(str(path / "optimizer.safetensors")),
    )


def optimizer_arrays(trainer: Any) -> Arrays:
    """The optimiser's arrays as ``<parameter>.<k>`` (momentum; mean and variance) and its count of updates."""
    arrays: Arrays = {"updates": np.array([trainer._optimizer.num_update], dtype=np.int64)}
    for index, state in trainer._updaters[0].states.items():
        if state is not None:
            for k, array in enumerate(state if isinstance(state, (tuple, list)) else [state]):
                arrays[f"{index}.{k}"] = array.asnumpy()
    return arrays


def set_optimizer_arrays(trainer: Any, arrays: Arrays, device: Any) -> None:
    """Inverse of ``optimizer_arrays`` on a new trainer of the same optimiser and parameters."""
    optimizer, updater = trainer._optimizer, trainer._updaters[0]
    updates = int(arrays["updates"][0])
    by_index: dict[int, dict[int, Any]] = {}
    for name, array in arrays.items():
        if name != "updates":
            index, k = map(int, name.split("."))
            by_index.setdefault(index, {})[k] = mx.nd.array(array, ctx=device, dtype=array.dtype)
    for index, states in by_index.items():
        ordered = tuple(states[k] for k in sorted(states))
        updater.states[index] = ordered if len(ordered) > 1 else ordered[0]
        updater.states_synced[index] = True
    optimizer.num_update = updates
    optimizer._all_index_update_counts = {device.device_id: dict.fromkeys(range(len(trainer._params)), updates)}
    optimizer._set_current_context(device.device_id)
