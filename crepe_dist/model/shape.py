"""Network configurations, and the facts that follow from one without building the network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from crepe_dist.errors import UserError
from crepe_dist.files import finite
from crepe_dist.settings.allowed_values import Kind

if TYPE_CHECKING:
    from crepe_dist.settings.model_options import ModelOptions

NOT_OURS = "these are not the parameters of a network of crepe_dist"
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


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return the number of batches that hold ``rows`` training rows; the last one may be smaller."""
    return math.ceil(rows / batch_size)


@dataclass(frozen=True)
class Shape(ABC):
    """Configuration of a network, which determines the shapes of its parameters.

    Attributes:
        kind: network type, as in the setting ``model.network`` and in checkpoints.
        title: display name.
        class_axes: axis of the classes in each parameter that depends on them, by parameter name.
        counted: names of the parameters that are counted in the training split, not trained.
        weighed: names of the parameters of the last layer of the second of two parts, whose logits are added with a
            weight fitted to a validation split (``tower_weight``); empty: the network has one part.
        other_layers: the layers that do not depend on the classes and can be transferred to others; empty: none.
        reads_any_length: True if the parameters fit documents of any length.
        multiplies: True if matrix products dominate the computation, so that lower precision saves time.
        has_plateau: True if the loss may stay at chance at first.
        least_steps: steps after which the network usually tells classes apart.
        input_names: names of the arguments of the forward pass, see ``inputs`` of the networks.
        label_smoothing: default for training.
        smaller: remedy if the network is too large for the machine.
        alphabet_size: number of characters; codes from this number on are blank.
        feature_len: characters per document.
        classes: number of outputs.
    """

    kind: ClassVar[Kind]
    title: ClassVar[str]
    class_axes: ClassVar[Mapping[str, int]]
    counted: ClassVar[tuple[str, ...]]
    weighed: ClassVar[tuple[str, ...]] = ()
    other_layers: ClassVar[str]
    reads_any_length: ClassVar[bool]
    multiplies: ClassVar[bool]
    has_plateau: ClassVar[bool]
    least_steps: ClassVar[int]
    input_names: ClassVar[tuple[str, ...]]
    label_smoothing: ClassVar[float] = 0.0
    smaller: ClassVar[str]

    alphabet_size: int
    feature_len: int
    classes: int

    @classmethod
    @abstractmethod
    def for_data(cls, options: ModelOptions, characters: int, feature_len: int, classes: int, rows: int) -> Shape:
        """Return the shape selected by ``options`` for a data set with ``rows`` training rows."""

    @classmethod
    @abstractmethod
    def of_parameters(
        cls,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        alphabet_size: int,
        feature_len: int,
        network: Mapping[str, Any],
    ) -> Shape:
        """Infer the shape from parameters and the network entries of a checkpoint's description (``settings``).

        Raises:
            UserError: The parameters do not belong to such a network.
        """

    @classmethod
    @abstractmethod
    def check_settings(cls, network: Mapping[str, Any]) -> None:
        """Check the network entries of a checkpoint's description.

        Raises:
            KeyError: An entry is missing.
            ValueError: An entry is invalid.
        """

    @classmethod
    def epochs_needed(cls, rows: int, batch_size: int) -> int:
        """Return the epochs after which the network usually tells classes apart, with ``rows`` training rows."""
        return math.ceil(cls.least_steps / steps_per_epoch(rows, batch_size))

    @property
    def dropout(self) -> float:
        """Probability of dropping a unit in training."""
        return 0.0

    @property
    def group_size(self) -> int:
        """Number of documents of a global batch whose gradients our kernels add up in floating point."""
        return 1

    @property
    @abstractmethod
    def activations(self) -> int:
        """Number of activations of one document in the layer that has the most."""

    @abstractmethod
    def open_kernels(self, functions: Any, precision: str, threads: int) -> Any:
        """Open our own kernels for this shape; return ``None`` if memory runs out."""

    @abstractmethod
    def requested(self, options: ModelOptions) -> dict[str, int | None]:
        """Return the sizes requested in ``options`` by attribute name; ``None`` for any size."""

    @abstractmethod
    def remedy_for(self, name: str) -> str:
        """Return the remedy for a requested size ``name`` that differs from this shape's."""

    @abstractmethod
    def trained_as(self, options: ModelOptions) -> Shape:
        """Return this shape with the options that may change between trainings, such as dropout."""

    @abstractmethod
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name, without allocating memory for the network."""

    @abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """Return the fields of the shape struct in ``crepe_dist/native``, in its order."""

    def most_rows(self, documents: int) -> dict[str, int]:
        """Return the largest numbers of rows that so many documents touch, by parameter name.

        The names are those of the parameters that our own kernels can train row by row, in the order of the kernels.
        """
        return {}

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


def array_shape(arrays: Mapping[str, np.ndarray[Any, Any]], name: str, dimensions: int) -> tuple[int, ...]:
    """Return the shape of a parameter that must have ``dimensions`` axes and no empty one.

    Raises:
        UserError: The parameter is missing or has another shape.
    """
    shape = tuple(arrays[name].shape) if name in arrays else ()
    if len(shape) != dimensions:
        raise UserError(NOT_OURS, f"{name!r} is missing or does not have {dimensions} dimensions", GIVE_ANOTHER)
    if not all(shape):
        raise UserError(NOT_OURS, "a layer has no outputs", GIVE_ANOTHER)
    return shape


def check_dropout(dropout: Any) -> None:
    """Check the dropout of a checkpoint's description.

    Raises:
        ValueError: It is not a probability below 1.
    """
    finite(dropout, 0, math.nextafter(1, 0), "dropout")
