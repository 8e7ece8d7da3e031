"""The paper's network (Zhang, Zhao & LeCun 2015, arXiv:1509.01626, tables 1 and 2) as a hybridizable Gluon block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import mxnet as mx
import numpy as np
from mxnet.gluon import nn

from crepe_dist.data.loader import Batch
from crepe_dist.errors import UserError
from crepe_dist.model.dropout import Kept
from crepe_dist.model.layers import Casting, Conv1D, Dense, Dropout, Logits, MaxPool1D, OneHotConv1D
from crepe_dist.model.shape import Layer, Shape, array_shape, check_dropout
from crepe_dist.model.stages import Stages
from crepe_dist.mxnet_internals import drop_compiled_graph, structural_parameters
from crepe_dist.settings.model_options import PAPER_DROPOUT, Initialisation, Kind, ModelOptions

# The six convolutions of the paper's table 1: (kernel width, followed by a max pool of 3).
CONVOLUTIONS = ((7, True), (7, True), (3, False), (3, False), (3, False), (3, True))
CONVOLUTION_NAMES = ("0", "2", "4", "5", "6", "7")
DENSE_NAMES = ("10", "12", "14")
DROPOUTS = 2
POOL = 3
LARGE_FILTERS = 1024


@dataclass(frozen=True)
class PaperShape(Shape):
    """Configuration of the paper's network.

    Attributes:
        filters: output channels of each convolution (paper: 256 small, 1024 large).
        units: width of the two hidden dense layers (paper: 1024 small, 2048 large).
        dropout: probability of dropping a unit after each hidden dense layer.

    ``feature_len`` must be at least 123, the shortest length that leaves one position after the last pool.
    """

    kind: ClassVar[Kind] = "paper"
    title: ClassVar[str] = "character-level convolutions"
    class_axes: ClassVar[Mapping[str, int]] = {"14.weight": 0, "14.bias": 0}
    counted: ClassVar[tuple[str, ...]] = ()
    other_layers: ClassVar[str] = "convolutions 1 to 6, dense 1 and 2"
    reads_any_length: ClassVar[bool] = False
    multiplies: ClassVar[bool] = True
    has_plateau: ClassVar[bool] = True
    least_steps: ClassVar[int] = 1000
    input_names: ClassVar[tuple[str, ...]] = ("codes",)
    smaller: ClassVar[str] = "lower model.filters and model.units, or choose a model.size"

    filters: int
    units: int
    dropout: float = PAPER_DROPOUT

    @classmethod
    def for_data(cls, options: ModelOptions, characters: int, feature_len: int, classes: int, rows: int) -> PaperShape:
        dropout = PAPER_DROPOUT if options.dropout is None else options.dropout
        return cls(characters, feature_len, classes, *options.widths(rows), dropout)

    @classmethod
    def of_parameters(
        cls,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        alphabet_size: int,
        feature_len: int,
        network: Mapping[str, Any],
    ) -> PaperShape:
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
        return cls(alphabet_size, feature_len, classes, filters, units, network.get("dropout", PAPER_DROPOUT))

    @classmethod
    def check_settings(cls, network: Mapping[str, Any]) -> None:
        check_dropout(network["dropout"])

    def network(self, **kwargs: Any) -> Paper:
        return Paper(self, **kwargs)

    def build(self, options: ModelOptions, device: Any) -> Paper:
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
        return functions.crepe_open_paper(
            precision == "bfloat16", np.array(self.sizes(), np.int64).ctypes.data, threads
        )

    def asked(self, options: ModelOptions) -> dict[str, int | None]:
        return dict(zip(("filters", "units"), options.asked_widths))

    def unasked(self, name: str) -> str:
        return "omit model.size, model.filters and model.units, which these parameters decide"

    def trained_as(self, options: ModelOptions) -> PaperShape:
        return replace(self, dropout=PAPER_DROPOUT if options.dropout is None else options.dropout)

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
        return f"the paper's network, {self.filters} filters, {self.units} units"


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


class Paper(nn.HybridSequential):
    """Six convolutions, three pools, three dense layers: uint8 codes [B, L] → float32 logits [B, classes].

    Children have the same indices as in the notebook's ``HybridSequential`` (convolutions 0, 2, 4, 5, 6, 7; dense
    layers 10, 12, 14), so both can load each other's ``save_parameters`` files. Every layer gets its input size,
    because deferred initialisation would delay the broadcast of the parameters to the first forward pass.

    Raises:
        ValueError: ``feature_len`` leaves no position after the last pool.
    """

    def __init__(self, shape: PaperShape, **kwargs: Any) -> None:
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
                    self.add(MaxPool1D(pool_size=POOL, strides=POOL))
            self.add(nn.Flatten())  # small, 1014 characters: 34 × 256 = 8704 inputs
            convolutions = len(self)
            width = positions[-1] * shape.filters
            for _ in range(DROPOUTS):
                self.add(Dense(shape.units, in_units=width, activation="relu"))
                self.add(Dropout(shape.dropout))
                width = shape.units
            self.add(Logits(shape.classes, in_units=width))
        self.stages = Stages(list(self), convolutions)

    def hybridize(self, active: bool = True, **flags: Any) -> None:
        """Compile the network at its next call: as one graph, and as two for ``logits`` and ``training_logits``."""
        super().hybridize(active, **flags)
        self.stages.hybridize(active, **flags)

    ngrams = None  # it has no table of n-grams

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch as it is: the network reads its codes."""
        return batch

    def inputs(self, batch: Batch, codes: mx.nd.NDArray) -> tuple[mx.nd.NDArray]:
        """Return the arguments of the forward pass for ``batch``, whose codes are already on the device."""
        return (codes,)

    def logits(self, codes: mx.nd.NDArray) -> mx.nd.NDArray:
        """Compute the logits, float32 [B, classes], as calling the network does."""
        return self.stages(codes)

    def training_logits(self, kept: Kept, codes: mx.nd.NDArray) -> tuple[mx.nd.NDArray]:
        """Compute the logits, float32 [B, classes], of the network's only part, with dropout by ``kept``."""
        mask = partial(kept, self.shape.dropout, DROPOUTS, self.shape.units) if self.shape.dropout else None
        return (self.stages(codes, mask),)

    def compute_in(self, precision: str, device: Any) -> None:
        """Set precision and device of MXNet's operators, and discard the compiled graphs."""
        for layer in self:
            if isinstance(layer, Casting):
                layer.dtype = precision
            if isinstance(layer, MaxPool1D):
                layer.two_dimensional = device.device_type == "gpu"
        drop_compiled_graph(self)
        self.stages.drop_compiled_graphs()
