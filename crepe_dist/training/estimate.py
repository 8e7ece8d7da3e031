"""Estimated duration of a run, from the measured time of a step, and the check that it leaves time to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from crepe_dist import extras, wording
from crepe_dist.data.batch import Batch
from crepe_dist.data.dataset import Split
from crepe_dist.distributed.world import World
from crepe_dist.errors import UserError
from crepe_dist.model.shape import steps_per_epoch
from crepe_dist.settings.config import Config
from crepe_dist.training.evaluation import evaluate_splits
from crepe_dist.training.run import Run
from crepe_dist.training.state_saver import StateSaver

STEPS = 4  # the first one compiles, and fills caches
SCORED = 4  # batches; one batch alone tells nothing of what it takes to begin
PASSES = 3  # over all parameters after an epoch: to settle the tables, and to write and read the checkpoint
SAVE_SECONDS = 4.0  # least time to allow for a save and the end of the process


@dataclass(frozen=True)
class Estimate:
    """Estimated duration of the remaining work: a description for the terminal, and the seconds per step."""

    text: str
    step: float


def estimate(run: Run) -> Estimate:
    """Time steps, the scoring of a batch and a copy of the parameters, without changing anything; every rank calls it.

    The times of the slowest rank count. The update of the parameters is not included.
    """
    config, data, engine, world = run.config, run.data, run.engine, run.world
    size = config.data.batch_size
    epochs = config.training.all_epochs - run.progress.epoch + 1
    steps = steps_per_epoch(len(data.splits["train"]), size)
    left = epochs * steps - math.ceil(run.progress.documents / size)
    scored = sum(len(split) for name, split in data.splits.items() if name != "train")

    def compute(batch: Batch) -> None:
        run.step.sum(batch, 1)
        engine.wait()

    with run.step.exchange.rehearsal():
        times = list(_times(compute, islice(run.epoch_batches(), STEPS)))
        if not times:
            return Estimate(f"{wording.counted(epochs, 'epoch')} of {wording.counted(steps, 'step')}", 0.0)
        score = _scoring(run, scored)
    copy = _seconds(lambda: [array.copy() for array in engine.values().values()]) if world.is_root else 0.0
    world.beat()
    measured = [sum(times[1:]) / (len(times) - 1) if times[1:] else times[0], score, copy]
    per_step, score, copy = (max(seconds) for seconds in zip(*world.gather(measured, "estimate")))
    end = score + PASSES * copy
    at_most = "at most " if config.training.patience else ""
    text = (
        f"{at_most}about {wording.duration(left * per_step + epochs * end)}{_more(config)}: "
        f"{wording.counted(epochs, 'epoch')}, each {wording.counted(steps, 'step')} at {1000 * per_step:,.0f} ms, "
        f"and {end:,.1f} s to score {wording.counted(scored, 'document')} and to save"
    )
    return Estimate(text, per_step)


def _more(config: Config) -> str:
    if extras.missing("reports"):
        return ""
    drawn = config.logging.tensorboard * ["pictures"] + config.logging.report * ["report"]
    return f" without {' and '.join(drawn)}" if drawn else ""


def _times(compute: Callable[[Batch], None], batches: Iterator[Batch]) -> Iterator[float]:
    """Yield the seconds from one batch to the next, waiting for data included."""
    began = time.monotonic()
    for batch in batches:
        compute(batch)
        now = time.monotonic()
        yield now - began
        began = now


def _scoring(run: Run, documents: int) -> float:
    """Return the seconds to score so many documents, from those for one batch and for several."""
    size = run.config.data.batch_size

    def seconds(split: Split) -> float:
        options, test = replace(run.config.evaluation, batch_size=size), replace(run.data, splits={"test": split})
        return _seconds(lambda: evaluate_splits(run.engine, test, options, run.world, lambda: False))

    split = run.data.splits["test"]
    few, more = (split.some(np.arange(min(len(split), count * size))) for count in (1, SCORED))
    seconds(few)  # compiles
    one, several = seconds(few), seconds(more)
    return one + (documents - len(few)) * max(0.0, several - one) / max(len(more) - len(few), 1)


def _seconds(compute: Callable[[], Any]) -> float:
    began = time.monotonic()
    compute()
    return time.monotonic() - began


def check_grace(grace: float | None, step: float, saver: StateSaver | None, ranks: World) -> None:
    """Check before the first step that a request to stop leaves enough time to save; every rank calls it.

    Args:
        grace: ``safety.grace_s``, in seconds.
        step: seconds per step; a step in progress is finished first.
        saver: saver of this rank, which knows how long its last save took; ``None``: nothing was saved.

    Raises:
        UserError: on every rank, if ``safety.grace_s`` is given and is too short.
    """
    if grace is None:
        return
    if saver is not None:
        saver.wait()
    saved = ranks.broadcast(saver.seconds if saver else 0.0, "seconds of a save")
    save = max(SAVE_SECONDS, 2 * saved)  # twice: a save may already be in progress when the request arrives
    if step + save > grace:
        raise UserError(
            f"safety.grace_s is {grace:g}, but stopping may take {step + save:.1f} s",
            f"a step takes {step:.1f} s and saving up to {save:.1f} s; a process killed earlier loses the steps since "
            "its last save",
            "configure more time between SIGTERM and SIGKILL in the scheduler, and set --safety.grace-s to that; or "
            "shorten the steps by a smaller --batch-size or more processes",
            on_all_ranks=True,
        )
