"""The paper's network in the native GPU kernels (``cuda/kernels/paper.cu``)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from crepe_dist.cuda.branch import (
    NO_DROPOUT,
    THREADS,
    DeviceBatch,
    DropoutState,
    GradAccumulators,
    KernelProgram,
    blocks,
)
from crepe_dist.cuda.gpu import DeviceBuffer
from crepe_dist.native.constants import PAPER_POOL, PAPER_REDUCTION_GROUP
from crepe_dist.networks.paper.config import CONVOLUTION_NAMES, CONVOLUTIONS, DENSE_NAMES, PaperConfig

PROGRAM = "paper.cu"
REDUCTION_GROUP = PAPER_REDUCTION_GROUP  # See ``Engine``.
SIDE = 16  # Number of rows and columns of the square matrices that a warp multiplies.
BLOCK_SIDE = 128  # Number of rows and columns of the sums of a thread block; see kernels/block_product.cuh.
BLOCKS = 512  # Number of thread blocks that keep a GPU busy.
# The depth of a dense layer's product is divided into at most MAX_PARTS parts of at least MIN_PART numbers, unless the
# product has enough blocks.
MIN_PART, MAX_PARTS = 512, 16
SHARED_BYTES = 48 << 10  # Shared memory of a thread block.


def constants(config: PaperConfig) -> dict[str, int]:
    """Return the compile-time constants that only this program has. One program computes all sizes of the network."""
    return {"SIDE": SIDE, "SHARED_BYTES": SHARED_BYTES}


def branches(config: PaperConfig, program: KernelProgram, values: Mapping[str, DeviceBuffer]) -> "list[PaperBranch]":
    """Return the branches of the network. It has only one."""
    return [PaperBranch(config, program, values)]


def padded(width: int) -> int:
    """Return a number of channels or units, rounded up to a multiple of ``SIDE``."""
    return -(-width // SIDE) * SIDE


def tiles(rows: int, columns: int) -> int:
    """Return the number of thread blocks that compute a product."""
    return -(-rows // BLOCK_SIDE) * -(-columns // BLOCK_SIDE)


@dataclass(frozen=True)
class Layer:
    """A convolution or a dense layer.

    Attributes:
        name: Name of its parameters, without the suffix.
        taps: Kernel size. It is 1 for a dense layer.
        inputs: Number of input channels or units.
        outputs: Number of output channels or units.
        positions: Number of positions of its input. It is 1 for a dense layer.
        pooled: Number of positions after the max pool that follows, or 0 without a max pool.
    """

    name: str
    taps: int
    inputs: int
    outputs: int
    positions: int = 1
    pooled: int = 0

    @property
    def out_positions(self) -> int:
        """Number of positions of the output, before the max pool."""
        return self.positions - self.taps + 1

    @property
    def is_dense(self) -> bool:
        """True for a dense layer."""
        return self.name in DENSE_NAMES

    @property
    def num_packed(self) -> int:
        """Number of packed weights."""
        return self.taps * padded(self.inputs) * padded(self.outputs)


def list_layers(config: PaperConfig) -> list[Layer]:
    """Return the convolutions and the dense layers of a network."""
    layers, positions, width = list[Layer](), config.feature_len, config.alphabet_size
    for name, (taps, is_pooled) in zip(CONVOLUTION_NAMES, CONVOLUTIONS):
        pooled = (positions - taps + 1) // PAPER_POOL if is_pooled else 0
        layers.append(Layer(name, taps, width, config.filters, positions, pooled))
        positions, width = pooled or layers[-1].out_positions, config.filters
    width *= positions
    for name, units in zip(DENSE_NAMES, (config.units, config.units, config.num_classes)):
        layers.append(Layer(name, 1, width, units))
        width = units
    return layers


class PaperBranch:
    """The paper's network on a GPU, as the only branch of its logits."""

    def __init__(self, config: PaperConfig, program: KernelProgram, values: Mapping[str, DeviceBuffer]) -> None:
        self._config = config
        self._run = program
        self._values = values
        self._first, *self._layers = list_layers(config)
        self._features = padded(next(layer.inputs for layer in self._layers if layer.is_dense))
        self._width = padded(config.filters)
        self._packed = [program.gpu.allocate(program.number_bytes * layer.num_packed) for layer in self._layers]
        addresses = [
            (values[f"{layer.name}.weight"].address, packed.address)
            for layer, packed in zip(self._layers, self._packed)
        ]
        fields = [
            (*pair, layer.outputs, layer.inputs, layer.taps) for pair, layer in zip(addresses, self._layers)
        ]  # The struct ``Layer`` in kernels/paper.cu
        self._fields = program.gpu.copy(np.array(fields, np.int64))
        self._table_size = self._first.taps * (config.alphabet_size + 1) * self._width
        self._table = program.gpu.allocate(4 * self._table_size)
        # Each warp has a table of the first layer's gradients in the shared memory of its thread block.
        table_bytes = 4 * 32 * (config.alphabet_size + 2)
        warps = min(REDUCTION_GROUP, SHARED_BYTES // table_bytes)
        self._tables = {"block": 32 * warps, "shared": warps * table_bytes}

    def forward(self, texts: DeviceBatch, logits: DeviceBuffer, dropping: DropoutState | None = None) -> None:
        """Compute the logits, float32 [documents, classes]."""
        run, documents, first = self._run, texts.documents, self._first
        run("pack_layers", (max(blocks(layer.num_packed) for layer in self._layers), len(self._layers)), self._fields)
        sizes = self._config.filters, self._width, self._config.alphabet_size, first.taps
        run("pack_first_layer", blocks(self._table_size), self._values[f"{first.name}.weight"], *sizes, self._table)
        x = self._input(0, documents)
        run(
            "convolve_characters", (-(-documents * first.pooled * 16 // THREADS), -(-self._width // 64)), texts.texts,
            texts.symbols, self._table, self._values[f"{first.name}.bias"], documents, first.pooled, *sizes,
            x, self._maxima(first, documents),
        )  # fmt: skip
        for number, layer in enumerate(self._layers):
            if layer.is_dense:
                x = self._dense(number, texts, x, dropping or NO_DROPOUT, logits)
            else:
                x = self._convolution(number, documents, x)

    def backward(
        self, texts: DeviceBatch, logit_gradients: DeviceBuffer, sums: GradAccumulators, dropping: DropoutState
    ) -> None:
        """Add the gradients of the last batch to the gradient sums."""
        config, run, documents, width = self._config, self._run, texts.documents, padded(self._config.num_classes)
        gradients, grid = self._numbers("gradients", documents * width), blocks(documents * width)
        run("round_logit_gradients", grid, logit_gradients, documents, config.num_classes, width, gradients)
        for number, layer in reversed(list(enumerate(self._layers))):
            if layer.is_dense:
                gradients = self._dense_gradients(number, documents, gradients, sums, dropping)
            else:
                gradients = self._convolution_gradients(number, documents, gradients, sums)
        accumulators = self._accumulators(self._first, sums)
        groups = -(-documents // REDUCTION_GROUP)
        run(
            "add_character_gradients", (groups * -(-self._width // 32), self._first.taps), texts.texts,
            texts.symbols, gradients, self._maxima(self._first, documents), documents, self._first.pooled,
            config.filters, self._width, config.alphabet_size, *accumulators, **self._tables,
        )  # fmt: skip

    def _convolution(self, number: int, documents: int, x: DeviceBuffer) -> DeviceBuffer:
        """Compute a convolution and its max pool."""
        layer, pooled = self._layers[number], self._input(number + 1, documents)
        out = self._scratch(0, documents) if layer.pooled else pooled
        self._run(
            "convolve_positions", tiles(documents * layer.out_positions, self._width), x, self._packed[number],
            self._values[f"{layer.name}.bias"], documents, layer.positions, layer.out_positions, layer.taps,
            self._width, self._width, layer.outputs, out, shared=SHARED_BYTES,
        )  # fmt: skip
        if layer.pooled:
            grid, maxima = blocks(documents * layer.pooled * self._width), self._maxima(layer, documents)
            self._run("pool_positions", grid, out, documents, *self._pool_arguments(number), pooled, maxima)
        return pooled

    def _convolution_gradients(
        self, number: int, documents: int, gradients: DeviceBuffer, sums: GradAccumulators
    ) -> DeviceBuffer:
        """Add the gradients of a convolution. Return the gradients of its input."""
        layer, x = self._layers[number], self._input(number, documents)
        first, second = self._scratch(0, documents), self._scratch(1, documents)
        if layer.pooled:
            out = second if gradients is first else first
            grid, maxima = blocks(documents * layer.out_positions * self._width), self._maxima(layer, documents)
            self._run("unpool_positions", grid, gradients, maxima, documents, *self._pool_arguments(number), out)
            gradients = out
        sizes = layer.positions, layer.out_positions, layer.taps, layer.inputs, layer.outputs, False
        self._add_gradients(layer, documents, (x, gradients), sizes, sums)
        out = second if gradients is first else first
        self._run(
            "convolve_gradients", tiles(documents * layer.positions, self._width), gradients, self._packed[number], x,
            documents, layer.out_positions, layer.positions, layer.taps, self._width, self._width, out,
            shared=SHARED_BYTES,
        )  # fmt: skip
        return out

    def _dense(
        self, number: int, texts: DeviceBatch, x: DeviceBuffer, dropping: DropoutState, logits: DeviceBuffer
    ) -> DeviceBuffer:
        """Compute a dense layer. Return its units, or the logits."""
        layer, run, documents = self._layers[number], self._run, texts.documents
        width, bias = padded(layer.outputs), self._values[f"{layer.name}.bias"]
        products = self._multiply("multiply_dense", number, documents, x, padded(layer.inputs), width)
        if number + 1 == len(self._layers):
            grid = blocks(documents * layer.outputs)
            run("finish_logits", grid, *products, documents, layer.outputs, width, bias, logits)
            return logits
        units, hidden_layer = self._input(number + 1, documents), DENSE_NAMES.index(layer.name)
        run(
            "finish_hidden_layer", blocks(documents * width), *products, documents, layer.outputs, width, bias,
            *dropping.arguments(), texts.first, hidden_layer, units,
        )  # fmt: skip
        return units

    def _dense_gradients(
        self, number: int, documents: int, gradients: DeviceBuffer, sums: GradAccumulators, dropping: DropoutState
    ) -> DeviceBuffer:
        """Add the gradients of a dense layer. Return the gradients of its input."""
        layer, x, width = self._layers[number], self._input(number, documents), padded(self._layers[number].inputs)
        # The gradients of a dense layer's weights are [outputs][inputs], so the outputs are on the left.
        self._add_gradients(layer, documents, (gradients, x), (1, 1, 1, layer.outputs, layer.inputs, True), sums)
        products = self._multiply(
            "multiply_dense_gradients", number, documents, gradients, padded(layer.outputs), width
        )
        out = self._numbers(f"gradients of {layer.name}", documents * width)
        scale = 1.0 if layer.name == DENSE_NAMES[0] else dropping.scale
        self._run("finish_dense_gradients", blocks(documents * width), *products, documents, width, x, scale, out)
        return out

    def _multiply(
        self, kernel: str, number: int, documents: int, x: DeviceBuffer, width: int, out_width: int
    ) -> tuple[DeviceBuffer, int]:
        """Compute the products of a dense layer. Return the sums of the parts of its depth, and their number."""
        most = max(1, min(MAX_PARTS, BLOCKS // tiles(1, out_width)))
        part = max(MIN_PART, padded(-(-width // most)))
        parts = -(-width // part)
        sums = self._run.buffer("products", 4 * parts * documents * out_width)
        grid = tiles(documents, out_width), parts
        self._run(kernel, grid, x, self._packed[number], documents, width, out_width, part, sums, shared=SHARED_BYTES)
        return sums, parts

    def _add_gradients(
        self, layer: Layer, documents: int, operands: tuple[DeviceBuffer, DeviceBuffer],
        sizes: tuple[int, int, int, int, int, bool], sums: GradAccumulators,
    ) -> None:  # fmt: skip
        """Add the gradients of a layer's weights and bias. ``sizes`` are arguments of ``add_weight_gradients``."""
        num_tiles = layer.taps * tiles(layer.inputs, layer.outputs)
        grid = (
            num_tiles + -(-layer.outputs // 32),
            max(1, min(-(-documents // REDUCTION_GROUP), BLOCKS // num_tiles)),
        )
        arguments = *operands, documents, *sizes, *self._accumulators(layer, sums)
        self._run("add_weight_gradients", grid, *arguments, shared=SHARED_BYTES)

    def _accumulators(self, layer: Layer, sums: GradAccumulators) -> tuple[float | DeviceBuffer, ...]:
        """Return the scales, the sums and the largest terms of a layer's weights and bias."""
        weight, bias = (sums[f"{layer.name}.{name}"] for name in ("weight", "bias"))
        return (
            *(weight.inverse_scale, bias.inverse_scale, weight.total, bias.total),
            *(weight.largest, bias.largest),
        )

    def _pool_arguments(self, number: int) -> tuple[int, int, int, int, int]:
        """Return the sizes of a max pool. The last one flattens its output to the features of the dense layers."""
        layer, features = self._layers[number], self._features if self._layers[number + 1].is_dense else 0
        return layer.out_positions, layer.pooled, layer.outputs, self._width, features

    # The buffers of a batch. The backward pass reads results of the forward pass.

    def _numbers(self, name: str, count: int) -> DeviceBuffer:
        return self._run.buffer(name, self._run.number_bytes * count)

    def _input(self, number: int, documents: int) -> DeviceBuffer:
        """Return the activations that a layer reads."""
        layer = self._layers[number]
        return self._numbers(f"input of {layer.name}", documents * layer.positions * padded(layer.inputs))

    def _maxima(self, layer: Layer, documents: int) -> DeviceBuffer:
        """Return the argmax of each window of the max pool that follows a layer."""
        return self._run.buffer(f"maxima of {layer.name}", documents * layer.pooled * self._width)

    def _scratch(self, number: int, documents: int) -> DeviceBuffer:
        """Return one of two arrays of the size of the largest activations."""
        return self._numbers(f"scratch {number}", documents * self._first.pooled * self._width)
