"""Settings of the training data."""

from dataclasses import dataclass
from typing import Optional

from crepe_dist.errors import UserError

SHORTEST = 123  # characters a document: what leaves the network one position after its last pool


@dataclass
class DataOptions:
    """What is trained on.

    Args:
        source: a folder made by ``crepe_dist.prepare``, or ``sample`` for the bundled sample (prepared on first use).
        batch_size: documents a step over all processes together.
        micro_batch_size: most documents that a process computes at a time; its share of a larger batch is computed in
            pieces whose gradients are summed, with the same result up to rounding in less memory. none: all at once.
    """

    source: str = "sample"
    batch_size: int = 64
    micro_batch_size: Optional[int] = None

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("micro_batch_size", self.micro_batch_size)):
            if value is not None and value < 1:
                raise UserError(f"data.{name} is {value}", remedy="give a number above zero")
