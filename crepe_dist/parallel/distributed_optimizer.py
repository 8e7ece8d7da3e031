"""Interface of the exchange: sum the gradients of all ranks, then update the parameters; and its saved state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.batch import Batch
from crepe_dist.distributed.signals import Vote
from crepe_dist.errors import ExitCode, UserError


class Outcome(NamedTuple):
    """Sums of one step over the ranks; the same on every rank.

    Attributes:
        step: number of the step, counted from 1.
        documents: number of documents in the global batch.
        loss: sum of the losses of the global batch, in nats.
        vote: strongest vote of any rank.
        bad_losses: ranks whose loss is not finite.
        bad_gradients: ranks whose gradients are not finite; all ranks if only the sum overflowed.
        overflowed: a sum of whole numbers did not fit, or the first step's quanta were too coarse; quanta that suit it
            are ready for another attempt.
    """

    step: int
    documents: int
    loss: float
    vote: Vote
    bad_losses: tuple[int, ...] = ()
    bad_gradients: tuple[int, ...] = ()
    overflowed: bool = False

    @property
    def finite(self) -> bool:
        return not self.bad_losses and not self.bad_gradients


class Exchange(ABC):
    """Exchange of gradients between the ranks. Every rank calls each method at the same point of the program.

    Each rank's gradient is that of the SUM of its documents' losses. The sum over the ranks, divided by the number of
    documents in the global batch, is the gradient that one process would compute.

    Attributes:
        by: name of the mechanism that sums the gradients, for messages; empty for a single process.
    """

    by = ""

    def all_reduce(self, loss: Any, batch: Batch, vote: Vote = Vote.GO_ON) -> Outcome:
        """Replace the gradients by their sums over the ranks, bit-identical on all; sum losses and votes, too.

        Args:
            loss: loss of this rank: a number, or arrays on its device, whose computation may be pending.
            batch: this rank's share of the global batch.
            vote: action that this rank votes for after the step.

        Raises:
            UserError: on every rank, if the ranks are at different steps.
        """
        rows, bad_gradients, overflowed = self._all_reduce(loss, (batch.step, batch.documents, vote))
        losses, _, _, votes = zip(*rows)
        places = sorted({f"step {step:.0f} of {documents:.0f} documents" for _, step, documents, _ in rows})
        if len(places) > 1:  # the replicas would diverge
            raise UserError(
                f"the processes are at different steps: {' and '.join(places)}",
                "a bug in crepe_dist, or data that changed during the run",
                "run the same command again to resume from the newest saved state",
                on_all_ranks=True,
                code=ExitCode.FAILURE,
            )
        bad_losses = tuple(rank for rank, of_rank in enumerate(losses) if not math.isfinite(of_rank))
        strongest = Vote(int(max(votes)))
        return Outcome(batch.step, batch.documents, sum(losses), strongest, bad_losses, bad_gradients, overflowed)

    @abstractmethod
    def _all_reduce(self, loss: Any, numbers: Sequence[int]) -> tuple[list[Row], tuple[int, ...], bool]:
        """Sum the gradients, and gather the losses and the numbers.

        Returns:
            The loss and the numbers of each rank; ``bad_gradients`` and ``overflowed`` of ``Outcome``.
        """

    @abstractmethod
    def update(self, documents: float, learning_rate: float) -> None:
        """Update the parameters with the last sums.

        Args:
            documents: number of documents in the global batch.
        """

    def ready(self) -> None:  # noqa: B027
        """Wait until the parameters can be read, some of which other processes may still be updating."""

    def fetch(self) -> None:  # noqa: B027
        """Get the rows of tables that the batch touches, which the engine has listed."""

    def flush(self) -> None:  # noqa: B027
        """Bring all parameters up to date for scoring and checkpoints; round those that are trained row by row."""

    @abstractmethod
    def arrays(self) -> Arrays:
        """Copy the state that ``restore`` needs besides the parameters' values; see ``SavedArrays``.

        Returns:
            The state on rank 0, anything on the others. Parameters that are trained row by row are among it.
        """

    @abstractmethod
    def restore(self, arrays: Arrays) -> None:
        """Restore the state from ``arrays``, of any kind of exchange, for the network's current parameters.

        Raises:
            UserError: the arrays do not fit.
        """


Row = Sequence[float]  # numbers that a rank sends along with its gradients
