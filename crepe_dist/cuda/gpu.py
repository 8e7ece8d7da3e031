"""A GPU: its memory, and kernels that compute there.

All work goes to one stream, in the order of the calls. A kernel that fails is noticed by a later call, mostly by
``Gpu.wait`` or ``Memory.read``, and then by each one: CUDA's context is lost.
"""

from __future__ import annotations

import ctypes
import numbers
import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from ctypes import c_char_p, c_float, c_int, c_int32, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.cuda import driver
from crepe_dist.cuda.driver import WITHOUT
from crepe_dist.errors import ExitCode, UserError

STAGED_BYTES = 1 << 22  # of the largest array that is copied asynchronously
STAGES = 8
SHARED_BYTES = 48 << 10  # of dynamic shared memory that a kernel may have without asking
INT32 = range(-(1 << 31), 1 << 31)
# Constants of cuda.h.
OUT_OF_MEMORY, NOT_READY = 2, 600
NON_BLOCKING, NO_TIMING = 1, 2  # CU_STREAM_NON_BLOCKING, CU_EVENT_DISABLE_TIMING
DYNAMIC_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
# Causes and remedies of errors by their number. Others, such as 700 to 719 of kernels, are a bug or a fault of the GPU.
_IMAGE = (
    "this driver cannot load the compiled kernels",
    f"install a newer NVIDIA driver, or remove the cache of compiled kernels (~/.cache/crepe_dist/cuda), {WITHOUT}",
)
_HELP = {
    3: ("the process was forked from one that uses the GPU", "report it"),
    46: (
        "another process has it for itself (compute mode EXCLUSIVE_PROCESS), or it is in an error state",
        f"end the other process (nvidia-smi shows it), or allow several: nvidia-smi -c DEFAULT, {WITHOUT}",
    ),
    100: ("the driver finds no GPU", f"check nvidia-smi and CUDA_VISIBLE_DEVICES, {WITHOUT}"),
    209: _IMAGE,
    222: _IMAGE,
    802: ("the GPUs are not ready yet", "start NVIDIA's fabric manager: systemctl start nvidia-fabricmanager"),
    803: ("the driver was updated, and its library does not fit its kernel module", f"restart the machine, {WITHOUT}"),
}
_FAULT = (
    "a fault of the GPU or its connection, or a bug",
    "look for Xid in the kernel's log (dmesg), and run the same command again; if it happens again, report it",
)
_LASTING = {3, 100, 209, 222, 803}  # errors that stay until somebody acts; after others the same command may succeed


class Gpu:
    """A GPU in the driver's numbering, with a stream of its own in the process's context.

    Attributes:
        capability: compute capability, major and minor.
        stream: the driver's handle of the stream.

    Raises:
        UserError: there is no such GPU, or its driver is too old.
    """

    def __init__(self, number: int) -> None:
        if error := driver.missing() or driver.outdated():
            raise error
        self.number = number
        self.name = ""  # until it is known
        self._call("cuInit", 0)
        device = c_int()
        self._call("cuDeviceGet", device, number)
        self.name = driver.name_of(number)
        self.capability = driver.compute_capability(number) or (0, 0)
        self._context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", self._context, device)
        self.stream = c_void_p()
        self.call("cuStreamCreate", self.stream, NON_BLOCKING)
        weakref.finalize(self, _release, self._context, self.stream, device, os.getpid()).atexit = False
        self._stages = [_Stage() for _ in range(STAGES)]
        self._turn = 0
        self._lock = threading.Lock()

    def memory(self) -> tuple[int, int]:
        """Return the bytes of memory that are free, and all."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", free, total)
        return free.value, total.value

    def allocate(self, size: int) -> Memory:
        """Allocate bytes, all zero.

        Raises:
            MemoryError: the GPU has not enough memory.
        """
        address = c_uint64()
        try:
            self.call("cuMemAlloc_v2", address, max(size, 1))
        except MemoryError as error:
            free, total = self.memory()
            raise MemoryError(f"{error}: {size:,} bytes wanted, {free:,} of {total:,} are free") from None
        memory = Memory(self, address.value, size)
        weakref.finalize(memory, _give_back, self, "cuMemFree_v2", address.value, os.getpid()).atexit = False
        memory.clear()
        return memory

    def wait(self) -> None:
        """Wait until all work is done."""
        self.call("cuStreamSynchronize", self.stream)

    def is_done(self) -> bool:
        """Return whether all work is done."""
        self.make_current()
        code = driver.function("cuStreamQuery")(self.stream)
        if code not in (0, NOT_READY):
            raise self._failure("cuStreamQuery", code)
        return bool(code == 0)

    def make_current(self) -> None:
        """Let the calling thread use the GPU."""
        self._call("cuCtxSetCurrent", self._context)

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the driver in the GPU's context.

        Raises:
            MemoryError: the GPU has not enough memory.
            UserError: the function failed.
        """
        self.make_current()
        self._call(name, *arguments)

    def stage(self, source: npt.NDArray[Any], address: int) -> None:
        """Copy a small array to the GPU through page-locked memory, without waiting for the GPU."""
        with self._lock:
            stage = self._stages[self._turn]
            self._turn = (self._turn + 1) % STAGES
            if stage.event.value:
                self.call("cuEventSynchronize", stage.event)
            else:
                self.call("cuEventCreate", stage.event, NO_TIMING)
            if stage.size < source.nbytes:
                if stage.size:
                    stage.size = 0
                    self.call("cuMemFreeHost", stage.memory)
                size = 1 << (source.nbytes - 1).bit_length()
                self.call("cuMemHostAlloc", stage.memory, size, 0)
                stage.size = size
            ctypes.memmove(stage.memory, source.ctypes.data, source.nbytes)
            self.call("cuMemcpyHtoDAsync_v2", address, stage.memory, source.nbytes, self.stream)
            self.call("cuEventRecord", stage.event, self.stream)

    def _call(self, name: str, *arguments: object) -> None:
        code = driver.function(name)(*arguments)
        if code:
            raise self._failure(name, code)

    def _failure(self, function: str, code: int) -> Exception:
        text = c_char_p()
        driver.function("cuGetErrorName")(code, text)
        known = f"{function}: {text.value.decode() if text.value else 'unknown error'} ({code})"
        gpu = f"GPU {self.number}" + (f" ({self.name})" if self.name else "")
        if code == OUT_OF_MEMORY:
            return MemoryError(f"{gpu} is out of memory")
        why, remedy = _HELP.get(code, _FAULT)
        lasting = ExitCode.ERROR if code in _LASTING else ExitCode.FAILURE
        return UserError(f"{gpu} cannot be used: {known}", why, remedy, code=lasting)


