"""Estimated duration of a run, from the measured time of a step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mxnet as mx

from crepe_dist import wording
from crepe_dist.data.dataset import Dataset
from crepe_dist.data.loader import Batch
from crepe_dist.distributed.collectives import Collectives
from crepe_dist.model.engine import Engine
from crepe_dist.model.shape import steps_per_epoch
from crepe_dist.runs.state import Progress
from crepe_dist.settings.config import Config
from crepe_dist.training import out_of_memory
from crepe_dist.training.step import TrainingStep

TRIES = 4  # per measurement; the first one compiles, the fastest counts


@dataclass(frozen=True)
class Estimate:
    """Estimated duration of the remaining work.

    Attributes:
        text: description for the terminal.
        step: seconds per step.
    """

    text: str
    step: float

    def __str__(self) -> str:
        return self.text


def estimate(
    config: Config,
    data: Dataset,
    engine: Engine,
    step: TrainingStep,
    batch: Batch | None,
    progress: Progress,
    ranks: Collectives,
) -> Estimate:
    """Time the gradients and the scoring of a batch, without changing the parameters; every rank calls it.

    The times of the slowest rank count. The update of the parameters is not included.

    Args:
        batch: next batch of the run; ``None`` at the end of an epoch.
    """
    epochs = config.training.epochs - progress.epoch
    steps = steps_per_epoch(len(data.parts["train"]), config.data.batch_size)
    left = epochs * steps - math.ceil(progress.documents / config.data.batch_size)
    if batch is None:
        return Estimate(f"{wording.counted(epochs, 'epoch')} of {wording.counted(steps, 'step')}", 0.0)
    with out_of_memory.explained("data.batch_size", config.data.batch_size, ranks.size):
        seconds = _seconds(lambda: step.all_reduce(batch, 1, step.gradients(batch, 1)))
        engine.refresh()
        forward = _seconds(lambda: engine.logits(batch))
    ranks.beat()
    slowest = [max(times) for times in zip(*ranks.gather([seconds, forward], "estimate"))]
    scored = sum(len(part) for name, part in data.parts.items() if name != "train")
    total = left * slowest[0] + epochs * scored / config.data.batch_size * slowest[1]
    text = (
        f"about {wording.duration(total)}: {wording.counted(epochs, 'epoch')} of {wording.counted(steps, 'step')} at "
        f"{1000 * slowest[0]:,.0f} ms, {wording.counted(scored, 'document')} scored after each"
    )
    return Estimate(text, slowest[0])


def _seconds(compute: Callable[[], Any]) -> float:
    times = []
    for _ in range(TRIES):
        began = time.monotonic()
        compute()
        mx.nd.waitall()
        times.append(time.monotonic() - began)
    return min(times)
