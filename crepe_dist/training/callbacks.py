"""Guards of a run: logs, saved states, checks and stops around the recipe; out-of-memory errors that name the batch."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.batch import Batch, Order
from crepe_dist.data.loader import share, training_order
from crepe_dist.distributed.process_group import World
from crepe_dist.distributed.signals import Vote
from crepe_dist.distributed.watchdog import SHOWN_ROWS
from crepe_dist.errors import ExitCode, UserError, is_memory_error
from crepe_dist.parallel.distributed_optimizer import Outcome
from crepe_dist.runs.scores import AnyScores
from crepe_dist.settings.config import flag
from crepe_dist.training.context import Run
from crepe_dist.training.state_saver import StateSaver, snapshot
from crepe_dist.training.step_logger import StepLog

# Parts of the text of an MXNetError, a RuntimeError: from CUDA's allocator, MXNet's on the host, oneDNN's, and C++'s.
MEMORY_TEXTS = ("out of memory", "Failed to allocate", "allocation failed", "could not create", "bad_alloc")


class Guards(StepLog):
    """Hooks of the recipe for logs, warnings, saved states, checks and stops; every rank calls each at the same point.

    The replicas are compared before each save and after each epoch.

    Args:
        saver: saver of this rank; only that of rank 0 writes.

    Attributes:
        saver: as given.
    """

    def __init__(self, run: Run, saver: StateSaver) -> None:
        super().__init__(run)
        self.saver = saver
        self._run = run
        self._watchdog = run.session.watchdog
        self._control = run.session.control
        self._batch: Order = np.zeros(0, np.int64)  # of the current step, for the watchdog
        self._watchdog.locate(self._where)

    def _where(self) -> dict[str, Any]:
        at, rows = self._run.progress, self._batch[:SHOWN_ROWS].tolist()
        return {"step": at.step, "epoch": at.epoch, "documents": at.documents, "rows": rows}

    def before_step(self, batch: Batch) -> Vote:
        """Report the start of a step to the watchdog; return what this rank wants to do after it."""
        self._watchdog.beat("train")
        self._batch = batch.rows
        return max(self._control.vote, Vote.SAVE if self.saver.due(batch.step) else Vote.GO_ON)

    def accept(self, outcome: Outcome) -> bool:
        """Return whether to update the parameters: loss and gradients are finite on every rank.

        Raises:
            UserError: on every rank, if a non-finite step ends the run.
        """
        if not outcome.finite:
            _reject(self._run, outcome)
        return outcome.finite

    def after_step(self, outcome: Outcome, learning_rate: float) -> None:
        """Log a step, which the run's progress already counts; then save or stop as the ranks have agreed.

        Raises:
            Stopped: the run was asked to stop, and its state is saved.
        """
        super().after_step(outcome, learning_rate)
        if outcome.vote is Vote.STOP:
            self.stop()
        elif outcome.vote is Vote.SAVE:
            self._save()

    def is_stopping(self) -> bool:
        """Return whether this rank was asked to stop."""
        return self._control.vote is Vote.STOP

    def check(self, scores: Mapping[str, AnyScores]) -> None:
        """Check that the loss on each split is finite, before anything of the epoch is written.

        Raises:
            UserError: on every rank, if the last updates of the epoch have made it NaN or infinite.
        """
        losses = {name: (score.loss, score.uncalibrated_loss or 0.0) for name, score in scores.items()}
        if bad := [name for name, pair in losses.items() if not all(map(math.isfinite, pair))]:
            raise _diverged(f"the loss on the {bad[0]} split is not finite after epoch {self._run.progress.epoch}")

    def after_epoch(self, record: dict[str, Any]) -> None:
        """Log an epoch, after its checkpoint was written; then save if it is due."""
        run, progress = self._run, self._run.progress
        super().after_epoch(record)
        is_due = not progress.finished and self.saver.due(progress.step)
        if run.world.broadcast(is_due, "save after epoch"):
            self._save()
        else:
            check_replicas(run.engine.values(), run.world)

    def finish(self) -> None:
        """Write what is left at the end of the run."""
        super().finish()
        self.saver.close()

    def stop(self) -> NoReturn:
        """Save the state, wait until it is on disk, and end the run; every rank calls it.

        Raises:
            Stopped: always, unless the state could not be saved.
            UserError: the last steps could not be saved.
        """
        self._save()
        step = self._run.progress.step
        stopped = self._control.stopped(on_all_ranks=True)
        self.saver.wait()
        if self.saver.durable_step not in (None, step):
            raise UserError(
                f"the steps after step {self.saver.durable_step} could not be saved",
                remedy="free some disk space, and run the command again",
            )
        command = "the same command without --fresh" if self._run.config.fresh else "the same command"
        self._run.display.say(f"{stopped}: saved after step {step}; {command} resumes from there")
        self.saver.close()
        self.sync()
        raise stopped

    def _save(self) -> None:
        """Start to write the state on rank 0; every rank calls it."""
        run = self._run
        self._watchdog.beat("save")
        self.flush()
        check_replicas(run.engine.values(), run.world)
        copied = snapshot(run)
        try:
            # The state relies on the metrics, so they go first.
            run.metrics.sync()
            if copied:
                self.saver.save(copied)
        except OSError as error:
            self.saver.postpone(run.progress.step)
            run.display.say(f"the state of step {run.progress.step} could not be saved: {error}")
        self.restart_clock()


def _reject(run: Run, outcome: Outcome) -> None:
    """Lower the loss scale after an overflow of the gradients; end the run after any other non-finite outcome."""
    if not outcome.bad_losses and run.engine.loss_scale.lower():
        return
    before, train = run.progress, run.data.splits["train"]
    ranks = sorted({*outcome.bad_losses, *outcome.bad_gradients})
    order = training_order(train, run.config.training.seed, before.epoch - 1, run.config.data.batch_size)
    stop = before.documents + outcome.documents
    culprits = _named(ranks, order, before.documents, stop, run.world.size, run.engine.group_size)
    raise _diverged(
        f"non-finite loss or gradient at step {outcome.step} on {culprits}",
        "; the step was discarded",
        "; the newest saved state is older than this step",
    )


def _diverged(what: str, consequence: str = "", otherwise: str = "") -> UserError:
    return UserError(
        f"training diverged: {what}",
        f"the learning rate is probably too large{consequence}",
        f"lower --learning-rate, or set --clip-norm 1{otherwise}",
        on_all_ranks=True,
    )


def _named(ranks: Iterable[int], order: Order, start: int, stop: int, size: int, group_size: int) -> str:
    """Name ranks for a message, each with its rows of the batch ``order[start:stop]``."""
    shown = []
    for rank in ranks:
        first, end = share(start, stop, rank, size, group_size)
        rows = order[first:end].tolist()
        listed = ", ".join(map(str, rows[:SHOWN_ROWS]))
        more = f", … {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
        shown.append(f"rank {rank} (rows {listed}{more} of the train split)")
    return "; ".join(shown)


def digest(arrays: Arrays) -> int:
    """Return a checksum of all parameters, below 2^48, for comparing replicas bit by bit."""
    sums = []
    for array in arrays.values():
        words = array.reshape(-1).view(np.uint32)
        sums += [np.add.reduce(words, dtype=np.uint64), np.uint64(np.bitwise_xor.reduce(words))]
    return int.from_bytes(hashlib.sha256(np.array(sums, np.uint64).tobytes()).digest()[:6], "little")


def check_replicas(arrays: Arrays, ranks: World) -> None:
    """Compare a checksum of the parameters over the ranks; every rank calls it.

    Raises:
        UserError: on every rank, if parameters differ; it names the ranks outside the majority (of two, rank 1).
    """
    if ranks.size == 1:
        return
    table = np.zeros(ranks.size, dtype=np.int64)
    table[ranks.rank] = digest(arrays)
    digests = ranks.sum(table, "digest").tolist()
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


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, RuntimeError):
        return any(text in str(error) for text in MEMORY_TEXTS)
    return is_memory_error(error)


@contextmanager
def explained(option: str, batch_size: int, processes: int) -> Iterator[None]:
    """Turn an out-of-memory error within the block into a ``UserError``.

    Args:
        option: name of the setting with the global batch size.
    """
    share = -(-batch_size // processes)
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory with {flag(option)} {batch_size}, which is {share} documents for this process",
            str(error).strip().splitlines()[-1][:200] if str(error) else "",
            f"try {flag(option)} {batch_size // 2}, a smaller network, or more processes on more hosts"
            if share > 1
            else "lower --width, choose --model ngrams, or shorten the documents (prepare --feature-len)",
        ) from error
