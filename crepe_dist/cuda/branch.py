"""Interface between the engine and the parts of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from crepe_dist.cuda.compiler import compiled, parameters
from crepe_dist.cuda.gpu import Gpu, Memory, Module


@dataclass(frozen=True)
class Texts:
    """Documents of a batch on a GPU, as ``read_texts`` writes them.

    Attributes:
        documents: their number.
        first: position of the first one in the global batch.
        symbols: most symbols of a document: its characters and two edges.
        texts: uint8 [documents, symbols].
        lengths: symbols of each document, int32 [documents].
    """

    documents: int
    first: int
    symbols: int
    texts: Memory
    lengths: Memory


@dataclass(frozen=True)
class Dropping:
    """Dropout of a step.

    Attributes:
        probability: probability of dropping a unit, raised to a multiple of 2**-16.
        seed: seed of the step, uint64.
    """

    probability: float
    seed: int

    def arguments(self) -> tuple[int, int, float]:
        """Return seed, threshold and scale as kernels take them; see ``Dropout`` in kernels/common.cuh."""
        return self.seed, math.ceil(self.probability * 2**16), self.scale

    @property
    def scale(self) -> float:
        """Factor of units that are kept."""
        return 1 / (1 - self.probability)


NOT_DROPPING = Dropping(0.0, 0)


@dataclass(frozen=True)
class Sum:
    """Sum of a parameter's gradients in whole numbers.

    Attributes:
        total: the sum, int32, to which kernels add; see ``CudaExchange.totals``.
        per_unit: quanta per 1.
        largest: largest number of each document's term, as bits, uint32 [documents], zero at first.
    """

    total: Memory
    per_unit: float
    largest: Memory


Sums = Mapping[str, Sum]  # by name of the parameter


class Part(Protocol):
    """A part of a network, with logits and a loss of its own."""

    def forward(self, texts: Texts, logits: Memory, dropping: Dropping | None = None) -> None:
        """Compute the logits, float32 [documents, classes]; for training if ``dropping`` is given."""

    def backward(self, texts: Texts, logit_gradients: Memory, sums: Sums, dropping: Dropping) -> None:
        """Add the gradients of the documents of the last forward pass to their sums."""


PRECISIONS = ("float32", "float16", "bfloat16")  # in the order of kernels/product.cuh
THREADS = 256  # of a block, see kernels/common.cuh
MOST_BLOCKS = 1 << 16  # of a kernel whose threads take several elements


def blocks(elements: int) -> int:
    """Return the number of blocks of a kernel whose threads share out so many elements."""
    return min(-(-elements // THREADS), MOST_BLOCKS)


class Program:
    """Kernels compiled for one configuration of a network.

    Args:
        name: file in ``kernels/``.
        constants: the constants that the file needs.
        precision: float32, float16 or bfloat16 for the operands of products.

    Attributes:
        number_bytes: bytes of such an operand.
    """

    def __init__(self, gpu: Gpu, name: str, constants: Mapping[str, int | str], precision: str) -> None:
        self.gpu = gpu
        self.number_bytes = 4 if precision == "float32" else 2
        constants = {**constants, "PRECISION": PRECISIONS.index(precision)}
        self._module = Module(gpu, compiled(name, constants, gpu.capability), parameters())
        self._buffers: dict[str, Memory] = {}

    def __call__(
        self, name: str, grid: int | tuple[int, int], *arguments: Any, block: int = THREADS, shared: int = 0
    ) -> None:
        """Launch a kernel; see ``Module.launch``."""
        self._module.launch(name, grid, block, *arguments, shared=shared)

    def buffer(self, name: str, size: int) -> Memory:
        """Return memory of at least ``size`` bytes, the same for each call with a name unless it must grow."""
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers.pop(name, None)  # freed before it is replaced
            self._buffers[name] = self.gpu.allocate(size)
        return self._buffers[name]
