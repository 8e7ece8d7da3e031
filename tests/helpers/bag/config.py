"""The shape of the bag of characters: logits = bias + weight × how often each character occurs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from crepe_dist.model.network_config import Shape


@dataclass(frozen=True)
class BagShape(Shape):
    """Configuration of the bag of characters; it has no sizes of its own."""

    kind: ClassVar[str] = "bag"
    title: ClassVar[str] = "a bag of characters"
    described: ClassVar[str] = "a bag of characters"
    class_axes: ClassVar[Mapping[str, int]] = {"weight": 0, "bias": 0}

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.classes, self.alphabet_size), "bias": (self.classes,)}


SHAPE = BagShape
