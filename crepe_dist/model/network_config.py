"""Network configurations, and the facts that follow from one without building the network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from crepe_dist import network_registry
from crepe_dist.data.arrays import Arrays
from crepe_dist.errors import UserError
from crepe_dist.files.json_file import parse_finite, parse_integer

if TYPE_CHECKING:
    from crepe_dist.data.char_encoder import CharEncoder, CharIds
    from crepe_dist.settings.options import ModelOptions

NOT_A_CREPE_MODEL = "these are not parameters of a crepe_dist network"
MODEL_HINT = "give a .params file or a run folder of crepe_dist"
MAX_SIZE = 1 << 24
RowUsage = tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]  # rows [n], and a weight of each
DROPOUT = "dropout"  # field of a network with dropout
Self = TypeVar("Self", bound="NetworkConfig")


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return the number of batches that hold ``rows`` training rows; the last one may be smaller."""
    return math.ceil(rows / batch_size)


@dataclass(frozen=True)
class NetworkConfig(ABC):
    """Configuration of a network, which determines the shapes of its parameters.

    A network has a subclass, whose fields are its sizes (integers of at least 1) and perhaps its ``dropout``. Most
    defaults fit a network that reads the codes of a document and has neither tables nor kernels of its own.

    Attributes:
        kind: network type, as in the setting ``model.network`` and in checkpoints.
        title: display name.
        described: description for pages, with the names of sizes in braces.
        class_axes: axis of the classes in each parameter that depends on them, by parameter name.
        tables: names of the parameters of which a document uses some rows, in the order of the kernels, which can train
            them row by row. Files lack their rows of zeros.
        counted: names of the parameters that are counted in the training split, not trained.
        summands: networks whose logits are added, 1 or 2; a weight of the second is fitted to the validation split.
        other_layers: the layers that do not depend on the classes and can be transferred to others; empty: none.
        reads_any_length: True if the parameters fit documents of any length.
        multiplies: True if matrix products dominate the computation, so that lower precision saves time.
        least_steps: steps after which the network usually tells classes apart.
        usual_epochs: epochs by default, for neither few documents nor much text.
        most_epochs: epochs by default, at most, unless they are very few steps.
        stops_early: True if training stops early by default.
        label_smoothing: default for training.
        smaller: remedy if the network is too large for the machine.
        options: names of the options that have other names than the sizes that they set.
        limits: largest values of sizes, by name.
        alphabet_size: number of characters; codes from this number on are blank.
        feature_len: characters per document.
        classes: number of outputs.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    description_template: ClassVar[str]
    class_axes: ClassVar[Mapping[str, int]]
    sparse_parameters: ClassVar[tuple[str, ...]] = ()
    buffers: ClassVar[tuple[str, ...]] = ()
    num_branches: ClassVar[int] = 1
    transferable_layers: ClassVar[str] = ""
    accepts_any_length: ClassVar[bool] = True
    is_matmul_bound: ClassVar[bool] = True
    min_useful_steps: ClassVar[int] = 20
    default_epochs: ClassVar[int] = 3
    max_default_epochs: ClassVar[int] = 8
    early_stopping: ClassVar[bool] = True
    label_smoothing: ClassVar[float] = 0.0
    too_large_hint: ClassVar[str] = "choose --model ngrams"
    option_names: ClassVar[Mapping[str, str]] = {}
    max_sizes: ClassVar[Mapping[str, int]] = {}

    alphabet_size: int
    feature_len: int
    num_classes: int

    @classmethod
    def hyperparameter_names(cls) -> tuple[str, ...]:
        """Return the names of the fields that a network adds: its sizes, and perhaps its dropout."""
        return tuple(field.name for field in fields(cls)[len(fields(NetworkConfig)) :])

    @classmethod
    def for_data(cls: type[Self], options: ModelOptions, encoder: CharEncoder, classes: int, rows: int) -> Self:
        """Return the shape selected by ``options`` for a data set with ``rows`` training rows."""
        sizes = {name: getattr(options, cls.option_names.get(name, name)) for name in cls.hyperparameter_names()}
        chosen = {name: size for name, size in sizes.items() if size is not None}
        return cls(alphabet_size=encoder.num_ids, feature_len=encoder.feature_len, num_classes=classes, **chosen)

    @classmethod
    def of_parameters(
        cls: type[Self],
        arrays: Mapping[str, np.ndarray[Any, Any]],
        alphabet_size: int,
        feature_len: int,
        network: Mapping[str, Any],
    ) -> Self:
        """Infer the shape from parameters and the network entries of a checkpoint's description (``settings``).

        Raises:
            UserError: The parameters do not belong to such a network.
        """
        name, axis = next(iter(cls.class_axes.items()))
        shape = tuple(arrays[name].shape) if name in arrays else ()
        classes = shape[axis] if axis < len(shape) else 0
        if not classes:
            raise UserError(NOT_A_CREPE_MODEL, f"{name!r} is missing or has no classes", MODEL_HINT)
        sizes = {size: network[size] for size in cls.hyperparameter_names()}
        return cls(alphabet_size=alphabet_size, feature_len=feature_len, num_classes=classes, **sizes)

    @classmethod
    def check_settings(cls, network: Mapping[str, Any]) -> None:
        """Check the network entries of a checkpoint's description.

        Raises:
            KeyError: An entry is missing.
            ValueError: An entry is invalid.
        """
        for name in cls.hyperparameter_names():
            if name == DROPOUT:
                parse_finite(network[name], 0, math.nextafter(1, 0), name)
            else:
                parse_integer(network[name], 1, cls.max_sizes.get(name, MAX_SIZE), name)

    @classmethod
    def epochs_needed(cls, rows: int, batch_size: int) -> int:
        """Return the epochs after which the network usually tells classes apart, with ``rows`` training rows."""
        return math.ceil(cls.min_useful_steps / steps_per_epoch(rows, batch_size))

    @property
    def has_kernels(self) -> bool:
        """True if our own kernels compute the network."""
        return network_registry.has_network_module(self.kind, "kernels")

    @property
    def has_mxnet(self) -> bool:
        """True if MXNet's operators compute the network."""
        return network_registry.has_network_module(self.kind, "gluon")

    @property
    def cuda_unsupported_reason(self) -> str:
        """Reason why our own kernels do not compute the network on GPUs; empty if they do."""
        return (
            ""
            if network_registry.has_network_module(self.kind, "cuda")
            else "our own kernels compute this network on CPUs only"
        )

    @property
    def dropout(self) -> float:
        """Probability of dropping a unit in training."""
        return 0.0

    @property
    def reduction_group(self) -> int:
        """Number of documents of a global batch whose gradients our kernels add up in floating point."""
        return 1

    @property
    def activations(self) -> int:
        """Number of activations of one document in the layer that has the most."""
        return self.feature_len * self.alphabet_size

    def requested_sizes(self, options: ModelOptions) -> dict[str, int | None]:
        """Return the sizes requested in ``options`` by attribute name; ``None`` for any size.

        A default that was given explicitly cannot be distinguished from one left out.
        """
        names = {name: self.option_names.get(name, name) for name in self.hyperparameter_names() if name != DROPOUT}
        names = {name: option for name, option in names.items() if hasattr(options, option)}
        values = {name: getattr(options, option) for name, option in names.items()}
        defaults = {name: getattr(type(options), option) for name, option in names.items()}
        return {name: None if value == defaults[name] else value for name, value in values.items()}

    def size_mismatch_hint(self, name: str) -> str:
        """Return the remedy for a requested size ``name`` that differs from this shape's."""
        return f"omit model.{self.option_names.get(name, name)}, which these parameters decide"

    def with_training_options(self: Self, options: ModelOptions) -> Self:
        """Return this shape with the options that may change between trainings, such as dropout."""
        if options.dropout is None or DROPOUT not in self.hyperparameter_names():
            return self
        changed: dict[str, Any] = {DROPOUT: options.dropout}
        return replace(self, **changed)

    @abstractmethod
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name, without allocating memory for the network."""

    def with_branch_weight(self, arrays: Arrays, weight: float) -> Arrays:
        """Return the parameters of the network whose second summand has that weight."""
        return arrays

    def max_rows_per_batch(self, documents: int) -> dict[str, int]:
        """Return the largest numbers of rows that so many documents touch, by name of the table, in their order."""
        return {}

    def row_usage(self, arrays: Arrays, char_ids: CharIds) -> dict[str, RowUsage]:
        """Return the rows of each table that documents use, once for each use, by name of the table.

        A use has the square of the factor of the row, times a constant of the table.
        """
        return {}

    def settings(self) -> dict[str, Any]:
        """Return the entries for the network in a checkpoint's description."""
        return {"kind": self.kind, **{name: getattr(self, name) for name in self.hyperparameter_names()}}

    @property
    def num_parameters(self) -> int:
        """Total number of weights and biases."""
        return sum(map(math.prod, self.parameter_shapes().values()))

    def __str__(self) -> str:
        return self.title
