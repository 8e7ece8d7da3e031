"""The paper's network (Zhang, Zhao & LeCun 2015, arXiv:1509.01626, tables 1 and 2)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from crepe_dist.errors import UserError
from crepe_dist.model.network_config import MODEL_HINT, NOT_A_CREPE_MODEL, NetworkConfig
from crepe_dist.native import constants
from crepe_dist.native.constants import PAPER_POOL

if TYPE_CHECKING:
    from crepe_dist.data.char_encoder import CharEncoder
    from crepe_dist.settings.options import ModelOptions

# The six convolutions in table 1 of the paper. Each has a kernel size, and a flag: True if a max pool of 3 follows.
CONVOLUTIONS = tuple(zip(constants.PAPER_KERNEL_SIZES, (True, True, False, False, False, True)))
# Names of the convolutions and of the dense layers in weights files: the indices of the layers, as in Gluon.
CONVOLUTION_NAMES = ("0", "2", "4", "5", "6", "7")
DENSE_NAMES = ("10", "12", "14")
# Numbers of filters and units by the value of --size. "small" and "large" are from the paper. "tiny" is a size of this
# package for small data sets and machines.
SIZES: dict[str, tuple[int, int]] = {"tiny": (128, 512), "small": (256, 1024), "large": (1024, 2048)}
TINY_BELOW_ROWS = 100_000  # Number of training rows below which the default size is tiny.
PAPER_DROPOUT = 0.5  # Dropout probability in the paper and in the original Gluon notebook.
# Names such as hybridsequential0_conv3_weight, which `save_params` and `collect_params().save` of older Gluon versions
# write. The first number is arbitrary.
NOTEBOOK_NAME = re.compile(r"(?:arg:)?(?:\w+_)?(conv|dense)(\d+)_(weight|bias)")


@dataclass(frozen=True)
class PaperConfig(NetworkConfig):
    """Configuration of the paper's network.

    Attributes:
        filters: Number of output channels of each convolution (paper: 256 small, 1024 large).
        units: Width of the two hidden dense layers (paper: 1024 small, 2048 large).
        dropout: Probability that a unit is dropped after each hidden dense layer in training.

    Raises:
        UserError: The documents have fewer than 123 characters. No position would be left after the last pool.
    """

    kind: ClassVar[str] = "paper"
    title: ClassVar[str] = "character-level convolutions"
    description_template: ClassVar[str] = "convolutions, {filters} filters and {units} units"
    class_axes: ClassVar[Mapping[str, int]] = {"14.weight": 0, "14.bias": 0}
    transferable_layers: ClassVar[str] = "convolutions 1 to 6, dense 1 and 2"
    accepts_any_length: ClassVar[bool] = False
    batch_growth: ClassVar[int] = 512
    default_epochs: ClassVar[int] = 5
    max_default_epochs: ClassVar[int] = 20
    early_stopping: ClassVar[bool] = False
    too_large_hint: ClassVar[str] = "choose a smaller model.size"

    filters: int
    units: int
    dropout: float = PAPER_DROPOUT

    def __post_init__(self) -> None:
        if layer_lengths(self.feature_len)[-1] < 1:
            raise UserError(
                f"documents of {self.feature_len} characters are too short for this network",
                "six convolutions and three pools need at least 123",
                "prepare the data with --feature-len 123 or more",
            )

    @classmethod
    def for_data(cls, options: "ModelOptions", encoder: "CharEncoder", classes: int, rows: int) -> "PaperConfig":
        dropout = PAPER_DROPOUT if options.dropout is None else options.dropout
        automatic = "tiny" if rows < TINY_BELOW_ROWS else "small"
        size = automatic if options.size == "auto" else options.size
        return cls(encoder.num_ids, encoder.feature_len, classes, *SIZES[size], dropout)

    @classmethod
    def of_parameters(
        cls,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        alphabet_size: int,
        feature_len: int,
        network: Mapping[str, Any],
    ) -> "PaperConfig":
        """Infer the configuration from parameters and from ``network``, the network entries of a checkpoint's metadata.

        The method ``settings`` returns these entries.
        """
        filters, channels, _ = array_shape(arrays, "0.weight", 3)
        units, width = array_shape(arrays, "10.weight", 2)
        classes, _ = array_shape(arrays, "14.weight", 2)
        if channels != alphabet_size:
            raise UserError(
                f"the parameters expect an alphabet of {channels} characters; the encoding has {alphabet_size}",
                remedy="pass the --mode that the parameters were trained with. Before training, run prepare with the "
                "same --mode",
            )
        if width != layer_lengths(feature_len)[-1] * filters:
            raise UserError(
                f"the parameters do not fit documents of {feature_len} characters",
                f"their first dense layer has {width} inputs; {feature_len} characters give "
                f"{layer_lengths(feature_len)[-1] * filters}",
                f"pass the --feature-len that they were trained with{_suggest_feature_len(width, filters)}; "
                "to train, prepare the data with it",
            )
        return cls(alphabet_size, feature_len, classes, filters, units, network.get("dropout", PAPER_DROPOUT))

    @property
    def reduction_group(self) -> int:
        return constants.PAPER_REDUCTION_GROUP

    @property
    def activations(self) -> int:
        return self.feature_len * self.filters

    def requested_sizes(self, options: "ModelOptions") -> dict[str, int | None]:
        return dict(zip(("filters", "units"), SIZES.get(options.size, (None, None))))

    def size_mismatch_hint(self, name: str) -> str:
        return "omit model.size, which these parameters decide"

    def with_training_options(self, options: "ModelOptions") -> "PaperConfig":
        return replace(self, dropout=PAPER_DROPOUT if options.dropout is None else options.dropout)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        channels = self.alphabet_size
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (kernel, _) in zip(CONVOLUTION_NAMES, CONVOLUTIONS):
            shapes |= {f"{name}.weight": (self.filters, channels, kernel), f"{name}.bias": (self.filters,)}
            channels = self.filters
        width = layer_lengths(self.feature_len)[-1] * self.filters
        for name, units in zip(DENSE_NAMES, (self.units, self.units, self.num_classes)):
            shapes |= {f"{name}.weight": (units, width), f"{name}.bias": (units,)}
            width = units
        return shapes

    def __str__(self) -> str:
        return f"the paper's network, {self.filters} filters, {self.units} units"


def layer_lengths(feature_len: int) -> list[int]:
    """Return the number of positions in the input and after each convolution and each pool.

    For 1014 characters: 1014 → 1008 → 336 → 330 → 110 → 108 → 106 → 104 → 102 → 34.
    """
    result = [feature_len]
    for kernel, pooled in CONVOLUTIONS:
        result.append(result[-1] - kernel + 1)
        if pooled:
            result.append(result[-1] // PAPER_POOL)
    return result


def min_feature_len(positions: int) -> int:
    """Return the smallest ``feature_len`` with ``positions`` positions after the last convolution and its pooling."""
    for kernel, pooled in reversed(CONVOLUTIONS):
        positions = (positions * PAPER_POOL if pooled else positions) + kernel - 1
    return positions


def _suggest_feature_len(width: int, filters: int) -> str:
    """Suggest a ``--feature-len`` for a first dense layer with ``width`` inputs. Return "" if there is none."""
    positions, rest = divmod(width, filters)
    return f", such as {min_feature_len(positions)}" if not rest and positions else ""


def rename_notebook_parameters(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Rename the parameters of a file of the original Gluon notebook. Return the arrays of other files unchanged.

    The order of the layers determines the new names.
    """
    if not all(map(NOTEBOOK_NAME.fullmatch, arrays)):
        return arrays
    names: dict[str, str] = {}
    for kind, targets in (("conv", CONVOLUTION_NAMES), ("dense", DENSE_NAMES)):
        matches = [match for match in map(NOTEBOOK_NAME.fullmatch, arrays) if match and match[1] == kind]
        numbers = sorted({int(match[2]) for match in matches})
        if len(numbers) != len(targets):
            raise UserError(
                f"{path} is not the paper's network",
                f"it has {len(numbers)} {kind} layers instead of {len(targets)}",
                MODEL_HINT,
            )
        target = dict(zip(numbers, targets))
        names.update({match[0]: f"{target[int(match[2])]}.{match[3]}" for match in matches})
    return {names[name]: array for name, array in arrays.items()}


def array_shape(arrays: Mapping[str, np.ndarray[Any, Any]], name: str, dimensions: int) -> tuple[int, ...]:
    """Return the shape of a parameter.

    Raises:
        UserError: The parameter is missing, does not have ``dimensions`` axes, or has an axis of length 0.
    """
    shape = tuple(arrays[name].shape) if name in arrays else ()
    if len(shape) != dimensions:
        raise UserError(NOT_A_CREPE_MODEL, f"{name!r} is missing or does not have {dimensions} dimensions", MODEL_HINT)
    if not all(shape):
        raise UserError(NOT_A_CREPE_MODEL, "a layer has no outputs", MODEL_HINT)
    return shape


CONFIG_CLASS = PaperConfig
