"""Times of every rank: which rank computes, which waits for data, and which waits for the other ranks."""

import math
import statistics
import time
from typing import Any

from crepe_dist import hardware
from crepe_dist.data.batch import Batch
from crepe_dist.distributed.signals import StepAction
from crepe_dist.parallel.distributed_optimizer import StepResult
from crepe_dist.runs.metrics import RANK_TIMES
from crepe_dist.training.callbacks import Callback
from crepe_dist.training.context import TrainContext

# A rank is slow if its steps take at least this many times the median of all ranks, not counting the exchange.
SLOW_RATIO = 1.5
# It must also take longer than the median by at least this number of milliseconds. On a busy host, steps of a few
# milliseconds differ by more than the ratio at random.
MIN_SLOW_MS = 5.0
# Minimum number of seconds between two collectives, except at the end of an epoch. Over Horovod, one takes about 12 ms.
MIN_SECONDS = 2.0
MIN_STEPS = 20  # Minimum number of steps for this comparison. The times of single steps differ at random.


class RankTimer(Callback):
    """Callback that measures this rank's steps, gathers the times of all ranks every few steps, and logs them.

    Each step has three parts. Exchange is the time in collectives and barriers, which is mostly the time that this rank
    waits for the slowest rank. Data is the time that the rank waits for its next batch, between two steps. Compute is
    the rest of the step. Saves, and waits for them, are not counted, because only rank 0 saves. The first step of a
    process is not counted, because it includes compilation.
    """

    def __init__(self, context: TrainContext) -> None:
        self._context = context
        self._interval = context.config.logging.rank_times_steps
        self._waiting = context.group.waiting
        self._next_step = 0  # First step after which the times may be gathered. It is the same on every rank.
        self._has_stepped = False
        self._begin: float | None = None  # Start of the current step; ``None`` between steps.
        self._waited = 0.0  # Value of the stopwatch at the start of the current step.
        self._reset()

    def on_epoch_begin(self) -> None:
        self._slow_ranks: set[int] = set()  # Ranks that were reported in this epoch.

    def on_step_begin(self, batch: Batch) -> StepAction:
        self._begin, self._waited = time.perf_counter(), self._waiting.seconds
        return StepAction.CONTINUE

    def on_step_end(self, result: StepResult, learning_rate: float) -> None:
        self._end_step()
        if self._interval and result.step >= self._next_step and result.step % self._interval == 0:
            self._log()

    def on_save(self) -> None:
        self._end_step()  # Saving is not part of the step.

    def on_train_epoch_end(self) -> None:
        if self._interval:
            self._log()

    def _reset(self) -> None:
        self._num_steps = 0
        self._compute = self._exchange = 0.0
        self._loaded = self._context.loading.seconds  # Value of the stopwatch at the start of the interval.

    def _end_step(self) -> None:
        if self._begin is None:
            return
        waited = self._waiting.seconds - self._waited
        self._compute += time.perf_counter() - self._begin - waited
        self._exchange += waited
        self._num_steps += 1
        self._begin = None
        if not self._has_stepped:
            self._has_stepped = True
            self._reset()

    def _log(self) -> None:
        """Gather and log the mean times of the steps since the last call. Every rank calls this at the same step."""
        num_steps, group, progress = self._num_steps, self._context.group, self._context.progress
        if num_steps == 0:
            return
        data = self._context.loading.seconds - self._loaded
        milliseconds = [1000 * seconds / num_steps for seconds in (self._compute, data, self._exchange)]
        self._reset()
        own = [*(round(value, 3) for value in milliseconds), hardware.resident_memory()]
        rows = group.all_gather_json(own, "times of the ranks")
        record = {
            "step": progress.step,
            "epoch": progress.epoch,
            "steps": num_steps,
            "hosts": group.host_names,
            **dict(zip((*RANK_TIMES, "memory_bytes"), map(list, zip(*rows)))),
        }
        # All ranks compute the next step from rank 0's times, because their own clocks differ.
        self._next_step = progress.step + math.ceil(1000 * MIN_SECONDS / max(sum(rows[0][:3]), 0.001))
        self._context.metrics.log("ranks", [record])
        if num_steps >= MIN_STEPS:
            self._report_slow_rank(record)

    def _report_slow_rank(self, record: dict[str, Any]) -> None:
        """Print a sentence about the slowest rank if it delays the others. It is printed once per rank and epoch."""
        compute, data = record["compute_ms"], record["data_ms"]
        busy = [sum(times) for times in zip(compute, data)]
        rank = max(range(len(busy)), key=busy.__getitem__)
        # For an even number of ranks, the lower of the two middle times is taken. Otherwise, the slower one of two
        # ranks would have to take three times as long as the other one.
        median = max(statistics.median_low(busy), 0.001)
        if busy[rank] < max(SLOW_RATIO * median, median + MIN_SLOW_MS) or rank in self._slow_ranks:
            return
        self._slow_ranks.add(rank)
        self._context.display.log(
            f"rank {rank} on {record['hosts'][rank]} is slow: its steps take {busy[rank]:.1f} ms without the exchange "
            f"({compute[rank]:.1f} ms compute, {data[rank]:.1f} ms waiting for data), {busy[rank] / median:.1f} times "
            "the median of the ranks, and the other ranks wait for it"
        )
