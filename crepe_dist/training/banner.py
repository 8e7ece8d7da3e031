"""Opening lines of a run: data, network, settings, device and precision."""

from __future__ import annotations

import os

from crepe_dist import wording
from crepe_dist.data.dataset import Dataset
from crepe_dist.distributed.collectives import Collectives
from crepe_dist.engines.engine import Engine
from crepe_dist.settings.config import Config
from crepe_dist.training.transfer import Start


def banner(
    config: Config, data: Dataset, engine: Engine, start: Start | None, ranks: Collectives, summed_by: str
) -> str:
    """Describe a run in a few lines.

    Args:
        start: parameters given by ``training.init_from``, if any.
        ranks: the processes that train together.
        summed_by: name of the mechanism that all-reduces the gradients (``Trainer.by``).
    """
    shape, device = engine.network.shape, engine.device
    rows = ", ".join(f"{len(part):,} {name}" for name, part in data.splits.items())
    where = f"{wording.counted(ranks.size, 'process', 'processes')}, {device}"
    if summed_by:
        where += f", gradients summed by {summed_by}"
    if device.device_type == "cpu":
        where += f", OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}"
    lines = [
        f"data      {data.name}: {rows} documents of {data.encoding.feature_len} characters, "
        f"{len(data.classes)} classes",
        f"network   {shape}; {shape.parameters:,} parameters",
        f"training  {'up to ' if config.training.patience else ''}"
        f"{wording.counted(config.training.all_epochs, 'epoch')}, batch {config.data.batch_size}, "
        f"{config.optimizer.name} {config.optimizer.learning_rate:g}; {where}",
        f"choice    {_choice(config, data)}",
        f"computes  in {engine.plan}",
    ]
    if start is not None:
        lines.insert(2, f"start     {start.summary}")
    if config.training.overfit_batches:
        lines[0] += "; only a few batches, repeated for training and also scored"
    return "\n".join(lines)


def _choice(config: Config, data: Dataset) -> str:
    """Describe which split chooses the epoch, and the end of the training."""
    if "validation" not in data.splits:
        return "the last epoch, as there is no validation split to choose by (prepare --validation 0.1)"
    patience = config.training.patience
    until = f", and ends training after {wording.counted(patience, 'epoch')} without improvement" if patience else ""
    return f"the validation split chooses the epoch{until}; the test split only measures it"
