"""Settings of the training data."""

from dataclasses import dataclass

from crepe_dist.limits import Settings, setting, whole

SHORTEST = 123  # characters a document: what leaves the network one position after its last pool
LARGEST_BATCH = 1 << 20


@dataclass
class DataOptions(Settings, group="data"):
    """What is trained on.

    Args:
        source: a folder made by ``crepe_dist.prepare``, or ``sample`` for the bundled sample (prepared on first use).
        batch_size: documents a step over all processes together.
    """

    source: str = "sample"
    batch_size: int = setting(64, whole(1, LARGEST_BATCH))
