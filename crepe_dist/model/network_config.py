"""Network configurations, and the facts that follow from a configuration without building the network."""

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

# First line and remedy of the error for foreign weight files.
NOT_A_CREPE_MODEL = "these are not parameters of a crepe_dist network"
MODEL_HINT = "give a .params file or a run folder of crepe_dist"
MAX_SIZE = 1 << 24  # Maximum value of a size that has no entry in ``max_sizes``.
RowUsage = tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]  # Rows [n] of a table, and the weight of each use.
DROPOUT = "dropout"  # Name of the field with the dropout probability, in networks with dropout.
Self = TypeVar("Self", bound="NetworkConfig")


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return the number of batches for ``rows`` training rows. The last batch may be smaller than the others."""
    return math.ceil(rows / batch_size)


@dataclass(frozen=True)
class NetworkConfig(ABC):
    """Configuration of a network. It determines the shapes of the parameters.

    Each network has a subclass. The fields of the subclass are its sizes (integers of at least 1) and possibly its
    ``dropout``. Most defaults are right for a network that reads the character ids of a document, and has no
    embedding tables and no kernels of its own.

    Attributes:
        kind: network type, as in the setting ``model.network`` and in checkpoints.
        title: display name.
        description_template: description for reports, with the names of sizes in braces.
        class_axes: axis of the classes in each parameter that depends on them, by parameter name.
        sparse_parameters: names of the parameters with rows that only some documents use, in the order of the kernels.
            The kernels can train these parameters row by row. Files omit their rows of zeros.
        buffers: names of the parameters that are counted in the training split and not trained.
        num_branches: number of branches whose logits are added, 1 or 2. The weight of the second branch is fitted to
            the validation split.
        transferable_layers: description of the layers that do not depend on the classes and can be transferred to
            another task; empty if there are none.
        accepts_any_length: True if the parameters fit documents of any length.
        is_matmul_bound: True if matrix products dominate the computation, so that lower precision saves time.
        min_useful_steps: number of steps after which the network usually separates the classes.
        default_epochs: default number of epochs, for medium amounts of documents and text.
        max_default_epochs: maximum of the default number of epochs. If these are very few steps, the default may exceed
            it.
        early_stopping: True if training stops early by default.
        label_smoothing: default label smoothing.
        too_large_hint: remedy if the network is too large for the machine.
        option_names: names of the options that differ from the names of the sizes that they set, by size.
        max_sizes: maximum values of sizes, by name.
        alphabet_size: number of character ids. Ids from this number on are blank.
        feature_len: number of character ids per document.
        num_classes: number of outputs.
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
        """Return the names of the fields that a subclass adds: its sizes, and possibly its dropout."""
        return tuple(field.name for field in fields(cls)[len(fields(NetworkConfig)) :])

    @classmethod
    def for_data(cls: type[Self], options: ModelOptions, encoder: CharEncoder, classes: int, rows: int) -> Self:
        """Return the configuration that ``options`` select for a data set with ``rows`` training rows."""
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
        """Infer the configuration from parameters and the network entries of a checkpoint's metadata (``settings``).

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
        """Check the network entries of a checkpoint's metadata.

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
        """Return the epochs after which the network usually separates the classes, with ``rows`` training rows."""
        return math.ceil(cls.min_useful_steps / steps_per_epoch(rows, batch_size))

    @property
    def has_kernels(self) -> bool:
        """True if our own CPU kernels compute the network."""
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
        """Probability that a unit is dropped in training."""
        return 0.0

    @property
    def reduction_group(self) -> int:
        """Number of documents whose gradients our kernels add in floating point before they round the sum to fixed
        point."""
        return 1

    @property
    def activations(self) -> int:
        """Number of activations of one document in the largest layer."""
        return self.feature_len * self.alphabet_size

    def requested_sizes(self, options: ModelOptions) -> dict[str, int | None]:
        """Return the sizes requested in ``options``, by attribute name; ``None`` if any size is accepted.

        An explicit value that equals the default cannot be distinguished from a missing one.
        """
        names = {name: self.option_names.get(name, name) for name in self.hyperparameter_names() if name != DROPOUT}
        names = {name: option for name, option in names.items() if hasattr(options, option)}
        values = {name: getattr(options, option) for name, option in names.items()}
        defaults = {name: getattr(type(options), option) for name, option in names.items()}
        return {name: None if value == defaults[name] else value for name, value in values.items()}

    def size_mismatch_hint(self, name: str) -> str:
        """Return the remedy if the requested size ``name`` differs from this configuration."""
        return f"omit model.{self.option_names.get(name, name)}, which these parameters decide"

    def with_training_options(self: Self, options: ModelOptions) -> Self:
        """Return this configuration with the options that may differ between trainings, such as dropout."""
        if options.dropout is None or DROPOUT not in self.hyperparameter_names():
            return self
        changed: dict[str, Any] = {DROPOUT: options.dropout}
        return replace(self, **changed)

    @abstractmethod
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name, without allocating memory for the network."""

    def with_branch_weight(self, arrays: Arrays, weight: float) -> Arrays:
        """Return the parameters with the logits of the second branch multiplied by ``weight``."""
        return arrays

    def max_rows_per_batch(self, documents: int) -> dict[str, int]:
        """Return the maximum number of rows that a batch uses, for each sparse parameter, in their order."""
        return {}

    def row_usage(self, arrays: Arrays, char_ids: CharIds) -> dict[str, RowUsage]:
        """Return the rows of each sparse parameter that documents use, one entry per use, by name.

        The weight of a use is the square of the factor that multiplies the row, times a constant of the parameter.
        """
        return {}

    def settings(self) -> dict[str, Any]:
        """Return the network entries of a checkpoint's metadata."""
        return {"kind": self.kind, **{name: getattr(self, name) for name in self.hyperparameter_names()}}

    @property
    def num_parameters(self) -> int:
        """Total number of weights and biases."""
        return sum(map(math.prod, self.parameter_shapes().values()))

    def __str__(self) -> str:
        return self.title
