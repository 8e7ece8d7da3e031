"""Interface of the exchange: sum the gradients of all ranks, then update the parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from crepe_dist.exchange.saved_arrays import Arrays


@dataclass(frozen=True)
class Reduced:
    """Numbers and losses that the ranks sent along with their gradients; the same on every rank.

    Attributes:
        numbers: the numbers of each rank.
        losses: the loss of each rank.
        not_finite: ranks with non-finite gradients; all ranks if only the sum overflowed.
    """

    numbers: Sequence[Sequence[int]]
    losses: Sequence[float]
    not_finite: tuple[int, ...]


class Exchange(ABC):
    """Exchange of gradients between the ranks. Every rank calls each method at the same point of the program.

    Attributes:
        by: name of the mechanism that sums the gradients, for messages; empty for a single process.
    """

    by = ""

    @abstractmethod
    def sum(self, compute: Callable[[], Any], numbers: Sequence[int], documents: int) -> Reduced:
        """Compute the gradients, and replace them by their sums over the ranks, bit-identical on all.

        Args:
            compute: computes this rank's gradients and returns its loss: a number, or an array [1] on their device,
                whose computation may be pending. Called again if a sum of whole numbers might overflow.
            numbers: non-negative numbers below 2**40 to send along.
            documents: number of documents in the global batch.
        """

    @abstractmethod
    def update(self, documents: float, learning_rate: float, clip_norm: float | None = None) -> None:
        """Update the parameters with the last sums.

        Args:
            documents: divisor of the sums: documents of the global batch, times the loss scale.
            clip_norm: largest norm of the mean gradient; ``None``: no clipping.
        """

    def flush(self) -> None:  # noqa: B027
        """Bring all parameters up to date for scoring and checkpoints; round those that are trained row by row."""

    def publish(self) -> None:  # noqa: B027
        """Copy parameters that are trained row by row into the network; ``arrays`` has the age of each row."""

    @abstractmethod
    def arrays(self) -> Arrays:
        """Copy the state that ``restore`` needs besides the parameters' values; see ``SavedArrays``. Not collective."""

    @abstractmethod
    def restore(self, arrays: Arrays) -> None:
        """Restore the state from ``arrays``, of any kind of exchange, for the network's current parameters.

        Raises:
            UserError: the arrays do not fit.
        """

    @property
    @abstractmethod
    def bytes(self) -> dict[str, int]:
        """Memory that this process needs besides the parameters, in bytes, by purpose."""
