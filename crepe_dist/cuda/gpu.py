"""A GPU, its memory, and the kernels that run on it.

All work is enqueued in one CUDA stream, in the order of the calls. If a kernel fails, a later call raises the error,
usually ``Gpu.wait`` or ``DeviceBuffer.read``. From then on, all calls fail, because the CUDA context is unusable.
"""

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
from crepe_dist.errors import ExitCode, UserError

STAGED_BYTES = 1 << 23  # Size, in bytes, of the pinned host buffer through which arrays are copied to the GPU.
LOST_PEER_SECONDS = (
    2.0  # Seconds to wait for the detection of a lost peer after an error that the loss may have caused.
)
HANG_SECONDS = 5.0  # A kernel that runs longer than this number of seconds is considered to hang.
# Constants of cuda.h.
OUT_OF_MEMORY, NOT_READY = 2, 600
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
SHARED_GPU_HINT = "nvidia-smi lists the processes that use the GPU"

_thread = threading.local()  # Its attribute ``context`` is the current CUDA context of the thread.


def _use(context: c_void_p) -> int:
    """Make a context the current context of the calling thread. Return the driver's result code."""
    code = 0 if getattr(_thread, "context", None) is context else driver.function("cuCtxSetCurrent")(context)
    _thread.context = None if code else context
    return int(code)


