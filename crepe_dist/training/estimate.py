"""How long a run will take, by the time of one step on this machine, before it begins."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mxnet as mx

from crepe_dist import wording
from crepe_dist.distributed.control import Wish
from crepe_dist.training import out_of_memory
from crepe_dist.training.step_report import Report

if TYPE_CHECKING:
    from crepe_dist.training.loop import Loop

FEW_STEPS = 1000  # of convolutions; n-grams tell classes apart from the first ones on
TRIES = 4  # of each; the first compiles, and the quickest counts


@dataclass(frozen=True)
class Estimate:
    """What is to be done and how long it takes, for a person to read; ``step`` is the seconds of one."""

    text: str
    step: float

    def __str__(self) -> str:
        return self.text


def estimate(loop: Loop) -> Estimate:
    """Computes a batch, without a change of the parameters. All ranks call it.

    The slowest rank counts. The update of the parameters is not part of it.
    """
    epochs = loop.config.training.epochs - loop.progress.epoch
    steps = math.ceil(len(loop.train_part) / loop.config.data.batch_size)
    left = epochs * steps - math.ceil(loop.progress.documents / loop.config.data.batch_size)
    batch = next(loop.batches(), None)
    if batch is None:
        return Estimate(f"{wording.counted(epochs, 'epoch')} of {wording.counted(steps, 'step')}", 0.0)
    seed = loop.config.training.seed

    def gradients() -> None:
        loss = loop.engine.gradients(batch, seed, 0, loop.train_step.scale.scale)
        loop.exchange(Report(0, batch.documents, float(loss.asscalar()), Wish.GO_ON).row())

    with out_of_memory.watched("data.batch_size", loop.config.data.batch_size, loop.world.size):
        step = _seconds(gradients)
        loop.engine.refresh()
        forward = _seconds(lambda: loop.engine.logits(batch))
    loop.watchdog.beat("estimate")
    slowest = [max(times) for times in zip(*loop.world.gather([step, forward], "estimate"))]
    scored = sum(len(part) for name, part in loop.dataset.parts.items() if name != "train")
    total = left * slowest[0] + epochs * scored / loop.config.data.batch_size * slowest[1]
    told = (
        f"about {wording.duration(total)}: {wording.counted(epochs, 'epoch')} of {wording.counted(steps, 'step')} at "
        f"{1000 * slowest[0]:,.0f} ms, {wording.counted(scored, 'document')} scored after each"
    )
    if loop.engine.network.shape.kind == "crepe" and loop.progress.step == 0 and left < FEW_STEPS:
        told += (
            f"\nnote: {wording.counted(left, 'step')} are few, convolutions take about a thousand to tell "
            f"classes apart\n  do:  --epochs {math.ceil(FEW_STEPS / steps)}, unless this is only a try"
        )
    return Estimate(told, slowest[0])


def _seconds(compute: Callable[[], Any]) -> float:
    times = []
    for _ in range(TRIES):
        began = time.monotonic()
        compute()
        mx.nd.waitall()
        times.append(time.monotonic() - began)
    return min(times)
