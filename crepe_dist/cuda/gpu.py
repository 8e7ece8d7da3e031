"""A GPU: its memory, and kernels that compute there, in the order of the calls.

All work goes to one stream. An error of it shows at a later call, mostly at ``Gpu.wait`` or ``Memory.read``.
"""

from __future__ import annotations

import ctypes
import numbers
import threading
import weakref
from collections.abc import Sequence
from ctypes import c_char_p, c_float, c_int, c_int32, c_size_t, c_uint64, c_void_p
from typing import Any, Union

import numpy as np

from crepe_dist.cuda import driver
from crepe_dist.errors import ExitCode, UserError

OLDEST_DRIVER = (12, 0)
STAGED = 1 << 22  # bytes of the longest array that is copied asynchronously
STAGES = 8
NON_BLOCKING, NO_TIMING = 1, 2  # CU_STREAM_NON_BLOCKING, CU_EVENT_DISABLE_TIMING
OUT_OF_MEMORY, NOT_READY = 2, 600
DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
SHARED = 48 << 10  # bytes of dynamic shared memory that need no permission

Argument = Union["Memory", int, float, None, Any]


class Gpu:
    """A GPU in the driver's numbering."""

    def __init__(self, number: int) -> None:
        version = driver.driver_version()
        if version is None or version < OLDEST_DRIVER:
            raise UserError("the NVIDIA driver is missing or too old")
        self.number = number
        self._call("cuInit", 0)
        device = c_int()
        self._call("cuDeviceGet", device, number)
        context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", context, device)
        self.name = driver.name_of(number)
        self.capability: tuple[int, int] = driver.compute_capability(number) or (0, 0)
        self._context = context
        stream = c_void_p()
        self.call("cuStreamCreate", stream, NON_BLOCKING)
        self.stream = stream
        self._stages = [Stage() for _ in range(STAGES)]
        self._turn = 0
        self._lock = threading.Lock()

    def memory(self) -> tuple[int, int]:
        """Return the bytes of the GPU's memory that are free, and all."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", free, total)
        return free.value, total.value

    def load(self, image: bytes) -> Module:
        """Load a compiled program."""
        return Module(self, image)

    def allocate(self, size: int) -> Memory:
        """Allocate bytes, all zero."""
        address = c_uint64()
        self.call("cuMemAlloc_v2", address, max(size, 1))
        memory = Memory(self, address.value, size)
        weakref.finalize(memory, self._free, address.value)
        memory.clear()
        return memory

    def wait(self) -> None:
        """Wait until all work is done."""
        self.call("cuStreamSynchronize", self.stream)

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the driver in the GPU's context."""
        self._call("cuCtxSetCurrent", self._context)
        self._call(name, *arguments)

    def _call(self, name: str, *arguments: object) -> None:
        if code := driver.function(name)(*arguments):
            raise failure(name, code)

    def _free(self, address: int) -> None:
        self.call("cuMemFree_v2", address)

    def stage(self, source: np.ndarray[Any, Any], address: int) -> None:
        """Copy an array to the GPU through page-locked memory, without waiting."""
        with self._lock:
            stage = self._stages[self._turn]
            self._turn = (self._turn + 1) % STAGES
            if stage.event is None:
                stage.event = c_void_p()
                self.call("cuEventCreate", stage.event, NO_TIMING)
            else:
                self.call("cuEventSynchronize", stage.event)
            if stage.size < source.nbytes:
                if stage.size:
                    self.call("cuMemFreeHost", stage.memory)
                    stage.size = 0
                size = 1 << (source.nbytes - 1).bit_length()
                self.call("cuMemHostAlloc", stage.memory, size, 0)
                stage.size = size
            ctypes.memmove(stage.memory, source.ctypes.data, source.nbytes)
            self.call("cuMemcpyHtoDAsync_v2", address, stage.memory, source.nbytes, self.stream)
            self.call("cuEventRecord", stage.event, self.stream)


class Stage:
    """Page-locked memory, and the event after which it may be overwritten."""

    def __init__(self) -> None:
        self.memory = c_void_p()
        self.size = 0
        self.event: c_void_p | None = None