class Gpu:
    """GPU with its own stream in the primary context of the process.

    Args:
        number: Number of the GPU in the driver's numbering.

    Attributes:
        number: Number of the GPU in the driver's numbering.
        name: Name of the GPU, for error messages.
        capability: Compute capability, major and minor.
        stream: Handle of the CUDA stream.
        check: Function that raises ``PeerLostError`` if a peer process is lost. The NCCL communicator sets it.

    Raises:
        UserError: The GPU does not exist, its driver is too old, or other processes use all of its memory.
    """

    def __init__(self, number: int) -> None:
        if error := driver.load_error() or driver.init_error() or driver.version_error():
            raise error
        self.number = number
        self.name = ""  # The calls below may fail before the name is known.
        self.check: Callable[[], None] | None = None
        self._call("cuInit", 0)
        device = c_int()
        self._call("cuDeviceGet", device, number)
        self.name = driver.gpu_name(number)
        self.capability = driver.compute_capability(number)
        self._context = c_void_p()
        self.stream = c_void_p()
        try:
            self._call("cuDevicePrimaryCtxRetain", self._context, device)
            self.call("cuStreamCreate", self.stream, NON_BLOCKING)
        except MemoryError as error:
            why, remedy = "other processes use its memory", f"{SHARED_GPU_HINT}; end them, or use another GPU"
            raise UserError(str(error), why, f"{remedy}, {driver.FALLBACK_HINT}", code=ExitCode.FAILURE) from None
        self._lost = threading.Event()  # A finalizer sets this event if it detects an error or a hang.
        self._locked: list[c_void_p] = []
        held = self._context, self.stream, device, self._locked, self._lost
        weakref.finalize(self, _release, *held, os.getpid()).atexit = False
        self._stage = self.pinned(STAGED_BYTES)  # Ring buffer.
        # Total number of bytes whose copy from the ring buffer was enqueued, and how many of them are known to have
        # arrived on the GPU.
        self._given = self._copied = 0
        self._lock = threading.Lock()
        free, total = self.memory()
        self._used_before = total - free  # Includes the memory of the context, a few hundred MB.

    def memory(self) -> tuple[int, int]:
        """Return the free and the total memory of the GPU, in bytes."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", free, total)
        return free.value, total.value

    def allocate(self, size: int) -> "DeviceBuffer":
        """Allocate ``size`` bytes of memory on the GPU, and set them to zero.

        Raises:
            MemoryError: The GPU does not have enough free memory.
        """
        address = c_uint64()
        try:
            self.call("cuMemAlloc_v2", address, max(size, 1))
        except MemoryError as error:
            free, total = self.memory()
            wanted = f"{error}: {size:,} bytes wanted, {free:,} of {total:,} are free"
            shared = f", {self._used_before:,} were used before this process began; {SHARED_GPU_HINT}"
            raise MemoryError(wanted + shared * (self._used_before > total // 4)) from None
        memory = DeviceBuffer(self, address.value, size)
        weakref.finalize(memory, _give_back, self, "cuMemFree_v2", address.value, os.getpid()).atexit = False
        memory.clear()
        return memory

    def copy(self, array: npt.NDArray[Any]) -> "DeviceBuffer":
        """Allocate memory on the GPU for an array, and copy the array to it."""
        memory = self.allocate(array.nbytes)
        memory.write(array)
        return memory

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """Allocate pinned host memory, for asynchronous copies.

        The memory is freed when this ``Gpu`` object is deleted.
        """
        address = c_void_p()
        self.call("cuMemHostAlloc", address, size, 0)
        self._locked.append(address)
        return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (size,))

    def wait(self) -> None:
        """Wait until all enqueued work is complete."""
        given = self._given
        self.call("cuStreamSynchronize", self.stream)
        self._copied = max(self._copied, given)

    def is_done(self) -> bool:
        """Return True if all enqueued work is complete."""
        given = self._given
        self.make_current()
        code = driver.function("cuStreamQuery")(self.stream)
        if code not in (0, NOT_READY):
            raise self._failure("cuStreamQuery", code)
        self._copied = given if code == 0 else self._copied
        return bool(code == 0)

    def is_idle(self) -> bool:
        """Wait at most ``HANG_SECONDS`` for the enqueued work. Return True if it has completed without an error."""
        query, until = driver.function("cuStreamQuery"), time.monotonic() + HANG_SECONDS
        code = _use(self._context) or query(self.stream)
        while code == NOT_READY and not self._lost.is_set() and time.monotonic() < until:
            time.sleep(1e-4)
            code = query(self.stream)
        if code:
            self._lost.set()
        return code == 0

    def wait_for_lost_peer(self) -> None:
        """Wait at most ``LOST_PEER_SECONDS`` for ``check`` to detect a lost peer process. Only the first call waits.

        The loss of a peer may cause an error on this GPU or in NCCL before ``check`` detects the loss.

        Raises:
            PeerLostError: A peer is lost.
        """
        check, self.check, until = self.check, None, time.monotonic() + LOST_PEER_SECONDS
        while check is not None and time.monotonic() < until:
            check()
            time.sleep(0.05)

    def make_current(self) -> None:
        """Make the context of the GPU the current context of the calling thread."""
        if code := _use(self._context):
            raise self._failure("cuCtxSetCurrent", code)

    def call(self, name: str, *arguments: object) -> None:
        """Call a driver function in the context of the GPU.

        Raises:
            MemoryError: The GPU does not have enough free memory.
            UserError: The function failed.
            PeerLostError: The function failed, and a peer is lost.
        """
        self.make_current()
        self._call(name, *arguments)

    def write(self, source: npt.NDArray[Any], address: int) -> None:
        """Copy an array to the GPU through the ring buffer. Wait for the GPU only if the ring buffer is full."""
        with self._lock:
            start, done = self._stage.ctypes.data, 0
            while done < source.nbytes:
                place, free = self._given % STAGED_BYTES, STAGED_BYTES - (self._given - self._copied)
                size = min(source.nbytes - done, STAGED_BYTES - place, free)
                if size <= 0:  # The size is negative if another thread has replaced ``_copied`` by an earlier value.
                    self.wait()
                    continue
                ctypes.memmove(start + place, source.ctypes.data + done, size)
                self.call("cuMemcpyHtoDAsync_v2", address + done, start + place, size, self.stream)
                # The counter is updated after the copy is enqueued. Otherwise, a concurrent ``wait`` could count these
                # bytes as copied too early.
                self._given += size
                done += size

    def _call(self, name: str, *arguments: object) -> None:
        code = driver.function(name)(*arguments)
        if code:
            raise self._failure(name, code)

    def _failure(self, function: str, code: int) -> Exception:
        gpu = f"GPU {self.number}" + (f" ({self.name})" if self.name else "")
        if code == OUT_OF_MEMORY:
            return MemoryError(f"{gpu} is out of memory")
        if code not in driver.ERROR_HELP:
            self.wait_for_lost_peer()
        return driver.call_error(f"{gpu} cannot be used", function, code)


class DeviceBuffer:
    """Memory on a GPU. It is freed when the last reference to this object or to one of its views is deleted.

    Attributes:
        address: Address on the GPU.
        size: Number of bytes.
    """

    def __init__(self, gpu: Gpu, address: int, size: int, whole: "DeviceBuffer | None" = None) -> None:
        self._gpu = gpu
        self.address = address
        self.size = size
        self._whole = whole

    def view(self, offset: int, size: int) -> "DeviceBuffer":
        """Return a view of the bytes [offset, offset + size)."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"bytes {offset} to {offset + size} are not within {self.size}")
        return DeviceBuffer(self._gpu, self.address + offset, size, self)

    def write(self, array: npt.NDArray[Any]) -> None:
        """Copy an array to the start of this memory. The caller may change the array after the call."""
        source = np.ascontiguousarray(array)
        self._gpu.write(source, self.view(0, source.nbytes).address)

    def read(self, array: npt.NDArray[Any]) -> None:
        """Wait for all enqueued work, and copy the start of this memory to an array."""
        self.read_async(array)
        self._gpu.wait()

    def read_async(self, array: npt.NDArray[Any]) -> None:
        """Enqueue a copy from the start of this memory to an array. The call does not wait if the array is pinned."""
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise ValueError("an array to read into must be contiguous and writeable")
        address = self.view(0, array.nbytes).address
        if array.nbytes:
            self._gpu.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self._gpu.stream)

    def clear(self) -> None:
        """Set all bytes to zero."""
        if self.size:
            self._gpu.call("cuMemsetD8Async", self.address, 0, self.size, self._gpu.stream)


