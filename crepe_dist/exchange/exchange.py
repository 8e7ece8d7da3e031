"""Interface of the exchange: sum the gradients of all ranks, then update the parameters; and its saved state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.batch import Batch
from crepe_dist.distributed.control import Vote
from crepe_dist.errors import ExitCode, UserError

# The first loss scale keeps the largest gradient of the first steps seven times below float16's limit.
FIRST_SCALE, LARGEST_SCALE = 2.0**13, 2.0**24
GROW_AFTER = 2000  # steps without an overflow


Row = Sequence[float]  # numbers that a rank sends along with its gradients


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


class LossScale:
    """Scale of the loss in float16 (Micikevicius et al. 2018, arXiv:1710.03740).

    It is halved after an overflow, and doubled after ``GROW_AFTER`` steps without one.

    Attributes:
        scale: factor of a MEAN loss; ``None`` in other precisions. Gradients of a sum over n documents are up to n
            times as large, so its factor is ``scale`` / n, with n rounded up to a power of two, which keeps the
            division exact. A scale thus suits any batch size and number of processes.
        factor: factor of the gradients of the last step.
    """

    def __init__(self, precision: str) -> None:
        self.scale = FIRST_SCALE if precision == "float16" else None
        self.factor = 1.0
        self._good = 0

    def begin(self, documents: int) -> float:
        """Return the factor of a loss that is a sum over the documents of the global batch."""
        if self.scale is not None:
            self.factor = self.scale / (1 << (documents - 1).bit_length())
        return self.factor

    def good(self) -> None:
        """Record a step whose summed gradients were finite."""
        self._good += 1
        if self.scale is not None and self._good == GROW_AFTER:
            self._good = 0
            self.scale = min(LARGEST_SCALE, self.scale * 2)

    def lower(self) -> bool:
        """Lower the scale after an overflow; return false if it cannot be lower, so the cause is another one."""
        self._good = 0
        if self.scale is None or self.scale == 1.0:
            return False
        self.scale /= 2
        return True

    def state(self) -> list[float]:
        """Return the state for ``restore``."""
        return [] if self.scale is None else [self.scale, float(self._good)]

    def restore(self, state: list[float]) -> None:
        """Continue from ``state``; ignore that of another precision."""
        if state and self.scale is not None:
            self.scale, self._good = state[0], int(state[1])


class SavedArrays:
    """State of an optimizer as plain arrays of a saved state, whose checksum has been verified, to be read one by one.

    ``updates``          number of updates, int64 [1]
    ``<parameter>.<k>``  momentum; or mean and mean square: float32 in the parameter's shape; the mean square of a table
                         is that of each row, [rows, 1]
    ``<parameter>.updated``  the update that each row of a table is from, int32 [rows]; none if all are up to date
    ``<parameter>.drift``    the drift since each of them, float64 [updates + 1]
    ``quanta``           exponents of the next quanta, int32 [parameters]; see ``Quanta``

    A parameter has its structural name, such as ``ngrams.weight``; the quanta are in the order of the trained ones.

    Attributes:
        updates: number of updates.

    Raises:
        UserError: in every method: an array has not the dtype or the shape that the kernels will access.
    """

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        count: Any = self._read("updates", np.int64, (1,))
        if count is None:
            raise other_optimizer("it has no count of updates")
        self.updates = int(count[0])

    def moments(self, parameter: str, shapes: Sequence[tuple[int, ...]]) -> list[npt.NDArray[np.float32]] | None:
        """Return the moments of a parameter; ``None`` if it has none."""
        found = [self._read(f"{parameter}.{k}", np.float32, shape) for k, shape in enumerate(shapes)]
        moments = [moment for moment in found if moment is not None]
        return moments if len(moments) == len(shapes) > 0 else None

    def ages(self, parameter: str, rows: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
        """Return the drift since each update, and the update of each row."""
        drift: Any = self._read(f"{parameter}.drift", np.float64, None)
        updated: Any = self._read(f"{parameter}.updated", np.int32, (rows,))
        if drift is None or updated is None:
            return np.zeros(1), np.zeros(rows, np.int32)
        if drift.ndim != 1 or not 0 <= updated.min() <= updated.max() < len(drift) <= self.updates + 1:
            raise other_optimizer(f"its arrays {parameter}.drift and {parameter}.updated do not fit")
        return drift, updated

    def quanta(self, parameters: int) -> npt.NDArray[np.int32] | None:
        """Return the exponents of the quanta; ``None`` if there are none."""
        return self._read("quanta", np.int32, (parameters,))

    def _read(self, name: str, dtype: Any, shape: tuple[int, ...] | None) -> npt.NDArray[Any] | None:
        array = self._arrays.get(name)
        if array is not None and (array.dtype != dtype or shape not in (None, array.shape)):
            raise other_optimizer(f"array {name} is {array.dtype} {list(array.shape)}")
        return array


def other_optimizer(why: str) -> UserError:
    """Make the error for a saved state that does not fit the optimizer or the parameters."""
    return UserError("the saved state belongs to another optimizer", why, "start another run with --fresh")
