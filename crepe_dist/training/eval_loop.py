"""Evaluation loop over a split. Every rank evaluates its shard of the documents, and the counts are all-reduced."""

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import numpy as np

from crepe_dist.data.dataset import Split
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.training.metric_accumulators import Labels, Logits, MetricAccumulator, Rows

Result = TypeVar("Result")


class EvaluationStopped(Exception):
    """Raised on every rank if a request to stop arrives during evaluation."""


class Scorer(Protocol):
    """Interface of engines that compute logits. Training engines and inference engines implement it."""

    @property
    def config(self) -> NetworkConfig:
        """Configuration of the network."""

    def iter_logits(self, split: Split, batch_size: int, rank: int, size: int) -> Iterator[tuple[Rows, Labels, Logits]]:
        """Compute the logits of a rank's shard of each global batch, in the order of the split.

        Yields:
            Row numbers, int64 [n]; labels, int32 [n]; logits, float32 [n, classes]. While the weight of Crepe's
            convolutional branch is being fitted, the logits are those of the two branches, float32 [n, 2, classes].
        """


@np.errstate(over="ignore", invalid="ignore")  # A diverged network gives NaNs. ``check_finite_scores`` reports them.
def run_eval_loop(
    engine: Scorer,
    split: Split,
    batch_size: int,
    group: ProcessGroup,
    accumulator: MetricAccumulator[Result],
    is_stopping: Callable[[], bool] = lambda: False,
) -> Result:
    """Evaluate a split with an accumulator, and all-reduce the counts. Every rank calls this function.

    Args:
        batch_size: Number of documents per step, over all ranks.
        is_stopping: Function that is called after each batch. If it returns true, this rank skips all later batches.

    Returns:
        The result of the accumulator. It is the same on every rank.

    Raises:
        EvaluationStopped: ``is_stopping`` returned true on one rank. Every rank raises this error.
    """
    for rows, labels, logits in engine.iter_logits(split, batch_size, group.rank, group.size):
        accumulator.update(rows, labels, logits)
        group.heartbeat()
        if is_stopping():
            break
    group.pause_watchdog()  # Other ranks may be slower than this rank.
    are_stopping = group.all_gather_json(is_stopping(), "evaluation.stop")
    group.heartbeat()
    if any(are_stopping):
        raise EvaluationStopped
    accumulator.all_reduce(group)
    return accumulator.result()


def predict_logits(engine: Scorer, split: Split, batch_size: int, group: ProcessGroup) -> Logits:
    """Compute the logits of a split. Every rank calls this function, and computes the logits of its shard.

    Returns:
        The logits of all documents, float32 [documents, classes], on every rank.
    """
    logits = np.zeros((len(split), engine.config.num_classes), np.float32)
    for rows, _, row_logits in engine.iter_logits(split, batch_size, group.rank, group.size):
        logits[rows] = row_logits
        group.heartbeat()
    group.pause_watchdog()  # Other ranks may be slower than this rank.
    return group.all_reduce(logits, "logits")
