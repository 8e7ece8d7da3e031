"""The Crepe network (Zhang, Zhao & LeCun 2015, arXiv:1509.01626, tables 1 and 2) as a hybridizable Gluon block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import mxnet as mx
import numpy as np
from mxnet.gluon import nn

from crepe_dist.data.loader import Batch
from crepe_dist.errors import UserError
from crepe_dist.model.shape import Layer, Shape, array_shape
from crepe_dist.mxnet_internals import BFLOAT16, drop_compiled_graph, structural_parameters
from crepe_dist.settings.model_options import Initialisation, Kind, ModelOptions

# The six convolutions of the paper's table 1: (kernel width, followed by a max pool of 3).
CONVOLUTIONS = ((7, True), (7, True), (3, False), (3, False), (3, False), (3, True))
CONVOLUTION_NAMES = ("0", "2", "4", "5", "6", "7")
DENSE_NAMES = ("10", "12", "14")
POOL = 3
# oneDNN's blocked CPU kernels need input channels in multiples of 16; other counts fall back to slow kernels.
CHANNEL_BLOCK = 16
LARGE_FILTERS = 1024
DTYPES: dict[str, Any] = {"float16": "float16", "bfloat16": BFLOAT16}


@dataclass(frozen=True)
class CrepeShape(Shape):
    """Configuration of the Crepe network.

    Attributes:
        filters: output channels of each convolution (paper: 256 small, 1024 large).
        units: width of the two hidden dense layers (paper: 1024 small, 2048 large).
        dropout: probability of dropping a unit after each hidden dense layer.

    ``feature_len`` must be at least 123, the shortest length that leaves one position after the last pool.
    """

    kind: ClassVar[Kind] = "crepe"
    title: ClassVar[str] = "character-level convolutions"
    class_axes: ClassVar[Mapping[str, int]] = {"14.weight": 0, "14.bias": 0}
    has_other_layers: ClassVar[bool] = True
    reads_any_length: ClassVar[bool] = False
    multiplies: ClassVar[bool] = True
    has_plateau: ClassVar[bool] = True
    input_names: ClassVar[tuple[str, ...]] = ("codes",)
    smaller: ClassVar[str] = "lower model.filters and model.units, or choose a model.size"

    filters: int
    units: int
    dropout: float = 0.5

    @classmethod
    def for_data(cls, options: ModelOptions, characters: int, feature_len: int, classes: int, rows: int) -> CrepeShape:
        """Return the shape selected by ``options`` for a data set with ``rows`` training rows."""
        return cls(characters, feature_len, classes, *options.widths(rows), options.dropout)

    @classmethod
    def of_parameters(
        cls,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        alphabet_size: int,
        feature_len: int,
        network: Mapping[str, Any],
    ) -> CrepeShape:
        """Infer the shape from parameters and the network entries of a checkpoint's description (``settings``).

        Raises:
            UserError: The parameters do not belong to such a network, or to this alphabet or length.
        """
        filters, channels, _ = array_shape(arrays, "0.weight", 3)
        units, width = array_shape(arrays, "10.weight", 2)
        classes, _ = array_shape(arrays, "14.weight", 2)
        if channels != alphabet_size:
            raise UserError(
                f"the parameters expect an alphabet of {channels} characters; the encoding has {alphabet_size}",
                remedy="give the --mode that they were trained with; to train, prepare the data with it",
            )
        if width != lengths(feature_len)[-1] * filters:
            raise UserError(
                f"the parameters do not fit documents of {feature_len} characters",
                f"their first dense layer has {width} inputs; {feature_len} characters give "
                f"{lengths(feature_len)[-1] * filters}",
                f"give the --feature-len that they were trained with{_such_as(width, filters)}; "
                "to train, prepare the data with it",
            )
        return cls(alphabet_size, feature_len, classes, filters, units, network.get("dropout", 0.5))

    @classmethod
    def check_settings(cls, network: Mapping[str, Any]) -> None:
        dropout = network["dropout"]
        if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise ValueError(f"dropout is {str(dropout)[:40]}")

    def network(self, **kwargs: Any) -> Crepe:
        return Crepe(self, **kwargs)

    def build(self, options: ModelOptions, device: Any) -> Crepe:
        if lengths(self.feature_len)[-1] < 1:
            raise UserError(
                f"documents of {self.feature_len} characters are too short for this network",
                "six convolutions and three pools need at least 123",
                "prepare the data with --feature-len 123 or more",
            )
        network = self.network()
        network.initialize(_initializer(options.initialisation, self.filters), ctx=device)
        if options.initialisation == "paper":
            sigma = _paper_sigma(self.filters)
            for name, parameter in structural_parameters(network).items():
                if name.endswith("bias"):
                    parameter.set_data(mx.nd.random.normal(0, sigma, shape=parameter.shape))
        return network

    def open_kernels(self, functions: Any, precision: str, threads: int) -> Any:
        return functions.crepe_open(precision == "bfloat16", np.array(self.sizes(), np.int64).ctypes.data, threads)

    def asked(self, options: ModelOptions) -> dict[str, int | None]:
        return dict(zip(("filters", "units"), options.asked_widths))

    def unasked(self, name: str) -> str:
        return "omit model.size, model.filters and model.units, which these parameters decide"

    def trained_as(self, options: ModelOptions) -> CrepeShape:
        return replace(self, dropout=options.dropout)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        channels = self.alphabet_size
        found: dict[str, tuple[int, ...]] = {}
        for name, (kernel, _) in zip(CONVOLUTION_NAMES, CONVOLUTIONS):
            found |= {f"{name}.weight": (self.filters, channels, kernel), f"{name}.bias": (self.filters,)}
            channels = self.filters
        width = lengths(self.feature_len)[-1] * self.filters
        for name, units in zip(DENSE_NAMES, (self.units, self.units, self.classes)):
            found |= {f"{name}.weight": (units, width), f"{name}.bias": (units,)}
            width = units
        return found

    def sizes(self) -> tuple[int, ...]:
        return self.alphabet_size, self.feature_len, self.classes, self.filters, self.units

    def layers(self) -> Iterator[Layer]:
        positions, shapes = iter(lengths(self.feature_len)), self.parameter_shapes()

        def count(name: str) -> int:
            return math.prod(shapes[f"{name}.weight"]) + math.prod(shapes[f"{name}.bias"])

        yield Layer("one-hot", f"{self.alphabet_size} × {next(positions)}")
        for number, (name, (kernel, pooled)) in enumerate(zip(CONVOLUTION_NAMES, CONVOLUTIONS), 1):
            yield Layer(f"convolution {number}, width {kernel}", f"{self.filters} × {next(positions)}", count(name))
            if pooled:
                yield Layer(f"max pool of {POOL}", f"{self.filters} × {next(positions)}")
        for title, name, units in zip(
            ("dense 1", "dense 2", "logits"), DENSE_NAMES, (self.units, self.units, self.classes)
        ):
            yield Layer(title, f"{units}", count(name))

    def forward_operations(self) -> int:
        """Count the first layer as a dense convolution of the one-hot matrix."""
        total, length = self._first_layer(), self.feature_len
        for index, (kernel, pooled) in enumerate(CONVOLUTIONS):
            length -= kernel - 1
            if index > 0:
                total += 2 * kernel * self.filters**2 * length
            length = length // POOL if pooled else length
        width = length * self.filters
        return total + 2 * (width * self.units + self.units**2 + self.units * self.classes)

    def training_operations(self) -> int:
        """Count the forward pass and the gradients of weights and inputs; the first layer has no input gradient."""
        return 3 * self.forward_operations() - self._first_layer()

    def _first_layer(self) -> int:
        kernel, _ = CONVOLUTIONS[0]
        return 2 * kernel * self.alphabet_size * self.filters * (self.feature_len - kernel + 1)

    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, "filters": self.filters, "units": self.units, "dropout": self.dropout}

    def __str__(self) -> str:
        return f"Crepe, {self.filters} filters, {self.units} units"


def lengths(feature_len: int) -> list[int]:
    """Return the number of positions of the input and after each convolution and pool.

    For 1014 characters: 1014 → 1008 → 336 → 330 → 110 → 108 → 106 → 104 → 102 → 34.
    """
    result = [feature_len]
    for kernel, pooled in CONVOLUTIONS:
        result.append(result[-1] - kernel + 1)
        if pooled:
            result.append(result[-1] // POOL)
    return result


def shortest(positions: int) -> int:
    """Return the smallest ``feature_len`` that leaves ``positions`` after the last pool; the inverse of ``lengths``."""
    for kernel, pooled in reversed(CONVOLUTIONS):
        positions = (positions * POOL if pooled else positions) + kernel - 1
    return positions


def _initializer(initialisation: Initialisation, filters: int) -> Any:
    if initialisation == "paper":
        return mx.init.Normal(_paper_sigma(filters))
    if initialisation == "xavier":
        return mx.init.Xavier(magnitude=2.24)
    return mx.init.Xavier(rnd_type="gaussian", factor_type="in", magnitude=2)


def _paper_sigma(filters: int) -> float:
    """Return the standard deviation of section 2.5 of the paper, for all weights and biases of a network."""
    return 0.02 if filters >= LARGE_FILTERS else 0.05


def _such_as(width: int, filters: int) -> str:
    """Suggest a ``--feature-len`` for a first dense layer of ``width`` inputs, if any fits."""
    positions, rest = divmod(width, filters)
    return f", such as {shortest(positions)}" if not rest and positions else ""


class _Cast:
    """Mixin for layers that compute in ``dtype`` while their parameters and gradients stay float32."""

    dtype = "float32"

    def cast_all(self, F: Any, *arrays: Any) -> tuple[Any, ...]:
        return (
            arrays
            if self.dtype == "float32"
            else tuple(F.amp_cast(array, dtype=DTYPES[self.dtype]) for array in arrays)
        )


class Conv1D(_Cast, nn.Conv1D):
    """Convolution in ``dtype``."""

    def hybrid_forward(self, F: Any, x: Any, weight: Any, bias: Any) -> Any:
        return super().hybrid_forward(F, x, *self.cast_all(F, weight, bias))


class Dense(_Cast, nn.Dense):
    """Dense layer in ``dtype``."""

    def hybrid_forward(self, F: Any, x: Any, weight: Any, bias: Any) -> Any:
        return super().hybrid_forward(F, x, *self.cast_all(F, weight, bias))


class Dropout(_Cast, nn.Dropout):
    """Dropout in float32, because MXNet has none in bfloat16."""

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        if self.dtype == "float32":
            return super().hybrid_forward(F, x)
        (x,) = self.cast_all(F, super().hybrid_forward(F, F.amp_cast(x, dtype="float32")))
        return x


class Logits(Dense):
    """Output layer; its logits are float32 in any precision, as losses and probabilities need."""

    def hybrid_forward(self, F: Any, x: Any, weight: Any, bias: Any) -> Any:
        out = super().hybrid_forward(F, x, weight, bias)
        return out if self.dtype == "float32" else F.amp_cast(out, dtype="float32")


class OneHotConv1D(_Cast, nn.HybridBlock):
    """First layer: uint8 codes [B, L] → one-hot on the device → convolution and ReLU [B, filters, L - 6].

    The weight is [filters, alphabet_size, kernel]; the forward pass pads it with zero channels to a multiple of 16, for
    speed. MXNet's ``one_hot`` turns codes from the padded depth on, such as 255, into all-zero columns: the paper's
    representation of blank and unknown characters.
    """

    def __init__(self, alphabet_size: int, filters: int, kernel: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._alphabet_size = alphabet_size
        self._filters = filters
        self._kernel = kernel
        self._depth = -(-alphabet_size // CHANNEL_BLOCK) * CHANNEL_BLOCK
        with self.name_scope():
            self.weight = self.params.get("weight", shape=(filters, alphabet_size, kernel))
            self.bias = self.params.get("bias", shape=(filters,), init="zeros")

    def hybrid_forward(self, F: Any, codes: Any, weight: Any, bias: Any) -> Any:
        one_hot = F.transpose(F.one_hot(codes, depth=self._depth), axes=(0, 2, 1))
        if self._depth > self._alphabet_size:
            extra = F.zeros(shape=(self._filters, self._depth - self._alphabet_size, self._kernel))
            weight = F.concat(weight, extra, dim=1)
        one_hot, weight, bias = self.cast_all(F, one_hot, weight, bias)
        out = F.Convolution(one_hot, weight, bias, kernel=(self._kernel,), num_filter=self._filters)
        # F.relu does not use oneDNN and took a tenth of a training step.
        return F.Activation(out, act_type="relu")


class Crepe(nn.HybridSequential):
    """Six convolutions, three pools, three dense layers: uint8 codes [B, L] → float32 logits [B, classes].

    Children have the same indices as in the notebook's ``HybridSequential`` (convolutions 0, 2, 4, 5, 6, 7; dense
    layers 10, 12, 14), so both can load each other's ``save_parameters`` files. Every layer gets its input size,
    because deferred initialisation would delay the broadcast of the parameters to the first forward pass.

    Raises:
        ValueError: ``feature_len`` leaves no position after the last pool.
    """

    def __init__(self, shape: CrepeShape, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        positions = lengths(shape.feature_len)
        if positions[-1] < 1:
            raise ValueError(f"feature_len is {shape.feature_len}; this network needs at least 123 characters")
        self.shape = shape
        with self.name_scope():
            for index, (kernel, pooled) in enumerate(CONVOLUTIONS):
                name = f"conv{index}_"
                if index == 0:
                    self.add(OneHotConv1D(shape.alphabet_size, shape.filters, kernel, prefix=name))
                else:
                    width = shape.filters
                    self.add(Conv1D(width, kernel, in_channels=width, activation="relu", prefix=name))
                if pooled:
                    self.add(nn.MaxPool1D(pool_size=POOL, strides=POOL))
            self.add(nn.Flatten())  # small, 1014 characters: 34 × 256 = 8704 inputs
            width = positions[-1] * shape.filters
            for _ in range(2):
                self.add(Dense(shape.units, in_units=width, activation="relu"))
                self.add(Dropout(shape.dropout))
                width = shape.units
            self.add(Logits(shape.classes, in_units=width))

    def inputs(self, batch: Batch, codes: mx.nd.NDArray) -> tuple[mx.nd.NDArray]:
        """Return the arguments of the forward pass for ``batch``, whose codes are already on the device."""
        return (codes,)

    def compute_in(self, precision: str) -> None:
        """Set the precision of MXNet's operators and discard the compiled graph."""
        for layer in self:
            if isinstance(layer, _Cast):
                layer.dtype = precision
        drop_compiled_graph(self)
