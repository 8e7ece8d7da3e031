"""Interface of the distributed optimizers: all-reduce of the gradients, update of the parameters, and saved state.

The training loop makes two calls per step. Between them, it decides whether to update the parameters at all.

1. ``all_reduce`` sums the gradients of dense parameters over all ranks. Its result, which is the same on every rank,
   shows whether all gradients are finite and whether their integer sums are free of overflow.
2. ``step`` updates the parameters.

Most parameters are row-sparse: they belong to n-gram tables. A step uses few rows of these tables, so the native
kernels do not sum their gradients like dense gradients. Each row has one owner among all ranks:

- On one host, each process keeps its gradients of rows in its segment of the shared memory. ``step`` sums the gradients
  of a row and updates the row in one pass over memory (``native/sharded_embedding.h``). ``all_reduce`` checks these
  gradients only by their bounds.
- On several hosts, ``all_reduce`` sends all gradients to the ranks that sum them. ``step`` updates the rows, and then
  exchanges the sums of the dense gradients and the rows of the next batch.

``CudaOptimizer`` and ``HorovodOptimizer`` treat all parameters as dense.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.batch import Batch
from crepe_dist.distributed.signals import StepAction
from crepe_dist.errors import ExitCode, UserError

# Statistics that a rank sends with its gradients: bounds (only of fixed-point gradients), loss, step, global batch size
# and requested action.
StepStats = Sequence[float]


class StepResult(NamedTuple):
    """Result of the all-reduce of a step. It is the same on every rank.

    Attributes:
        step: Number of the step, counted from 1.
        global_batch_size: Number of documents in the global batch.
        loss: Sum of the losses of the global batch, in nats.
        requested_action: Action with the highest value among the actions that the ranks requested.
        nonfinite_loss_ranks: Ranks whose loss is not finite.
        nonfinite_grad_ranks: Ranks whose gradients are not finite. If the gradients of each rank are finite, but their
            floating-point sum is not, the tuple contains all ranks.
        needs_recompute: True if an integer sum may overflow int32, or if the scales of the first step were too coarse.
            New scales have already been chosen. The caller must compute the gradients of the same batch again.
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

    The gradient of a rank is the gradient of the SUM of its documents' losses. The sum of these gradients over the
    ranks, divided by the number of documents in the global batch, is the gradient that a single process would compute.

    Attributes:
        reduce_backend: Name of the mechanism that sums the gradients, for messages. It is empty for a single process.
    """

    reduce_backend = ""

    def all_reduce(self, loss: Any, batch: Batch, requested_action: StepAction = StepAction.CONTINUE) -> StepResult:
        """Sum the dense gradients and the losses over the ranks, bit-identically on every rank.

        The gradients of dense parameters are replaced by their sums, on several hosts only in ``step``. If all ranks
        are on one host, ``step`` sums the gradients of row-sparse parameters; see the module docstring.

        Args:
            loss: Result of the engine's ``forward_backward``. It is a number, or arrays that this rank's device may
                still be computing.
            batch: This rank's shard of the global batch.
            requested_action: Action that this rank requests after the step. The result contains the action with the
                highest value among the actions of all ranks.

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

        If all ranks are on one host, this call also sums the gradients of row-sparse parameters: the owner of a row
        adds the gradients of all processes, and updates the row in the same pass. Other processes may read the row only
        after ``SharedMemoryOptimizer.wait_for_update``.

        Args:
            global_batch_size: Number of documents in the global batch.
            learning_rate: Learning rate, before the learning-rate multipliers and Adam's bias correction.
        """

    def synchronize(self) -> None:  # noqa: B027
        """Apply all lazy updates of rows, and round the rows to float16. Evaluation and checkpoints use the result."""

    @abstractmethod
    def state_dict(self) -> Arrays:
        """Copy the state of the optimizer. ``OptimizerState`` reads it. Every rank must call this method.

        Returns:
            The state on rank 0. The return value on other ranks is unspecified. ``SharedMemoryOptimizer`` includes the
            values of row-sparse parameters in the state. The state does not include the values of dense parameters.
        """

    @abstractmethod
    def load_state_dict(self, arrays: Arrays) -> None:
        """Restore a state that ``state_dict`` of this class or of another subclass returned.

        The parameters must already have their saved values.

        Raises:
            UserError: The arrays do not match the optimizer or the parameters.
        """
