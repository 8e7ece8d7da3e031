"""Interface between the CUDA engine and the branches of a network on a GPU."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from crepe_dist.cuda.compiler import compile_cached, parameters
from crepe_dist.cuda.gpu import CudaModule, DeviceBuffer, Gpu


@dataclass(frozen=True)
class DeviceBatch:
    """Documents of a batch on a GPU, as written by the kernel ``add_boundary_symbols``.

    Attributes:
        documents: Number of documents.
        first: Index of the first document in the global batch.
        symbols: Maximum number of symbols of a document. The symbols are its characters and two boundary symbols.
        texts: Character ids, uint8 [documents, symbols].
        lengths: Number of symbols of each document, int32 [documents].
    """

    documents: int
    first: int
    symbols: int
    texts: DeviceBuffer
    lengths: DeviceBuffer


@dataclass(frozen=True)
class DropoutState:
    """Dropout settings of a step.

    Attributes:
        probability: Probability of dropping a unit. The kernels round it up to a multiple of 2**-16.
        seed: Seed of the step, uint64.
    """

    probability: float
    seed: int

    def arguments(self) -> tuple[int, int, float]:
        """Return the seed, the threshold and the scale as kernel arguments; see ``Dropout`` in kernels/common.cuh."""
        return self.seed, math.ceil(self.probability * 2**16), self.scale

    @property
    def scale(self) -> float:
        """Factor that multiplies the units that are not dropped."""
        return 1 / (1 - self.probability)


NO_DROPOUT = DropoutState(0.0, 0)


@dataclass(frozen=True)
class GradAccumulator:
    """Accumulator of a parameter's fixed-point gradients.

    Attributes:
        total: Sum of the gradients, int32. Kernels add gradients to it. See ``CudaOptimizer.grad_sums``.
        inverse_scale: Factor that converts a gradient to fixed point, 2**-exponent.
        largest: For each document, the largest absolute value in its gradient, as a float32 bit pattern, uint32
            [documents]. The initial value is 0.
    """

    total: DeviceBuffer
    inverse_scale: float
    largest: DeviceBuffer


GradAccumulators = Mapping[str, GradAccumulator]  # The key is the name of the parameter.


class Branch(Protocol):
    """Branch of a network, with its own logits and loss."""

    def forward(self, texts: DeviceBatch, logits: DeviceBuffer, dropping: DropoutState | None = None) -> None:
        """Compute the logits, float32 [documents, classes]. If ``dropping`` is set, prepare for ``backward``."""

    def backward(
        self, texts: DeviceBatch, logit_gradients: DeviceBuffer, sums: GradAccumulators, dropping: DropoutState
    ) -> None:
        """Compute the gradients for the documents of the last forward pass. Add them to the accumulators ``sums``."""


PRECISIONS = ("float32", "float16", "bfloat16")  # The index is PRECISION in kernels/product.cuh.
THREADS = 256  # Number of threads of a block; see kernels/common.cuh.
# Maximum number of blocks. If there are more elements than threads in these blocks, each thread processes several
# elements.
MAX_BLOCKS = 1 << 16


def blocks(elements: int) -> int:
    """Return the number of thread blocks for a kernel that processes ``elements`` elements."""
    return min(-(-elements // THREADS), MAX_BLOCKS)


class KernelProgram:
    """Kernels that are compiled for one configuration of a network.

    Args:
        gpu: GPU that runs the kernels.
        name: Name of the source file in ``kernels/``.
        constants: Constants that the source file requires.
        precision: Data type of the operands of matrix products: float32, float16 or bfloat16.

    Attributes:
        number_bytes: Size of an operand in bytes.
    """

    def __init__(self, gpu: Gpu, name: str, constants: Mapping[str, int | str], precision: str) -> None:
        self.gpu = gpu
        self.number_bytes = 4 if precision == "float32" else 2
        constants = {**constants, "PRECISION": PRECISIONS.index(precision)}
        self._module = CudaModule(gpu, compile_cached(name, constants, gpu.capability), parameters())
        self._buffers: dict[str, DeviceBuffer] = {}

    def __call__(
        self, name: str, grid: int | tuple[int, int], *arguments: Any, block: int = THREADS, shared: int = 0
    ) -> None:
        """Launch a kernel; see ``CudaModule.launch``."""
        self._module.launch(name, grid, block, *arguments, shared=shared)

    def buffer(self, name: str, size: int) -> DeviceBuffer:
        """Return the buffer with this name. If it is missing or smaller than ``size`` bytes, allocate it first."""
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers.pop(name, None)  # Free the old memory before the new memory is allocated.
            self._buffers[name] = self.gpu.allocate(size)
        return self._buffers[name]
