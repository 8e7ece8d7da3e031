"""Learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable

from crepe_dist.model.shape import steps_per_epoch
from crepe_dist.runs.state import Progress
from crepe_dist.settings.config import Config
from crepe_dist.settings.options import REFERENCE_BATCH, OptimizerOptions

HALVE_EVERY, MOST_HALVINGS = 3, 10  # epochs; section 3.3 of the paper


def learning_rates(config: Config, rows: int) -> Callable[[Progress], float]:
    """Return the function that computes the learning rate of the next step.

    Args:
        rows: documents per epoch.
    """
    epochs, size = config.training.all_epochs, config.data.batch_size
    return lambda at: rate_at(config.optimizer, at.epoch - 1 + at.documents / rows, epochs, size)


def steps_of(config: Config, rows: int) -> int:
    """Return the number of steps of a run with ``rows`` documents per epoch."""
    return config.training.all_epochs * steps_per_epoch(rows, config.data.batch_size)


def rate_at(options: OptimizerOptions, epoch: float, epochs: int, batch_size: int) -> float:
    """Compute the learning rate at ``epoch`` (fractional, counted from the start of training) of ``epochs``.

    A rate that is scaled with the batch rises linearly from the unscaled one in the first epoch (Goyal et al. 2017,
    arXiv:1706.02677, section 2.2).
    """
    factor = batch_size / REFERENCE_BATCH if options.scale_with_batch else 1.0
    peak = options.learning_rate * factor
    warmup = float(options.scale_with_batch)  # epochs
    if epoch < warmup:
        start = min(peak, options.learning_rate)
        return start + (peak - start) * epoch
    if options.schedule == "halving":
        return peak * 0.5 ** min(int(epoch / HALVE_EVERY), MOST_HALVINGS)
    if options.schedule == "cosine":
        progress = (epoch - warmup) / max(epochs - warmup, 1e-9)
        return peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return peak
