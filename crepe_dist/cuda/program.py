"""A program of kernels on a GPU, and the memory that its kernels share from call to call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crepe_dist.cuda.compiler import compiled
from crepe_dist.cuda.gpu import Function, Gpu, Memory, Module

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
        gpu: the GPU.
        number_bytes: bytes of such an operand.
    """

    def __init__(self, gpu: Gpu, name: str, constants: Mapping[str, int | str], precision: str) -> None:
        self.gpu = gpu
        self.number_bytes = 4 if precision == "float32" else 2
        constants = {**constants, "PRECISION": PRECISIONS.index(precision)}
        self._module = Module(gpu, compiled(name, constants, gpu.capability))
        self._functions: dict[str, Function] = {}
        self._buffers: dict[str, Memory] = {}

    def __call__(
        self, name: str, grid: int | tuple[int, ...], *arguments: Any, block: int = THREADS, shared: int = 0
    ) -> None:
        """Launch a kernel; see ``Function``.

        Args:
            block: threads of a block.
            shared: bytes of a block's dynamic shared memory.
        """
        if name not in self._functions:
            self._functions[name] = self._module.function(name)
        self._functions[name](grid, block, *arguments, shared=shared)

    def buffer(self, name: str, size: int) -> Memory:
        """Return memory of at least ``size`` bytes, the same for each call with a name unless it must grow."""
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers.pop(name, None)  # freed before it is replaced
            self._buffers[name] = self.gpu.allocate(size)
        return self._buffers[name]
