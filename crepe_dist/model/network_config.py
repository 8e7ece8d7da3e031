"""Network configurations, and the properties that follow from a configuration without building the network."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from crepe_dist import network_registry
from crepe_dist.data.arrays import Arrays
from crepe_dist.errors import UserError
from crepe_dist.files.json_file import parse_finite, parse_integer

if TYPE_CHECKING:
    from crepe_dist.data.char_encoder import CharEncoder, CharIds
    from crepe_dist.settings.options import ModelOptions

# First line and remedy of the error about weights files that do not belong to a network of this package.
NOT_A_CREPE_MODEL = "these are not parameters of a crepe_dist network"
MODEL_HINT = "give a .params file or a run folder of crepe_dist"
MAX_SIZE = 1 << 24  # Maximum value of a size that has no entry in ``max_sizes``.
RowUsage = tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]  # Rows [n] of a table, and the weight of each use.
DROPOUT = "dropout"  # Name of the field with the dropout probability, in networks with dropout.


@dataclass(frozen=True)
class NetworkConfig(ABC):
    """Configuration of a network. It determines the shapes of the parameters.

    Each network type has a subclass. The fields of the subclass are the sizes of the network (integers of at least 1)
    and possibly its ``dropout``. The defaults of the class attributes suit a network without embedding tables.

    Attributes:
        kind: Network type, as in the setting ``model.network`` and in checkpoints.
        title: Display name.
        description_template: Description for reports, with the names of sizes in braces.
        class_axes: Axis of the classes in each parameter that depends on them, by parameter name.
        sparse_parameters: Names of the parameters with sparse gradients, because a document uses only some of the rows.
            The kernels can train these parameters row by row, and expect them in this order. Files omit rows of zeros.
        buffers: Names of the parameters that are not trained but computed from counts of the training split.
        num_branches: Number of branches whose logits are added, 1 or 2. The weight of the second branch is fitted to
            the validation split.
        transferable_layers: Description of the layers that do not depend on the classes and can be transferred to
            another task; empty if there are none.
        accepts_any_length: True if the parameters fit documents of any length.
        is_matmul_bound: True if matrix products dominate the computation, so that lower precision saves time.
        batch_growth: In training, a batch contains at most 1 / ``batch_growth`` of the documents trained on so far.
        default_epochs: Default number of epochs for a training split of medium size.
        max_default_epochs: Upper limit of the default number of epochs. The default exceeds this limit only if the run
            would otherwise have very few steps.
        early_stopping: True if training stops early by default.
        label_smoothing: Default label smoothing.
        too_large_hint: Remedy if the network is too large for the machine.
        max_sizes: Maximum value by size name.
        alphabet_size: Number of known character ids. All ids from this number upwards are blanks.
        feature_len: Number of character ids per document.
        num_classes: Number of outputs.
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
    batch_growth: ClassVar[int] = 64
    default_epochs: ClassVar[int] = 3
    max_default_epochs: ClassVar[int] = 8
    early_stopping: ClassVar[bool] = True
    label_smoothing: ClassVar[float] = 0.0
    too_large_hint: ClassVar[str] = "choose --model ngrams"
    max_sizes: ClassVar[Mapping[str, int]] = {}

    alphabet_size: int
    feature_len: int
    num_classes: int

    @classmethod
    def hyperparameter_names(cls) -> tuple[str, ...]:
        """Return the names of the fields that a subclass adds: its sizes, and possibly its dropout."""
        return tuple(field.name for field in fields(cls)[len(fields(NetworkConfig)) :])

    @classmethod
    def for_data(cls, options: "ModelOptions", encoder: "CharEncoder", classes: int, rows: int) -> Self:
        """Return the configuration that ``options`` select for a data set with ``rows`` training rows."""
        sizes = {name: getattr(options, name) for name in cls.hyperparameter_names()}
        chosen = {name: size for name, size in sizes.items() if size is not None}
        return cls(alphabet_size=encoder.num_ids, feature_len=encoder.feature_len, num_classes=classes, **chosen)

    @classmethod
    def of_parameters(
        cls,
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

    @property
    def has_kernels(self) -> bool:
        """True if the native CPU kernels compute the network."""
        return network_registry.has_network_module(self.kind, "kernels")

    @property
    def has_mxnet(self) -> bool:
        """True if MXNet's operators compute the network."""
        return network_registry.has_network_module(self.kind, "gluon")

    @property
    def cuda_unsupported_reason(self) -> str:
        """Reason why the native kernels do not compute the network on GPUs; empty if they do."""
        return (
            ""
            if network_registry.has_network_module(self.kind, "cuda")
            else "the native kernels compute this network on CPUs only"
        )

    @property
    def dropout(self) -> float:
        """Probability that a unit is dropped in training."""
        return 0.0

    @property
    def reduction_group(self) -> int:
        """Number of documents per partial gradient.

        The native kernels add the gradients of these documents in floating point, and round the sum to fixed point.
        """
        return 1

    @property
    def activations(self) -> int:
        """Number of activations of one document in the largest layer."""
        return self.feature_len * self.alphabet_size

    def requested_sizes(self, options: "ModelOptions") -> dict[str, int | None]:
        """Return the sizes that ``options`` request, by attribute name. A size is ``None`` if any size is accepted.

        An option that the user sets to its default value is treated like an option that the user has not set.
        """
        names = [name for name in self.hyperparameter_names() if name != DROPOUT and hasattr(options, name)]
        values = {name: getattr(options, name) for name in names}
        return {name: None if value == getattr(type(options), name) else value for name, value in values.items()}

    def size_mismatch_hint(self, name: str) -> str:
        """Return the remedy for an error message: the requested size ``name`` differs from this configuration."""
        return f"omit model.{name}, which these parameters decide"

    def with_training_options(self, options: "ModelOptions") -> Self:
        """Return a copy with the options that may differ between training runs, such as dropout."""
        if options.dropout is None or DROPOUT not in self.hyperparameter_names():
            return self
        changed: dict[str, Any] = {DROPOUT: options.dropout}
        return replace(self, **changed)

    @abstractmethod
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name, without allocating memory for the network."""

    def with_branch_weight(self, arrays: Arrays, weight: float) -> Arrays:
        """Return a copy of the parameters that multiplies the logits of the second branch by ``weight``."""
        return arrays

    def max_rows_per_batch(self, documents: int) -> dict[str, int]:
        """For each sparse parameter, return the maximum number of rows that a batch of ``documents`` documents can use.

        The parameters are in the order that the kernels expect.
        """
        return {}

    def row_usage(self, arrays: Arrays, char_ids: "CharIds") -> dict[str, RowUsage]:
        """Return the rows of each sparse parameter that documents use. A row is repeated for each of its uses.

        The weight of a use is the square of the factor that multiplies the row, up to a constant per parameter.
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
