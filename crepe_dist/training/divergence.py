"""Checks of the numbers: gradients, losses and scores are finite, and the replicas have the same parameters."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.batch import RowIndices
from crepe_dist.data.loader import shard_range, training_order
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.distributed.watchdog import MAX_SHOWN_ROWS
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.parallel.distributed_optimizer import StepResult
from crepe_dist.runs.scores import AnyScores
from crepe_dist.training.context import TrainContext


def handle_nonfinite_step(context: TrainContext, result: StepResult) -> None:
    """Lower the loss scale of float16 after an overflow of the gradients. End the run in all other cases.

    Raises:
        UserError: on every rank, if a loss is not finite, or if there is no loss scale to lower.
    """
    if not result.nonfinite_loss_ranks and context.engine.grad_scaler.back_off():
        return
    before, train, config = context.progress, context.data.splits["train"], context.config
    ranks = sorted({*result.nonfinite_loss_ranks, *result.nonfinite_grad_ranks})
    order = training_order(train, config.training.seed, before.epoch - 1, config.data.batch_size)
    stop = before.documents + result.global_batch_size
    culprits = _describe_ranks(ranks, order, before.documents, stop, context.group.size, context.engine.reduction_group)
    raise _divergence_error(
        f"non-finite loss or gradient at step {result.step} on {culprits}",
        "; the step was discarded",
        "; the newest saved state is older than this step",
    )


def check_finite_scores(scores: Mapping[str, AnyScores], epoch: int) -> None:
    """Check that the loss on each split is finite, before anything of the epoch is written.

    Raises:
        UserError: on every rank, if the last updates of the epoch have made a loss NaN or infinite.
    """
    losses = {name: (score.loss, score.uncalibrated_loss or 0.0) for name, score in scores.items()}
    if bad := [name for name, pair in losses.items() if not all(map(math.isfinite, pair))]:
        raise _divergence_error(f"the loss on the {bad[0]} split is not finite after epoch {epoch}")


def _divergence_error(what: str, consequence: str = "", otherwise: str = "") -> UserError:
    return UserError(
        f"training diverged: {what}",
        f"the learning rate is probably too large{consequence}",
        f"lower --learning-rate, or set --clip-norm 1{otherwise}",
        on_all_ranks=True,
    )


def _describe_ranks(ranks: Iterable[int], order: RowIndices, start: int, stop: int, size: int, group_size: int) -> str:
    """Describe ranks for a message: each rank, and its rows of the batch ``order[start:stop]``."""
    shown = []
    for rank in ranks:
        first, end = shard_range(start, stop, rank, size, group_size)
        rows = order[first:end].tolist()
        listed = ", ".join(map(str, rows[:MAX_SHOWN_ROWS]))
        more = f", … {len(rows) - MAX_SHOWN_ROWS} more" if len(rows) > MAX_SHOWN_ROWS else ""
        shown.append(f"rank {rank} (rows {listed}{more} of the train split)")
    return "; ".join(shown)


def parameter_checksum(arrays: Arrays) -> int:
    """Return a checksum of all parameters, below 2^48, for comparing replicas bit by bit."""
    sums = []
    for array in arrays.values():
        words = array.reshape(-1).view(np.uint32)
        sums += [np.add.reduce(words, dtype=np.uint64), np.uint64(np.bitwise_xor.reduce(words))]
    return int.from_bytes(hashlib.sha256(np.array(sums, np.uint64).tobytes()).digest()[:6], "little")


def check_replicas(arrays: Arrays, group: ProcessGroup) -> None:
    """Compare a checksum of the parameters over the ranks; every rank calls it.

    Raises:
        UserError: on every rank, if parameters differ; it names the ranks outside the majority (of two, rank 1).
    """
    if group.size == 1:
        return
    table = np.zeros(group.size, dtype=np.int64)
    table[group.rank] = parameter_checksum(arrays)
    digests = group.all_reduce(table, "digest").tolist()
    usual, _ = Counter(digests).most_common(1)[0]
    odd = [rank for rank, digest in enumerate(digests) if digest != usual]
    if odd:
        raise UserError(
            f"the parameters of rank {', '.join(map(str, odd))} differ from those of the other ranks",
            "a hardware fault (memory, network or device), or a bug in crepe_dist",
            "run the same command again to resume from the newest saved state, where they were equal; if it happens "
            "again, leave that host out",
            on_all_ranks=True,
            code=ExitCode.FAILURE,
        )
