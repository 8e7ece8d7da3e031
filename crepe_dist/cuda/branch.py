"""Interface between the CUDA engine and the branches of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from crepe_dist.cuda.compiler import compile_cached, parameters
from crepe_dist.cuda.gpu import Gpu, Memory, Module


@dataclass(frozen=True)
class Texts:
    """Documents of a batch on a GPU. The kernel ``add_boundary_symbols`` writes them.

    Attributes:
        documents: Number of documents.
        first: Number of the first document in the global batch.
        symbols: Maximum number of symbols of a document: its characters and two boundary symbols.
        texts: Character ids, uint8 [documents, symbols].
        lengths: Number of symbols of each document, int32 [documents].
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
        probability: Probability of dropping a unit. The kernels round it up to a multiple of 2**-16.
        seed: Seed of the step, uint64.
    """

    probability: float
    seed: int

    def arguments(self) -> tuple[int, int, float]:
        """Return the kernel arguments seed, threshold and scale; see ``Dropout`` in kernels/common.cuh."""
        return self.seed, math.ceil(self.probability * 2**16), self.scale

    @property
    def scale(self) -> float:
        """Factor of the units that are not dropped."""
        return 1 / (1 - self.probability)


NOT_DROPPING = Dropping(0.0, 0)


@dataclass(frozen=True)
class Sum:
    """Sum of a parameter's fixed-point gradients.

    Attributes:
        total: The sum, int32. Kernels add to it. See ``CudaExchange.totals``.
        per_unit: Factor that converts a gradient to fixed point, 2**-exponent.
        largest: Bits of the largest absolute value of each document's term, uint32 [documents]. They are 0 at first.
    """

    total: Memory
    per_unit: float
    largest: Memory


Sums = Mapping[str, Sum]  # The key is the name of the parameter.


class Part(Protocol):
    """Branch of a network, with its own logits and loss."""

    def forward(self, texts: Texts, logits: Memory, dropping: Dropping | None = None) -> None:
        """Compute the logits, float32 [documents, classes]. With ``dropping``, prepare the backward pass."""

    def backward(self, texts: Texts, logit_gradients: Memory, sums: Sums, dropping: Dropping) -> None:
        """Add the gradients of the documents of the last forward pass to the sums of the gradients."""


PRECISIONS = ("float32", "float16", "bfloat16")  # The index is PRECISION in kernels/product.cuh.
THREADS = 256  # Threads of a block; see kernels/common.cuh.
MAX_BLOCKS = 1 << 16  # Maximum number of blocks of a kernel whose threads process several elements each.


def blocks(elements: int) -> int:
    """Return the number of blocks of a kernel that processes so many elements."""
    return min(-(-elements // THREADS), MAX_BLOCKS)


class Program:
    """Kernels that are compiled for one configuration of a network.

    Args:
        name: Name of the file in ``kernels/``.
        constants: Constants that the file requires.
        precision: Type of the operands of matrix products: float32, float16 or bfloat16.

    Attributes:
        number_bytes: Bytes of an operand.
    """

    def __init__(self, gpu: Gpu, name: str, constants: Mapping[str, int | str], precision: str) -> None:
        self.gpu = gpu
        self.number_bytes = 4 if precision == "float32" else 2
        constants = {**constants, "PRECISION": PRECISIONS.index(precision)}
        self._module = Module(gpu, compile_cached(name, constants, gpu.capability), parameters())
        self._buffers: dict[str, Memory] = {}

    def __call__(
        self, name: str, grid: int | tuple[int, int], *arguments: Any, block: int = THREADS, shared: int = 0
    ) -> None:
        """Launch a kernel; see ``Module.launch``."""
        self._module.launch(name, grid, block, *arguments, shared=shared)

    def buffer(self, name: str, size: int) -> Memory:
        """Return the memory with this name. If it is smaller than ``size`` bytes, it grows and loses its contents."""
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers.pop(name, None)  # The old memory is freed before the new memory is allocated.
            self._buffers[name] = self.gpu.allocate(size)
        return self._buffers[name]
