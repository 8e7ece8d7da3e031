"""Network configurations, and the facts that follow from one without building the network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from crepe_dist.errors import UserError
from crepe_dist.settings.model_options import Kind, ModelOptions

NOT_OURS = "these are not the parameters of a Crepe network"
GIVE_ANOTHER = "give parameters of such a network: a .params file or a run folder"


@dataclass(frozen=True)
class Layer:
    """A row of a model summary.

    Args:
        name: display name.
        output: output size for one document, such as "256 × 336".
        parameters: number of weights and biases.
    """

    name: str
    output: str
    parameters: int = 0


@dataclass(frozen=True)
class Shape(ABC):
    """Configuration of a network, which determines the shapes of its parameters.

    Attributes:
        kind: the network's name in settings and in the descriptions of checkpoints.
        title: its name for a person to read.
        class_axes: parameters that belong to the classes, with the axis along which the classes lie.
        has_other_layers: some parameters do not belong to the classes, and fit other classes as well.
        reads_any_length: the parameters fit documents of any length.
        multiplies: its time goes into matrix products, whose precision can be chosen.
        has_plateau: training may stay at chance for a thousand steps before it tells classes apart.
        input_names: names of what ``inputs`` of the network returns.
        smaller: remedy where the network is too large for the machine.
        alphabet_size: number of characters; codes at or above it are blank.
        feature_len: characters a document.
        classes: number of outputs.
    """

    kind: ClassVar[Kind]
    title: ClassVar[str]
    class_axes: ClassVar[Mapping[str, int]]
    has_other_layers: ClassVar[bool]
    reads_any_length: ClassVar[bool]
    multiplies: ClassVar[bool]
    has_plateau: ClassVar[bool]
    input_names: ClassVar[tuple[str, ...]]
    smaller: ClassVar[str]

    alphabet_size: int
    feature_len: int
    classes: int

    @classmethod
    @abstractmethod
    def check_settings(cls, network: Mapping[str, Any]) -> None:
        """Check the ``settings`` in the description of a checkpoint.

        Raises:
            KeyError, ValueError: they are missing, or cannot be.
        """

    @abstractmethod
    def network(self, **kwargs: Any) -> Any:
        """Return a Gluon block of this shape, not initialised."""

    @abstractmethod
    def build(self, options: ModelOptions, device: Any) -> Any:
        """Return a block of this shape on ``device``, initialised as ``options`` say.

        Raises:
            UserError: documents too short for the network.
        """

    @abstractmethod
    def open_kernels(self, functions: Any, precision: str, threads: int) -> Any:
        """Open our own kernels for this shape; ``None`` where memory is lacking."""

    @abstractmethod
    def asked(self, options: ModelOptions) -> dict[str, int | None]:
        """Return the sizes that ``options`` ask for, by attribute of the shape; ``None``: any."""

    @abstractmethod
    def unasked(self, name: str) -> str:
        """Return the remedy where the size ``name`` that was asked for is not this one's."""

    @abstractmethod
    def trained_as(self, options: ModelOptions) -> Shape:
        """Return this shape with those of the options that may change from one training to the next."""

    @abstractmethod
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name, without allocating memory for the network."""

    @abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """Return the fields of the shape struct in ``crepe_dist/native``, in its order."""

    @abstractmethod
    def layers(self) -> Iterator[Layer]:
        """Yield the rows of a model summary, from the input to the logits."""

    @abstractmethod
    def forward_operations(self) -> int:
        """Return the nominal number of floating-point operations of one document's forward pass.

        A multiplication and an addition count as two operations.
        """

    @abstractmethod
    def training_operations(self) -> int:
        """Return the nominal number of floating-point operations of one document's forward and backward pass."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the entries for the network in a checkpoint's description."""

    @property
    def parameters(self) -> int:
        """Total number of weights and biases."""
        return sum(map(math.prod, self.parameter_shapes().values()))


def outlines(arrays: Mapping[str, np.ndarray[Any, Any]], name: str, dimensions: int) -> tuple[int, ...]:
    """Return the shape of one array of parameters.

    Raises:
        UserError: it is missing, or has another number of dimensions.
    """
    shape = tuple(arrays[name].shape) if name in arrays else ()
    if len(shape) != dimensions:
        raise UserError(NOT_OURS, f"{name!r} is missing or misshapen", GIVE_ANOTHER)
    if not all(shape):
        raise UserError(NOT_OURS, "a layer has no outputs", GIVE_ANOTHER)
    return shape