class Memory:
    """Bytes on a GPU."""

    def __init__(self, gpu: Gpu, address: int, size: int, whole: Memory | None = None) -> None:
        self._gpu = gpu
        self.address = address
        self.size = size
        self._whole = whole  # lives as long as a view of it

    def view(self, offset: int, size: int) -> Memory:
        """Return a part."""
        self._check(offset, size)
        return Memory(self._gpu, self.address + offset, size, self)

    def write(self, array: np.ndarray[Any, Any], offset: int = 0) -> None:
        """Copy an array to the GPU; the caller may change the array at once."""
        source = np.ascontiguousarray(array)
        self._check(offset, source.nbytes)
        if not source.nbytes:
            return
        if source.nbytes <= STAGED:
            self._gpu.stage(source, self.address + offset)
            return
        address, size = self.address + offset, source.nbytes
        self._gpu.call("cuMemcpyHtoDAsync_v2", address, source.ctypes.data, size, self._gpu.stream)
        self._gpu.wait()

    def read(self, array: np.ndarray[Any, Any], offset: int = 0) -> None:
        """Fill an array from the GPU, after all work that was given to it before."""
        if not array.flags.c_contiguous or not array.flags.writeable:
            raise ValueError("the array must be contiguous and writeable")
        self._check(offset, array.nbytes)
        if array.nbytes:
            address = self.address + offset
            self._gpu.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self._gpu.stream)
        self._gpu.wait()

    def clear(self, size: int | None = None, offset: int = 0) -> None:
        """Set bytes to zero."""
        size = self.size - offset if size is None else size
        self._check(offset, size)
        if size:
            self._gpu.call("cuMemsetD8Async", self.address + offset, 0, size, self._gpu.stream)

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"bytes {offset} to {offset + size} of {self.size}")


class Module:
    """A compiled program on a GPU."""

    def __init__(self, gpu: Gpu, image: bytes) -> None:
        self._gpu = gpu
        self._module = c_void_p()
        gpu.call("cuModuleLoadData", self._module, image)

    def function(self, name: str) -> Function:
        """Return a kernel."""
        handle = c_void_p()
        self._gpu.call("cuModuleGetFunction", handle, self._module, name.encode())
        return Function(self._gpu, self, name, handle)


class Function:
    """A kernel."""

    def __init__(self, gpu: Gpu, module: Module, name: str, handle: c_void_p) -> None:
        self.name = name
        self._gpu = gpu
        self._module = module
        self._handle = handle
        self._most_shared = SHARED

    def __call__(self, grid: int | Sequence[int], block: int, *arguments: Argument, shared: int = 0) -> None:
        """Give the kernel to the GPU.

        Args:
            grid: blocks along x, y and z; the kernel is not launched if one is 0.
            block: threads of each block.
            arguments: see ``parameter``.
            shared: bytes of dynamic shared memory.
        """
        sizes = (grid,) if isinstance(grid, int) else tuple(grid)
        if 0 in sizes:
            return
        if shared > self._most_shared:
            self._gpu.call("cuFuncSetAttribute", self._handle, DYNAMIC_SHARED, shared)
            self._most_shared = shared
        values = [parameter(argument) for argument in arguments]
        pointers = (c_void_p * max(len(values), 1))(*[ctypes.addressof(value) for value in values])
        x, y, z = (*sizes, 1, 1)[:3]
        self._gpu.call("cuLaunchKernel", self._handle, x, y, z, block, 1, 1, shared, self._gpu.stream, pointers, None)


def parameter(argument: Argument) -> Any:
    """Return a kernel's argument as C has it: memory or ``None`` as a pointer, int as int32, float as float32."""
    if isinstance(argument, Memory):
        return c_uint64(argument.address)
    if argument is None:
        return c_uint64(0)
    if isinstance(argument, numbers.Integral):
        value = int(argument)
        if not -(1 << 31) <= value < 1 << 31:
            raise OverflowError(f"{value} is no int32")
        return c_int32(value)
    if isinstance(argument, numbers.Real):
        return c_float(float(argument))
    return argument


def failure(name: str, code: int) -> Exception:
    """Return the error for a function of the driver that failed."""
    text = c_char_p()
    driver.function("cuGetErrorName")(code, text)
    known = text.value.decode() if text.value else str(code)
    if code == OUT_OF_MEMORY:
        return MemoryError(f"out of memory on the GPU ({name}: {known})")
    return UserError(f"the GPU failed: {name}: {known}", code=ExitCode.FAILURE)