class CudaModule:
    """Compiled program on a GPU. Only one thread at a time may launch its kernels.

    Args:
        gpu: The GPU.
        image: The compiled program.
        parameters: Parameter types of each kernel; see ``compiler.parameters``.
    """

    def __init__(self, gpu: Gpu, image: bytes, parameters: Mapping[str, str]) -> None:
        self._gpu = gpu
        self._handle = c_void_p()
        self._parameters = parameters
        gpu.call("cuModuleLoadData", self._handle, image)
        self._kernels: dict[str, _Kernel] = {}
        weakref.finalize(self, _give_back, gpu, "cuModuleUnload", self._handle, os.getpid()).atexit = False

    def launch(self, name: str, grid: int | tuple[int, int], block: int, *arguments: Any, shared: int = 0) -> None:
        """Enqueue a kernel.

        Args:
            name: Name of the kernel.
            grid: Number of blocks along x, or along x and y. If a number is 0, no kernel is launched.
            block: Number of threads per block.
            arguments: ``DeviceBuffer`` or ``None`` for each pointer, and a number for each other parameter.
            shared: Bytes of dynamic shared memory per block. The static and dynamic shared memory of a block together
                are limited to 48 KiB.

        Raises:
            TypeError: The number or the types of the arguments do not match the parameters of the kernel, or an
                integer is too large for its parameter.
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
    """Kernel with the memory for its arguments.

    Attributes:
        pointers: C array of the addresses of the arguments.
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
        self._layout.pack_into(self._values, 0, *values, *arguments[len(values) :])  # Raises an error if too many.


# The functions below are finalizers. A forked process must not free the resources of its parent. After an error or a
# hang, the finalizers free nothing, because freeing memory would wait for all kernels. The driver frees everything when
# the process ends.


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
