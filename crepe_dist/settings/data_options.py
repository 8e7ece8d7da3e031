"""Settings of the training data."""

from typing import Annotated, Optional

from pydantic.dataclasses import dataclass

from crepe_dist.settings.limits import real, whole
from crepe_dist.settings.schema import Name, Settings

SHORTEST = 123  # characters per document, for which the last pooling layer has one position
STEP = 27  # characters; at SHORTEST + k · STEP, such as 1014, the pooling layers drop no position
LONGEST_FITTED = SHORTEST + (4096 - SHORTEST) // STEP * STEP  # longest document length chosen automatically: 4092
WHOLE = 99  # percentage of training texts that an automatic length must hold completely
LARGEST_BATCH = 1 << 20


@dataclass
class DataOptions(Settings, group="data"):
    """Training data.

    Args:
        source: folder made by ``crepe_dist.prepare``, or ``sample`` for the bundled sample (prepared on first use).
        batch_size: global batch size: documents per step, over all processes.
        micro_batch_size: most documents that a process computes at once. It accumulates the gradients of a larger
            share, which saves memory and changes the result only by rounding, on CPUs not at all. null: the whole share
            at once.
        typos: fraction of characters hit by a typing error in training, such as 0.05: a letter replaced, deleted,
            inserted, or swapped with its neighbour. The errors differ from epoch to epoch. Evaluation uses clean text.
    """

    source: Name = "sample"
    batch_size: Annotated[int, whole(1, LARGEST_BATCH)] = 64
    micro_batch_size: Optional[Annotated[int, whole(1, LARGEST_BATCH)]] = None
    typos: Annotated[float, real(0, 1)] = 0.0
