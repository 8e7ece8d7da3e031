"""The shape of the bag of characters: logits = bias + weight × how often each character occurs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from crepe_dist.model.network_config import NetworkConfig


@dataclass(frozen=True)
class BagShape(NetworkConfig):
    """Configuration of the bag of characters, which has no sizes of its own."""

    kind: ClassVar[str] = "bag"
    title: ClassVar[str] = "a bag of characters"
    description_template: ClassVar[str] = "a bag of characters"
    class_axes: ClassVar[Mapping[str, int]] = {"weight": 0, "bias": 0}

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.num_classes, self.alphabet_size), "bias": (self.num_classes,)}


CONFIG_CLASS = BagShape
