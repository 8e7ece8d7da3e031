"""What decides the shapes of a network, and what can be said of it before it is built."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from crepe_dist.settings.model_options import Kind


@dataclass(frozen=True)
class Layer:
    """A line of a table of layers.

    Args:
        name: for a person to read.
        output: what comes out of it for one document, such as "256 × 336".
        parameters: how many numbers it has.
    """

    name: str
    output: str
    parameters: int = 0


@dataclass(frozen=True)
class Shape(ABC):
    """All that decides the shapes of a network.

    Attributes:
        kind: which network.
        alphabet_size: number of characters; codes at or above it are blank.
        feature_len: characters a document.
        classes: number of outputs.
    """

    kind: ClassVar[Kind]

    alphabet_size: int
    feature_len: int
    classes: int

    @abstractmethod
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter, by name. Known before a network is built, since that takes memory by the largest."""

    @abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """For our own kernels, in the order of the struct in crepe_dist/native."""

    @abstractmethod
    def layers(self) -> Iterator[Layer]:
        """From the input to the logits."""

    @abstractmethod
    def forward_operations(self) -> int:
        """Nominal floating-point operations (a multiplication and an addition are two) of one document's forward
        pass."""

    @abstractmethod
    def training_operations(self) -> int:
        """The same of forward pass and gradients."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What a checkpoint's description says of the network."""

    @property
    def parameters(self) -> int:
        """Numbers in the network's parameters, and so in its gradient: weights and biases."""
        return sum(map(math.prod, self.parameter_shapes().values()))
