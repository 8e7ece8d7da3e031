"""Settings of the training data."""

from dataclasses import dataclass

SHORTEST = 123  # characters a document: what leaves the network one position after its last pool


@dataclass
class DataOptions:
    """What is trained on.

    Args:
        source: a folder made by ``crepe_dist.prepare``, or ``sample`` for the bundled sample (prepared on first use).
        batch_size: documents a step over all processes together.
    """

    source: str = "sample"
    batch_size: int = 64
