"""Crepe in our own kernels for GPUs (``cuda/kernels/crepe.cu``)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crepe_dist.cuda.gpu import Memory
from crepe_dist.cuda.network import NOT_DROPPING, Dropping, Part, Program, Sums, Texts, blocks
from crepe_dist.native.constants import FEATURE_STREAM, POOLED_BLOCKS, TOWER_TAPS
from crepe_dist.networks.crepe.shape import CrepeShape
from crepe_dist.networks.ngrams.cuda import Table

PROGRAM = "crepe.cu"
SIDE = 16  # of the squares that a warp multiplies
TILE_BYTES = 128  # of a channel of the positions that a block of threads computes at a time


def constants(shape: CrepeShape) -> dict[str, int]:
    """Return the constants of the program besides those of all networks."""
    return {"CHANNELS": shape.width, "SIDE": SIDE, "TILE_BYTES": TILE_BYTES}


def parts(shape: CrepeShape, program: Program, values: Mapping[str, Memory]) -> list[Part]:
    """Return the parts of the network whose logits are added."""
    return [Table(shape.table, program, values, "ngrams."), Tower(shape, program, values)]


class Tower:
    """The tower on a GPU; see ``networks/crepe/shape.py``.

    Args:
        values: parameters by name.
    """

    def __init__(self, shape: CrepeShape, program: Program, values: Mapping[str, Memory]) -> None:
        self._shape = shape
        self._run = program
        self._values = values
        self._width = width = -(-shape.width // SIDE) * SIDE
        row = program.number_bytes * (width + 16)  # NUMBERS in kernels/crepe.cu, in bytes
        tile = TILE_BYTES // program.number_bytes
        self._tile = tile
        self._convolution = {
            "block": 2 * tile,
            "shared": max((tile + TOWER_TAPS - 1) * row, 4 * tile * (width + 8)),
        }
        size = TOWER_TAPS * width**2 * program.number_bytes
        numbers = range(2 * shape.blocks)
        weights = [values[f"tower.convolutions.{number}.weight"].address for number in numbers]
        self._weights = program.gpu.allocate(8 * len(weights))
        self._weights.write(np.array(weights, np.uint64))
        self._packed = program.gpu.allocate(size * len(weights)), program.gpu.allocate(size * len(weights))
        self._of_convolution = [[each.view(size * number, size) for each in self._packed] for number in numbers]
        self._convolution_gradients = {"block": 2 * width, "shared": max(2 * tile * row, 64 * width)}

    def forward(self, texts: Texts, logits: Memory, dropping: Dropping | None = None) -> None:
        """Compute the logits, float32 [documents, classes]."""
        shape, run, documents, lengths = self._shape, self._run, texts.documents, texts.lengths
        of_embedding, of_features = self._dropouts(dropping)
        first, places = texts.first, shape.positions * shape.stride
        rows = self._rows(texts)
        run(
            "hash_positions", blocks(documents * places), texts.texts, lengths, documents, texts.symbols, places,
            shape.reach, shape.rows, rows,
        )  # fmt: skip
        run(
            "embed", blocks(documents * shape.positions * self._width // 4), rows, lengths, documents, shape.positions,
            shape.stride, shape.stride * shape.reach, self._values["tower.table"], *of_embedding.arguments(), first,
            self._activations(texts, 0),
        )  # fmt: skip
        grid = blocks(TOWER_TAPS * self._width**2), 2 * shape.blocks
        run("pack_convolutions", grid, self._weights, *self._packed)
        for block in range(shape.blocks):
            self._forward(texts, block)
        features, best = self._features(texts)
        run(
            "summarise", documents, self._activations(texts, shape.blocks), *self._at(texts, shape.blocks),
            *of_features.arguments(), first, features, best,
        )  # fmt: skip
        weight, bias = self._values["tower.out.weight"], self._values["tower.out.bias"]
        run(
            "classify", blocks(32 * documents * shape.classes), features, weight, bias, documents, shape.classes, logits
        )

    def _forward(self, texts: Texts, block: int) -> None:
        """Compute a block of two convolutions, and its pool."""
        run, at = self._run, self._at(texts, block)
        inside, hidden, out = (
            self._activations(texts, block),
            self._hidden(texts, block),
            self._activations(texts, block + 1),
        )
        pools = block < POOLED_BLOCKS
        after = self._scratch(texts, 0) if pools else out
        self._convolve("convolve_first", texts, block, inside, 2 * block, hidden)
        self._convolve("convolve_second", texts, block, hidden, 2 * block + 1, after, inside)
        if pools:
            elements = texts.documents * self._shape.positions_in(block + 1) * self._width
            run(
                "pool",
                blocks(elements),
                after,
                texts.lengths,
                texts.documents,
                *at[1:],
                out,
                self._maxima(texts, block),
            )

    def backward(self, texts: Texts, logit_gradients: Memory, sums: Sums, dropping: Dropping) -> None:
        """Add the gradients of the last batch to their sums."""
        shape, run, documents = self._shape, self._run, texts.documents
        of_embedding, of_features = self._dropouts(dropping)
        features, best = self._features(texts)
        out, bias, table = sums["tower.out.weight"], sums["tower.out.bias"], sums["tower.table"]
        run(
            "last_layer_gradients", documents, features, logit_gradients, shape.classes, out.per_unit, bias.per_unit,
            out.total, bias.total, out.largest, bias.largest,
        )  # fmt: skip
        gradients, other, inner = (self._scratch(texts, number) for number in range(3))
        run(
            "spread", documents, logit_gradients, shape.classes, self._values["tower.out.weight"], features, best,
            *self._at(texts, shape.blocks), of_features.scale, gradients,
        )  # fmt: skip
        for block in reversed(range(shape.blocks)):
            at, elements = self._at(texts, block), blocks(documents * self._shape.positions_in(block) * self._width)
            if block < POOLED_BLOCKS:
                maxima = self._maxima(texts, block)
                run("unpool", elements, gradients, maxima, texts.lengths, documents, *at[1:], other)
                gradients, other = other, gradients
            else:
                after = self._activations(texts, block + 1)
                run("unrelu", elements, after, texts.lengths, documents, *at[1:], gradients)
            inside, hidden = self._activations(texts, block), self._hidden(texts, block)
            self._add_gradients(texts, block, hidden, gradients, 2 * block + 1, sums)
            self._convolve("convolve_second_back", texts, block, gradients, 2 * block + 1, inner, hidden)
            self._add_gradients(texts, block, inside, inner, 2 * block, sums)
            self._convolve("convolve_first_back", texts, block, inner, 2 * block, other, gradients)
            gradients, other = other, gradients
        positions, terms = shape.positions, self._run.buffer("terms", 4 * documents * shape.positions * self._width)
        run(
            "embedding_terms", documents, gradients, self._activations(texts, 0), texts.lengths, positions,
            shape.stride, of_embedding.scale * table.per_unit, terms, table.largest,
        )  # fmt: skip
        run(
            "add_embedding_terms", blocks(documents * positions * shape.width), terms, self._rows(texts), texts.lengths,
            documents, positions, shape.stride, shape.stride * shape.reach, table.total,
        )  # fmt: skip

    def _convolve(
        self, kernel: str, texts: Texts, block: int, inside: Memory, number: int, out: Memory, *others: Memory
    ) -> None:
        """Launch one of the kernels on ``convolve``; those that compute gradients end in ``back``, and have no bias."""
        forward, backward = self._of_convolution[number]
        bias = self._values[f"tower.convolutions.{number}.bias"]
        weights = (backward,) if kernel.endswith("back") else (forward, bias)
        grid = texts.documents, -(-self._shape.positions_in(block) // self._tile)
        self._run(kernel, grid, inside, *weights, *others, *self._at(texts, block), out, **self._convolution)

    def _add_gradients(
        self, texts: Texts, block: int, inside: Memory, gradients: Memory, number: int, sums: Sums
    ) -> None:
        weight, bias = (sums[f"tower.convolutions.{number}.{name}"] for name in ("weight", "bias"))
        self._run(
            "convolution_gradients", (texts.documents, TOWER_TAPS), inside, gradients, *self._at(texts, block),
            weight.per_unit, bias.per_unit, weight.total, bias.total, weight.largest, bias.largest,
            **self._convolution_gradients,
        )  # fmt: skip

    def _dropouts(self, dropping: Dropping | None) -> tuple[Dropping, Dropping]:
        """Return the dropout of the embedding and that of the features."""
        if dropping is None:
            return NOT_DROPPING, NOT_DROPPING
        return dropping, Dropping(self._shape.FEATURE_DROPOUT, dropping.seed ^ FEATURE_STREAM)

    def _at(self, texts: Texts, block: int) -> tuple[Memory, int, int, int]:
        """Return what tells the kernels where the positions of a block are."""
        return texts.lengths, self._shape.stride, min(block, POOLED_BLOCKS), self._shape.positions_in(block)

    def _rows(self, texts: Texts) -> Memory:
        """Return the memory of the rows of each position's n-grams, uint32 [documents, positions, stride × reach]."""
        shape = self._shape
        return self._run.buffer("rows", 4 * texts.documents * shape.positions * shape.stride * shape.reach)

    def _numbers(self, name: str, texts: Texts, block: int) -> Memory:
        size = self._run.number_bytes * texts.documents * self._shape.positions_in(block) * self._width
        return self._run.buffer(name, size)

    def _activations(self, texts: Texts, block: int) -> Memory:
        """Return the memory of a block's input, or of the last block's output."""
        return self._numbers(f"activations {block}", texts, block)

    def _hidden(self, texts: Texts, block: int) -> Memory:
        return self._numbers(f"hidden {block}", texts, block)

    def _scratch(self, texts: Texts, number: int) -> Memory:
        return self._numbers(f"scratch {number}", texts, 0)

    def _maxima(self, texts: Texts, block: int) -> Memory:
        """Return the memory of the places of the maxima of a block's pool."""
        return self._run.buffer(f"maxima {block}", texts.documents * self._shape.positions_in(block + 1) * self._width)

    def _features(self, texts: Texts) -> tuple[Memory, Memory]:
        """Return the memory of the features, and of the positions of their maxima."""
        size = 4 * texts.documents * self._shape.width
        return self._run.buffer("features", 2 * size), self._run.buffer("best", size)
