"""Crepe in the native GPU kernels (``cuda/kernels/crepe.cu``)."""

from collections.abc import Mapping

import numpy as np

from crepe_dist.cuda.branch import (
    NO_DROPOUT,
    Branch,
    DeviceBatch,
    DropoutState,
    GradAccumulators,
    KernelProgram,
    blocks,
)
from crepe_dist.cuda.gpu import DeviceBuffer
from crepe_dist.native.constants import CONV_KERNEL_SIZE, FEATURE_DROPOUT_STREAM, MIN_DISTINCT_ROWS, POOLED_BLOCKS
from crepe_dist.networks.crepe.config import CrepeConfig
from crepe_dist.networks.ngrams.cuda import NGramBranch

PROGRAM = "crepe.cu"
REDUCTION_GROUP = 1  # See ``Engine``.
SIDE = 16  # Number of rows and columns of the square matrices that a warp multiplies.
# Number of bytes per channel of a tile. A tile contains the positions that a thread block computes at a time.
TILE_BYTES = 128


def constants(config: CrepeConfig) -> dict[str, int]:
    """Return the compile-time constants of this program, without the constants that all networks have in common."""
    return {"CHANNELS": config.width, "SIDE": SIDE, "TILE_BYTES": TILE_BYTES}


def branches(config: CrepeConfig, program: KernelProgram, values: Mapping[str, DeviceBuffer]) -> list[Branch]:
    """Return the branches of the network, whose logits are added."""
    return [NGramBranch(config.ngram_config, program, values, "ngrams."), ConvBranch(config, program, values)]


