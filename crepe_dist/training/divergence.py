"""Checks for divergence: non-finite gradients, losses and scores, and replicas with different parameters."""

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
from crepe_dist.training.context import TrainContext, batch_schedule


def handle_nonfinite_step(context: TrainContext, result: StepResult) -> None:
    """Lower the loss scale after a float16 gradient overflow. Raise an error in all other cases.

    Raises:
        UserError: A loss is not finite, or the loss scale cannot be lowered. Every rank raises this error.
    """
    if not result.nonfinite_loss_ranks and context.engine.grad_scaler.back_off():
        return
    progress, train, config = context.progress, context.data.splits["train"], context.config
    ranks = sorted({*result.nonfinite_loss_ranks, *result.nonfinite_grad_ranks})
    order = training_order(train, config.training.seed, progress.epoch - 1, batch_schedule(config))
    start, stop = progress.documents, progress.documents + result.global_batch_size
    shards = _describe_ranks(ranks, order, start, stop, context.group.size, context.engine.reduction_group)
    raise _divergence_error(
        f"non-finite loss or gradient at step {result.step} on {shards}",
        "; the step was discarded",
        "; the newest saved state is older than this step",
    )


def check_finite_scores(scores: Mapping[str, AnyScores], epoch: int) -> None:
    """Check that the loss on each split is finite. Call this function before any file of the epoch is written.

    Raises:
        UserError: A loss is NaN or infinite. Every rank raises this error.
    """
    losses = {name: (score.loss, score.uncalibrated_loss or 0.0) for name, score in scores.items()}
    if nonfinite := [name for name, pair in losses.items() if not all(map(math.isfinite, pair))]:
        raise _divergence_error(f"the loss on the {nonfinite[0]} split is not finite after epoch {epoch}")


def _divergence_error(what: str, consequence: str = "", otherwise: str = "") -> UserError:
    return UserError(
        f"training diverged: {what}",
        f"the learning rate is probably too large{consequence}",
        f"lower --learning-rate{otherwise}",
        on_all_ranks=True,
    )


def _describe_ranks(ranks: Iterable[int], order: RowIndices, start: int, stop: int, size: int, group_size: int) -> str:
    """Describe ranks for a message: the number of each rank, and its rows of the batch ``order[start:stop]``."""
    descriptions = []
    for rank in ranks:
        first, end = shard_range(start, stop, rank, size, group_size)
        rows = order[first:end].tolist()
        shown = ", ".join(map(str, rows[:MAX_SHOWN_ROWS]))
        rest = f", … {len(rows) - MAX_SHOWN_ROWS} more" if len(rows) > MAX_SHOWN_ROWS else ""
        descriptions.append(f"rank {rank} (rows {shown}{rest} of the train split)")
    return "; ".join(descriptions)


def parameter_checksum(arrays: Arrays) -> int:
    """Return a 48-bit checksum of all parameters. Replicas with bit-identical parameters have equal checksums."""
    sums = []
    for array in arrays.values():
        words = array.reshape(-1).view(np.uint32)
        sums += [np.add.reduce(words, dtype=np.uint64), np.uint64(np.bitwise_xor.reduce(words))]
    return int.from_bytes(hashlib.sha256(np.array(sums, np.uint64).tobytes()).digest()[:6], "little")


def check_replicas(arrays: Arrays, group: ProcessGroup) -> None:
    """Compare the checksums of the parameters of all ranks. Every rank must call this function.

    Raises:
        UserError: The parameters differ. Every rank raises the error. The message names the ranks that differ from the
            majority. If there are only two ranks, it names rank 1.
    """
    if group.size == 1:
        return
    checksums = group.all_gather_json(parameter_checksum(arrays), "digest")
    majority, _ = Counter(checksums).most_common(1)[0]
    diverged = [rank for rank, checksum in enumerate(checksums) if checksum != majority]
    if diverged:
        raise UserError(
            f"the parameters of rank {', '.join(map(str, diverged))} differ from the parameters of the other ranks",
            "a hardware fault (memory, network or device), or a bug in crepe_dist",
            "repeat the same command to resume from the newest saved state, whose parameters were equal; if the error "
            "returns, train without that host",
            on_all_ranks=True,
            code=ExitCode.FAILURE,
        )
