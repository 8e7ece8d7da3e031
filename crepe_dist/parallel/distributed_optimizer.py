"""Interface of the distributed optimizers: all-reduce of a step, update of the parameters, and the saved state.

The training loop makes two calls per step, because it decides between them whether to update at all:

1. ``all_reduce`` sums the gradients of dense parameters over all ranks. Every rank then has the information
   whether all gradients are finite and fit into their integers.
2. ``step`` updates the parameters.

Row-sparse parameters (n-gram tables, most of the parameters) are summed differently by our CPU kernels, because a step
touches few of their rows. Each row has one owner among all ranks:

- On one host, the gradients of rows stay in the shared memory of the processes that computed them. ``step`` sums the
  gradients of a row and updates the row in one pass over memory (``native/sharded_embedding.h``). Only the bounds of
  these gradients take part in the checks of ``all_reduce``.
- On multiple hosts, ``all_reduce`` sends the gradients of rows to their owners, and each owner sums them.

GPUs and Horovod treat all parameters as dense.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.batch import Batch
from crepe_dist.distributed.signals import StepAction
from crepe_dist.errors import ExitCode, UserError

# Statistics that a rank sends with its gradients: bounds, loss, step, global batch size and requested action.
StepStats = Sequence[float]


class StepResult(NamedTuple):
    """Sums of one step over the ranks. They are the same on every rank.

    Attributes:
        step: Number of the step, counted from 1.
        global_batch_size: Number of documents in the global batch.
        loss: Sum of the losses of the global batch, in nats.
        requested_action: Strongest action that any rank requests.
        nonfinite_loss_ranks: Ranks whose loss is not finite.
        nonfinite_grad_ranks: Ranks whose gradients are not finite. It contains all ranks if only the sum overflowed.
        needs_recompute: True if an integer sum may overflow int32, or if the scales of the first step were too coarse.
            New scales have already been chosen, so the caller computes the gradients of the same batch again.
    """

    step: int
    global_batch_size: int
    loss: float
    requested_action: StepAction
    nonfinite_loss_ranks: tuple[int, ...] = ()
    nonfinite_grad_ranks: tuple[int, ...] = ()
    needs_recompute: bool = False

    @property
    def is_finite(self) -> bool:
        return not self.nonfinite_loss_ranks and not self.nonfinite_grad_ranks


class DistributedOptimizer(ABC):
    """Base class of the distributed optimizers. Every rank calls each method at the same point of the program.

    The gradient of a rank is the gradient of the SUM of its documents' losses. The sum over the ranks, divided by the
    number of documents in the global batch, is the gradient that one process would compute.

    Attributes:
        reduce_backend: Name of the mechanism that sums the gradients, for messages. It is empty for a single process.
    """

    reduce_backend = ""

    def all_reduce(self, loss: Any, batch: Batch, requested_action: StepAction = StepAction.CONTINUE) -> StepResult:
        """Sum the dense gradients and the losses over the ranks, bit-identically on every rank.

        The gradients of dense parameters are replaced by their sums. On one host, the gradients of row-sparse
        parameters are summed by ``step`` instead; see the module docstring.

        Args:
            loss: Loss of this rank. It is a number, or arrays on this rank's device, whose computation may be pending.
            batch: This rank's shard of the global batch.
            requested_action: Action that this rank requests after the step. The strongest request wins.

        Raises:
            UserError: On every rank, if the ranks are at different steps.
        """
        step_info = batch.step, batch.global_batch_size, requested_action
        stats, nonfinite_grad_ranks, needs_recompute = self._all_reduce(loss, step_info)
        losses, _, _, actions = zip(*stats)
        positions = sorted({f"step {step:.0f} of {documents:.0f} documents" for _, step, documents, _ in stats})
        if len(positions) > 1:  # The replicas of the model would diverge.
            raise UserError(
                f"the processes are at different steps: {' and '.join(positions)}",
                "crepe_dist has a bug, or the data changed during the run",
                "run the same command again to resume from the newest saved state",
                on_all_ranks=True,
                code=ExitCode.FAILURE,
            )
        nonfinite_loss_ranks = tuple(rank for rank, rank_loss in enumerate(losses) if not math.isfinite(rank_loss))
        return StepResult(
            batch.step,
            batch.global_batch_size,
            sum(losses),
            StepAction(int(max(actions))),
            nonfinite_loss_ranks,
            nonfinite_grad_ranks,
            needs_recompute,
        )

    @abstractmethod
    def _all_reduce(self, loss: Any, step_info: Sequence[int]) -> tuple[list[StepStats], tuple[int, ...], bool]:
        """Sum the dense gradients over the ranks, and gather the losses and the ``step_info`` of all ranks.

        Args:
            step_info: Step, global batch size and requested action of this rank.

        Returns:
            The loss and the ``step_info`` of each rank, and ``nonfinite_grad_ranks`` and ``needs_recompute`` of
            ``StepResult``.
        """

    @abstractmethod
    def step(self, global_batch_size: float, learning_rate: float) -> None:
        """Update the parameters with the mean gradient of the last ``all_reduce``.

        On one host, this call also sums the gradients of row-sparse parameters: the owner of a row adds the gradients
        of all processes, and updates the row in the same pass. Other processes read the row only after
        ``wait_for_update``.

        Args:
            global_batch_size: Number of documents in the global batch.
        """

    def wait_for_update(self) -> None:  # noqa: B027
        """Wait until the other processes of this host have updated the rows that they own."""

    def pull_rows(self) -> None:  # noqa: B027
        """Get the rows that the batch touches from their owners on other hosts. The engine has listed these rows."""

    def synchronize(self) -> None:  # noqa: B027
        """Apply all lazy updates of rows, and round the rows to float16, for evaluation and checkpoints."""

    @abstractmethod
    def state_dict(self) -> Arrays:
        """Copy the state of the optimizer. ``OptimizerState`` reads it.

        Returns:
            The state on rank 0. The return value on other ranks is unspecified. The state includes the values of
            row-sparse parameters. It does not include the values of dense parameters.
        """

    @abstractmethod
    def load_state_dict(self, arrays: Arrays) -> None:
        """Restore the result of ``state_dict`` for the current parameters. Every subclass reads the states of others.

        Raises:
            UserError: The arrays do not match the optimizer or the parameters.
        """