class ConvBranch:
    """The convolutional branch on a GPU; see ``networks/crepe/config.py``."""

    def __init__(self, config: CrepeConfig, program: KernelProgram, values: Mapping[str, DeviceBuffer]) -> None:
        self._shape = config
        self._run = program
        self._values = values
        self._width = width = -(-config.width // SIDE) * SIDE
        row = program.number_bytes * (width + 16)  # ROW_STRIDE in kernels/crepe.cu, in bytes
        tile = TILE_BYTES // program.number_bytes
        self._tile = tile
        self._convolution = {
            "block": 2 * tile,
            "shared": max((tile + CONV_KERNEL_SIZE - 1) * row, 4 * tile * (width + 8)),
        }
        size = CONV_KERNEL_SIZE * width**2 * program.number_bytes
        numbers = range(2 * config.blocks)
        weights = [values[f"tower.convolutions.{number}.weight"].address for number in numbers]
        self._weights = program.gpu.copy(np.array(weights, np.uint64))
        self._packed = program.gpu.allocate(size * len(weights)), program.gpu.allocate(size * len(weights))
        self._packed_views = [[buffer.view(size * number, size) for buffer in self._packed] for number in numbers]
        self._convolution_gradients = {"block": 2 * width, "shared": max(2 * tile * row, 64 * width)}

    def forward(self, texts: DeviceBatch, logits: DeviceBuffer, dropping: DropoutState | None = None) -> None:
        """Compute the logits, float32 [documents, classes]."""
        config, run, documents, lengths = self._shape, self._run, texts.documents, texts.lengths
        of_embedding, of_features = self._split_dropout(dropping)
        first, places = texts.first, config.positions * config.stride
        memory = _Buffers(config, run, documents, self._width)
        run(
            "hash_positions", blocks(documents * places), texts.texts, lengths, documents, texts.symbols, places,
            config.embedding_maxn, config.embedding_rows, memory.rows,
        )  # fmt: skip
        run(
            "embed", blocks(documents * config.positions * self._width // 4), memory.rows, lengths, documents,
            config.positions, config.stride, config.stride * config.embedding_maxn, self._values["tower.table"],
            *of_embedding.arguments(), first, memory.activations[0],
        )  # fmt: skip
        grid = blocks(CONV_KERNEL_SIZE * self._width**2), 2 * config.blocks
        run("pack_convolutions", grid, self._weights, *self._packed)
        for block in range(config.blocks):
            inside, hidden, out = memory.activations[block], memory.hidden[block], memory.activations[block + 1]
            after = memory.scratch[0] if block < POOLED_BLOCKS else out
            self._convolve(texts, block, 2 * block, inside, hidden)
            self._convolve(texts, block, 2 * block + 1, hidden, after, residual=inside)
            if block < POOLED_BLOCKS:
                run(
                    "pool", blocks(documents * config.positions_in(block + 1) * self._width), after, lengths, documents,
                    *self._position_arguments(texts, block)[1:], out, memory.maxima[block],
                )  # fmt: skip
        run(
            "pool_features", documents, memory.activations[-1], *self._position_arguments(texts, config.blocks),
            *of_features.arguments(), first, memory.features, memory.best,
        )  # fmt: skip
        run(
            "compute_branch_logits", blocks(32 * documents * config.num_classes), memory.features,
            self._values["tower.out.weight"], self._values["tower.out.bias"], documents, config.num_classes, logits,
        )  # fmt: skip

    def backward(
        self, texts: DeviceBatch, logit_gradients: DeviceBuffer, sums: GradAccumulators, dropping: DropoutState
    ) -> None:
        """Add the gradients of the last batch to the gradient sums."""
        config, run, documents = self._shape, self._run, texts.documents
        memory = _Buffers(config, run, documents, self._width)
        of_embedding, of_features = self._split_dropout(dropping)
        out, bias, table = sums["tower.out.weight"], sums["tower.out.bias"], sums["tower.table"]
        run(
            "add_last_layer_gradients", documents, memory.features, logit_gradients, config.num_classes,
            out.inverse_scale, bias.inverse_scale, out.total, bias.total, out.largest, bias.largest,
        )  # fmt: skip
        gradients, other, inner = memory.scratch
        run(
            "unpool_features", documents, logit_gradients, config.num_classes, self._values["tower.out.weight"],
            memory.features, memory.best, memory.activations[-1], *self._position_arguments(texts, config.blocks),
            of_features.scale, gradients,
        )  # fmt: skip
        for block in reversed(range(config.blocks)):
            inside, hidden = memory.activations[block], memory.hidden[block]
            if block < POOLED_BLOCKS:
                run(
                    "unpool", blocks(documents * config.positions_in(block) * self._width), gradients,
                    memory.maxima[block], texts.lengths, documents, *self._position_arguments(texts, block)[1:], other,
                )  # fmt: skip
                gradients, other = other, gradients
            self._add_gradients(texts, block, hidden, gradients, 2 * block + 1, sums)
            self._convolve(texts, block, 2 * block + 1, gradients, inner, hidden=hidden, back=True)
            self._add_gradients(texts, block, inside, inner, 2 * block, sums)
            self._convolve(texts, block, 2 * block, inner, other, residual=gradients, hidden=inside, back=True)
            gradients, other = other, gradients
        positions, terms = config.positions, run.buffer("terms", 4 * documents * config.positions * self._width)
        ngrams = config.stride * config.embedding_maxn
        max_equal_rows = ngrams if config.embedding_rows < MIN_DISTINCT_ROWS else config.stride
        run(
            "quantize_embedding_gradients", documents, gradients, texts.lengths, positions, config.stride,
            max_equal_rows, of_embedding.scale * table.inverse_scale, terms, table.largest,
        )  # fmt: skip
        run(
            "add_embedding_gradients", blocks(documents * positions * config.width), terms, memory.rows, texts.lengths,
            documents, positions, config.stride, ngrams, table.total,
        )  # fmt: skip

    def _convolve(
        self, texts: DeviceBatch, block: int, number: int, inside: DeviceBuffer, out: DeviceBuffer,
        *, residual: DeviceBuffer | None = None,
        hidden: DeviceBuffer | None = None, back: bool = False,
    ) -> None:  # fmt: skip
        """Compute a convolution, or the gradient of its input if ``back`` is True.

        The kernel is ``convolve`` in kernels/crepe.cu.
        """
        bias = None if back else self._values[f"tower.convolutions.{number}.bias"]
        grid = texts.documents, -(-self._shape.positions_in(block) // self._tile)
        inputs = inside, self._packed_views[number][back], bias, residual, hidden
        self._run("convolve", grid, *inputs, *self._position_arguments(texts, block), out, **self._convolution)

    def _add_gradients(
        self,
        texts: DeviceBatch,
        block: int,
        inside: DeviceBuffer,
        gradients: DeviceBuffer,
        number: int,
        sums: GradAccumulators,
    ) -> None:
        weight, bias = (sums[f"tower.convolutions.{number}.{name}"] for name in ("weight", "bias"))
        self._run(
            "add_convolution_gradients", (texts.documents, CONV_KERNEL_SIZE), inside, gradients,
            *self._position_arguments(texts, block), weight.inverse_scale, bias.inverse_scale, weight.total,
            bias.total, weight.largest, bias.largest, **self._convolution_gradients,
        )  # fmt: skip

    def _split_dropout(self, dropping: DropoutState | None) -> tuple[DropoutState, DropoutState]:
        """Return the dropout of the embedding and the dropout of the features."""
        if dropping is None:
            return NO_DROPOUT, NO_DROPOUT
        return dropping, DropoutState(self._shape.FEATURE_DROPOUT, dropping.seed ^ FEATURE_DROPOUT_STREAM)

    def _position_arguments(self, texts: DeviceBatch, block: int) -> tuple[DeviceBuffer, int, int, int]:
        """Return the kernel arguments that locate the positions of a block."""
        return texts.lengths, self._shape.stride, min(block, POOLED_BLOCKS), self._shape.positions_in(block)


class _Buffers:
    """Device buffers of the convolutional branch for a batch. The backward pass reads results of the forward pass.

    Attributes:
        rows: Table rows of the n-grams at each position, uint32 [documents, positions, stride × embedding_maxn].
        activations: Inputs of the blocks, and the output of the last block.
        hidden: Activations between the two convolutions of each block.
        scratch: Three arrays of the size of the first activations.
        maxima: Positions of the maxima that the max pools selected.
        features: Inputs of the last layer, float32 [documents, 2, width].
        best: Positions of the maxima in the features, int32 [documents, width].
    """

    def __init__(self, config: CrepeConfig, run: KernelProgram, documents: int, width: int) -> None:
        def numbers(name: str, block: int, each: int = run.number_bytes) -> DeviceBuffer:
            return run.buffer(name, each * documents * config.positions_in(block) * width)

        self.rows = run.buffer("rows", 4 * documents * config.positions * config.stride * config.embedding_maxn)
        self.activations = [numbers(f"activations {block}", block) for block in range(config.blocks + 1)]
        self.hidden = [numbers(f"hidden {block}", block) for block in range(config.blocks)]
        self.scratch = [numbers(f"scratch {number}", 0) for number in range(3)]
        self.maxima = [numbers(f"maxima {block}", block + 1, 1) for block in range(min(config.blocks, POOLED_BLOCKS))]
        self.features = run.buffer("features", 8 * documents * config.width)
        self.best = run.buffer("best", 4 * documents * config.width)
