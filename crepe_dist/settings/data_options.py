"""Settings of the training data."""

from dataclasses import dataclass
from typing import Optional

from crepe_dist.settings.limits import PATH, real, whole
from crepe_dist.settings.schema import Settings, setting

SHORTEST = 123  # characters per document, for which the last pooling layer has one position
STEP = 27  # characters; at SHORTEST + k · STEP, such as 1014, the pooling layers drop no position
LONGEST_FITTED = SHORTEST + (4096 - SHORTEST) // STEP * STEP  # longest document length chosen automatically: 4092
WHOLE = 99  # percentage of training texts that an automatic length must hold completely
LARGEST_BATCH = 1 << 20


@dataclass
class DataOptions(Settings, group="data"):
    """Training data."""

    source: str = setting(
        "sample",
        "folder made by `prepare`, or `sample` for the bundled sample (prepared on first use).",
        PATH,
    )
    batch_size: int = setting(64, "global batch size: documents per step, over all processes.", whole(1, LARGEST_BATCH))
    micro_batch_size: Optional[int] = setting(
        None,
        "most documents that a process computes at once. It accumulates the gradients of a larger share, which saves "
        "memory and changes the result only by rounding, on CPUs not at all. null: the whole share at once.",
        whole(1, LARGEST_BATCH),
    )
    typos: float = setting(
        0.0,
        "fraction of characters hit by a typing error in training, such as 0.05: a letter replaced, deleted, inserted, "
        "or swapped with its neighbour. The errors differ from epoch to epoch. Evaluation uses clean text.",
        real(0, 1),
    )
