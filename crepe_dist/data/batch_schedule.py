"""Sizes of the global batches. In training, the batches grow with the number of documents trained on so far.

Early in training, many small updates are needed. Later, the gradients of a small batch are mostly noise, and the mean
over a larger batch is as useful for each document (McCandlish et al. 2018, arXiv:1812.06162). A larger batch takes
fewer updates, and gives work to more processes. The updates are then larger (``batch_factor`` in
``optim/optimizers.py``). ``docs/decisions/training.md`` has the measurements.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from crepe_dist.settings.options import REFERENCE_BATCH_SIZE

BatchRange = tuple[int, int]  # Positions of the first row of a batch and of the row after its last row.


@dataclass(frozen=True)
class BatchSchedule:
    """Sizes of the global batches of a run.

    Attributes:
        max_size: Maximum number of documents in a batch.
        growth: A batch of more than ``REFERENCE_BATCH_SIZE`` documents contains at most 1 / ``growth`` of the documents
            that the run has trained on.
    """

    max_size: int
    growth: int

    def size_after(self, num_documents: int) -> int:
        """Return the size of the next batch after training on ``num_documents`` documents.

        The sizes are 64, 96, 128, 192, 256, and so on, so that GPU libraries meet few different shapes.
        """
        target = max(REFERENCE_BATCH_SIZE, num_documents // self.growth)
        power = 1 << (target.bit_length() - 1)
        return min(self.max_size, power * 3 // 2 if 2 * target >= 3 * power else power)

    def ranges(self, num_rows: int, epoch: int, first: int = 0) -> Iterator[BatchRange]:
        """Yield the ranges of rows of the batches of an epoch.

        Args:
            num_rows: Number of rows of an epoch.
            epoch: Number of earlier epochs.
            first: Number of rows of this epoch to skip, when a run is resumed after a batch.
        """
        while first < num_rows:
            last = min(first + self.size_after(epoch * num_rows + first), num_rows)
            yield first, last
            first = last


def equal_batches(num_rows: int, batch_size: int) -> Iterator[BatchRange]:
    """Yield ranges of ``batch_size`` rows. The last range may be smaller."""
    for start in range(0, num_rows, batch_size):
        yield start, min(start + batch_size, num_rows)