@dataclass
class _Stage:
    """Page-locked memory, and the event after which it may be overwritten."""

    memory: c_void_p = field(default_factory=c_void_p)
    size: int = 0
    event: c_void_p = field(default_factory=c_void_p)


class Memory:
    """Bytes on a GPU, freed with the last reference to them or to a view of them.

    Attributes:
        address: the driver's address.
        size: their number.
    """

    def __init__(self, gpu: Gpu, address: int, size: int, whole: Memory | None = None) -> None:
        self._gpu = gpu
        self.address = address
        self.size = size
        self._whole = whole

    def view(self, offset: int, size: int) -> Memory:
        """Return a part of it."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"bytes {offset} to {offset + size} are not within {self.size}")
        return Memory(self._gpu, self.address + offset, size, self)

    def write(self, array: npt.NDArray[Any]) -> None:
        """Copy an array to the start of the memory; it may be changed at once."""
        source = np.ascontiguousarray(array)
        address = self.view(0, source.nbytes).address
        if 0 < source.nbytes <= STAGED_BYTES:
            self._gpu.stage(source, address)
        elif source.nbytes:
            self._gpu.call("cuMemcpyHtoDAsync_v2", address, source.ctypes.data, source.nbytes, self._gpu.stream)
            self._gpu.wait()

    def read(self, array: npt.NDArray[Any]) -> None:
        """Fill an array from the start of the memory, after all work before."""
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise ValueError("an array to read into must be contiguous and writeable")
        address = self.view(0, array.nbytes).address
        if array.nbytes:
            self._gpu.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self._gpu.stream)
        self._gpu.wait()

    def clear(self) -> None:
        """Set all bytes to zero."""
        if self.size:
            self._gpu.call("cuMemsetD8Async", self.address, 0, self.size, self._gpu.stream)


class Module:
    """A compiled program on a GPU."""

    def __init__(self, gpu: Gpu, image: bytes) -> None:
        self._gpu = gpu
        self._handle = c_void_p()
        gpu.call("cuModuleLoadData", self._handle, image)
        self._kernels: dict[str, c_void_p] = {}
        self._shared: dict[str, int] = {}
        weakref.finalize(self, _give_back, gpu, "cuModuleUnload", self._handle, os.getpid()).atexit = False

    def launch(self, name: str, grid: int | Sequence[int], block: int, *arguments: Any, shared: int = 0) -> None:
        """Hand a kernel to the GPU.

        Args:
            grid: number of blocks along x, y and z; nothing is launched if one is 0.
            block: threads of each block.
            arguments: ``Memory`` or ``None`` for a pointer, int for int32, float for float32, or a value of ctypes.
            shared: bytes of dynamic shared memory of each block.
        """
        sizes = (grid,) if isinstance(grid, int) else tuple(grid)
        if 0 in sizes:
            return
        if name not in self._kernels:
            self._kernels[name] = c_void_p()
            self._gpu.call("cuModuleGetFunction", self._kernels[name], self._handle, name.encode())
        kernel = self._kernels[name]
        if shared > self._shared.get(name, SHARED_BYTES):
            self._gpu.call("cuFuncSetAttribute", kernel, DYNAMIC_SHARED_BYTES, shared)
            self._shared[name] = shared
        values = [_parameter(argument) for argument in arguments]
        pointers = (c_void_p * max(len(values), 1))(*[ctypes.addressof(value) for value in values])
        x, y, z = (*sizes, 1, 1)[:3]
        self._gpu.call("cuLaunchKernel", kernel, x, y, z, block, 1, 1, shared, self._gpu.stream, pointers, None)


def _parameter(argument: Any) -> Any:
    if isinstance(argument, Memory):
        return c_uint64(argument.address)
    if argument is None:
        return c_uint64(0)
    if isinstance(argument, numbers.Integral):
        if int(argument) not in INT32:
            raise OverflowError(f"{argument} does not fit into an int32")
        return c_int32(int(argument))
    if isinstance(argument, numbers.Real):
        return c_float(float(argument))
    return argument


# What finalizers do. A forked process has no part in its parent's GPU. After an error the driver frees all with the
# process.


def _give_back(gpu: Gpu, function: str, what: object, process: int) -> None:
    if os.getpid() == process:
        with suppress(UserError):
            gpu.wait()  # for kernels that use it
            gpu.call(function, what)


def _release(context: c_void_p, stream: c_void_p, device: c_int, process: int) -> None:
    if os.getpid() == process:
        driver.function("cuCtxSetCurrent")(context)
        driver.function("cuStreamDestroy_v2")(stream)
        driver.function("cuDevicePrimaryCtxRelease_v2")(device)
