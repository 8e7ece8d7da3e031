"""A GPU: its memory, and kernels that compute there.

All work goes to one stream, in the order of the calls. A kernel that fails is noticed by a later call, mostly by
``Gpu.wait`` or ``Memory.read``, and then by each one: CUDA's context is lost.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from ctypes import c_int, c_size_t, c_uint64, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.cuda import driver

STAGED_BYTES = 1 << 23  # of page-locked memory, through which arrays are copied to the GPU
SEARCH_SECONDS = 2.0  # for peers that are gone, after an error that the end of one may have caused
HANG_SECONDS = 5.0  # time after which what still computes is taken to hang
# Constants of cuda.h.
OUT_OF_MEMORY, NOT_READY = 2, 600
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING

_thread = threading.local()  # context: the one that is current in a thread


def _use(context: c_void_p) -> int:
    """Make a context that of the calling thread; return the driver's result."""
    code = 0 if getattr(_thread, "context", None) is context else driver.function("cuCtxSetCurrent")(context)
    _thread.context = None if code else context
    return int(code)


class Gpu:
    """A GPU in the driver's numbering, with a stream of its own in the process's context.

    Attributes:
        capability: compute capability, major and minor.
        stream: the driver's handle of the stream.
        check: function that raises ``PeerGone`` if it knows that a peer is gone; set by who sums over several GPUs.

    Raises:
        UserError: there is no such GPU, or its driver is too old.
    """

    def __init__(self, number: int) -> None:
        if error := driver.missing() or driver.fault() or driver.outdated():
            raise error
        self.number = number
        self.name = ""  # until it is known
        self.check: Callable[[], None] | None = None
        self._call("cuInit", 0)
        device = c_int()
        self._call("cuDeviceGet", device, number)
        self.name = driver.name_of(number)
        self.capability = driver.compute_capability(number)
        self._context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", self._context, device)
        self.stream = c_void_p()
        self.call("cuStreamCreate", self.stream, NON_BLOCKING)
        self._lost = threading.Event()  # set after an error, or a hang, that a finalizer met
        self._locked: list[c_void_p] = []
        held = self._context, self.stream, device, self._locked, self._lost
        weakref.finalize(self, _release, *held, os.getpid()).atexit = False
        self._stage = self.page_locked(STAGED_BYTES)  # a ring
        self._given = self._copied = 0  # bytes that were ever handed to it, and that have certainly left it
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

    def copy(self, array: npt.NDArray[Any]) -> Memory:
        """Allocate memory for an array, and copy it there."""
        memory = self.allocate(array.nbytes)
        memory.write(array)
        return memory

    def page_locked(self, size: int) -> npt.NDArray[np.uint8]:
        """Allocate page-locked memory of the host, which is freed with the GPU; copies from and to it never wait."""
        address = c_void_p()
        self.call("cuMemHostAlloc", address, size, 0)
        self._locked.append(address)
        return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (size,))

    def wait(self) -> None:
        """Wait until all work is done."""
        given = self._given
        self.call("cuStreamSynchronize", self.stream)
        self._copied = max(self._copied, given)

    def is_done(self) -> bool:
        """Return whether all work is done."""
        given = self._given
        self.make_current()
        code = driver.function("cuStreamQuery")(self.stream)
        if code not in (0, NOT_READY):
            raise self._failure("cuStreamQuery", code)
        self._copied = given if code == 0 else self._copied
        return bool(code == 0)

    def is_idle(self) -> bool:
        """Return whether all work ended without an error; wait for it, but not for a kernel that hangs."""
        query, until = driver.function("cuStreamQuery"), time.monotonic() + HANG_SECONDS
        code = _use(self._context) or query(self.stream)
        while code == NOT_READY and not self._lost.is_set() and time.monotonic() < until:
            time.sleep(1e-4)
            code = query(self.stream)
        if code:
            self._lost.set()
        return code == 0

    def search(self) -> None:
        """Look for a peer that is gone, once and for a while: that may show first as an error of this GPU, or of NCCL.

        Raises:
            PeerGone: a peer is gone.
        """
        check, self.check, until = self.check, None, time.monotonic() + SEARCH_SECONDS
        while check is not None and time.monotonic() < until:
            check()
            time.sleep(0.05)

    def make_current(self) -> None:
        """Let the calling thread use the GPU."""
        if code := _use(self._context):
            raise self._failure("cuCtxSetCurrent", code)

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the driver in the GPU's context.

        Raises:
            MemoryError: the GPU has not enough memory.
            UserError: the function failed.
            PeerGone: it failed, and a peer is gone.
        """
        self.make_current()
        self._call(name, *arguments)

    def write(self, source: npt.NDArray[Any], address: int) -> None:
        """Copy an array to the GPU through page-locked memory, without waiting for the GPU unless that is full."""
        with self._lock:
            start, done = self._stage.ctypes.data, 0
            while done < source.nbytes:
                place, free = self._given % STAGED_BYTES, STAGED_BYTES - (self._given - self._copied)
                size = min(source.nbytes - done, STAGED_BYTES - place, free)
                if size <= 0:  # below: another thread wrote down later what it found earlier
                    self.wait()
                    continue
                ctypes.memmove(start + place, source.ctypes.data + done, size)
                self.call("cuMemcpyHtoDAsync_v2", address + done, start + place, size, self.stream)
                self._given += size  # only now: another thread may have waited meanwhile
                done += size

    def _call(self, name: str, *arguments: object) -> None:
        code = driver.function(name)(*arguments)
        if code:
            raise self._failure(name, code)

    def _failure(self, function: str, code: int) -> Exception:
        gpu = f"GPU {self.number}" + (f" ({self.name})" if self.name else "")
        if code == OUT_OF_MEMORY:
            return MemoryError(f"{gpu} is out of memory")
        if code not in driver.HELP:
            self.search()
        return driver.failure(f"{gpu} cannot be used", function, code)


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
        self._gpu.write(source, self.view(0, source.nbytes).address)

    def read(self, array: npt.NDArray[Any]) -> None:
        """Fill an array from the start of the memory, after all work before."""
        self.fetch(array)
        self._gpu.wait()

    def fetch(self, array: npt.NDArray[Any]) -> None:
        """Let an array be filled after all work before. One in page-locked memory is full once the GPU is done."""
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise ValueError("an array to read into must be contiguous and writeable")
        address = self.view(0, array.nbytes).address
        if array.nbytes:
            self._gpu.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self._gpu.stream)

    def clear(self) -> None:
        """Set all bytes to zero."""
        if self.size:
            self._gpu.call("cuMemsetD8Async", self.address, 0, self.size, self._gpu.stream)


class Module:
    """A compiled program on a GPU. One thread at a time launches its kernels.

    Args:
        parameters: those of each kernel; see ``compiler.parameters``.
    """

    def __init__(self, gpu: Gpu, image: bytes, parameters: Mapping[str, str]) -> None:
        self._gpu = gpu
        self._handle = c_void_p()
        self._parameters = parameters
        gpu.call("cuModuleLoadData", self._handle, image)
        self._kernels: dict[str, _Kernel] = {}
        weakref.finalize(self, _give_back, gpu, "cuModuleUnload", self._handle, os.getpid()).atexit = False

    def launch(self, name: str, grid: int | tuple[int, int], block: int, *arguments: Any, shared: int = 0) -> None:
        """Hand a kernel to the GPU.

        Args:
            grid: number of blocks along x, or along x and y; nothing is launched if one is 0.
            block: threads of each block.
            arguments: ``Memory`` or ``None`` for a pointer; a number for another parameter.
            shared: bytes of dynamic shared memory of each block: with the kernel's own at most 48 KiB.

        Raises:
            TypeError: number or types of the arguments are not those of the kernel's parameters, or an integer is too
                large for its parameter.
        """
        x, y = grid if isinstance(grid, tuple) else (grid, 1)
        if not x * y:
            return
        gpu, kernel = self._gpu, self._kernels.get(name)
        if kernel is None:
            kernel = _Kernel(self._parameters[name])
            gpu.call("cuModuleGetFunction", kernel.handle, self._handle, name.encode())
            self._kernels[name] = kernel
        try:
            kernel.set(arguments)
        except (AttributeError, struct.error) as error:
            raise TypeError(f"{name}{arguments}: {error}; its parameters are {self._parameters[name]!r}") from None
        gpu.call("cuLaunchKernel", kernel.handle, x, y, 1, block, 1, 1, shared, gpu.stream, kernel.pointers, None)


class _Kernel:
    """A kernel, and memory for its arguments.

    Attributes:
        pointers: addresses of the arguments.
    """

    def __init__(self, parameters: str) -> None:
        self.handle = c_void_p()
        self._layout = struct.Struct(parameters)
        self._are_pointers = [each == "P" for each in parameters]
        self._values = ctypes.create_string_buffer(self._layout.size)
        ends = (struct.calcsize(parameters[: n + 1]) - struct.calcsize(each) for n, each in enumerate(parameters))
        self.pointers = (c_void_p * len(parameters))(*(ctypes.addressof(self._values) + end for end in ends))

    def set(self, arguments: tuple[Any, ...]) -> None:
        pairs = zip(arguments, self._are_pointers)
        values = [(each.address if each else 0) if is_pointer else each for each, is_pointer in pairs]
        self._layout.pack_into(self._values, 0, *values, *arguments[len(values) :])  # too many are an error


# What finalizers do. A forked process has no part in its parent's GPU. After an error or a hang the driver frees all
# with the process: to free memory waits for all kernels.


def _give_back(gpu: Gpu, function: str, what: object, process: int) -> None:
    if os.getpid() == process and gpu.is_idle():
        driver.function(function)(what)


def _release(
    context: c_void_p, stream: c_void_p, device: c_int, locked: list[c_void_p], lost: threading.Event, process: int
) -> None:
    if os.getpid() == process and not lost.is_set():
        _use(context)
        for memory in locked:
            driver.function("cuMemFreeHost")(memory)
        driver.function("cuStreamDestroy_v2")(stream)
        driver.function("cuDevicePrimaryCtxRelease_v2")(device)
