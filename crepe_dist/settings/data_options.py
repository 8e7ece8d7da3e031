"""Settings of the training data."""

from typing import Annotated, Optional

from pydantic.dataclasses import dataclass

from crepe_dist.settings.limits import real, whole
from crepe_dist.settings.schema import Name, Settings

SHORTEST = 123  # characters a document: what leaves the network one position after its last pool
STEP = 27  # characters: from the shortest on, at every so many the pools leave none over; 1014 is such a length
LONGEST_FITTED = SHORTEST + (4096 - SHORTEST) // STEP * STEP  # characters that are read without being asked for: 4092
WHOLE = 99  # per cent of the training texts that are read to their end, where that is to be found
LARGEST_BATCH = 1 << 20


@dataclass
class DataOptions(Settings, group="data"):
    """What is trained on.

    Args:
        source: a folder made by ``crepe_dist.prepare``, or ``sample`` for the bundled sample (prepared on first use).
        batch_size: documents a step over all processes together.
        micro_batch_size: most documents that a process computes at a time; its share of a larger batch is computed in
            pieces whose gradients are summed, with the same result up to rounding in less memory. none: all at once.
        typos: share of the characters that become typing errors in training, such as 0.05: another letter, one left
            out, one too many, or two that change places; other errors in each epoch. What is scored stays as it is.
    """

    source: Name = "sample"
    batch_size: Annotated[int, whole(1, LARGEST_BATCH)] = 64
    micro_batch_size: Optional[Annotated[int, whole(1, LARGEST_BATCH)]] = None
    typos: Annotated[float, real(0, 1)] = 0.0
