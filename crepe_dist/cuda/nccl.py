"""Sums over several GPUs by NCCL.

Checked with nccl.h 2.26. The functions are in every NCCL since 2.14.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from functools import cache

from crepe_dist.cuda.compiler import load_from_package
from crepe_dist.cuda.gpu import HANG_SECONDS, Gpu, Memory
from crepe_dist.errors import ExitCode, PeerGone, UserError

LIBRARY = "libnccl.so.2"
PACKAGE, PATH = "nvidia-nccl-cu12", f"nvidia/nccl/lib/{LIBRARY}"
INT32, SUM = 2, 0  # ncclInt32, ncclSum
REMOTE_ERROR, IN_PROGRESS = 6, 7
WITHOUT = f"to sum without NCCL: pip uninstall {PACKAGE}"
OLDEST = 21400  # NCCL_VERSION_CODE of 2.14, the first with communicators that do not block
LOOK_SECONDS = 0.2  # interval of the questions whether all peers are there
SPIN_SECONDS = 1e-3  # time for which a wait does not let go of the processor


class UniqueId(ctypes.Structure):
    """NCCL's ncclUniqueId, which it takes by value."""

    _fields_ = (("bytes", ctypes.c_char * 128),)


class Config(ctypes.Structure):
    """The part of NCCL's ncclConfig_t that 2.14 has; the size tells NCCL that the rest is missing."""

    _fields_ = (("size", c_size_t), ("magic", c_uint), ("version", c_uint), ("blocking", c_int))


def version() -> int:
    """Return the number of NCCL's version, such as 21400 of 2.14; 0 if it cannot be loaded, or is too old."""
    number = c_int()
    with suppress(OSError, AttributeError):
        _library().ncclGetVersion(byref(number))
    return number.value if number.value >= OLDEST else 0


def unique_id() -> str:
    """Return the name of a new communicator, in hexadecimal; rank 0 makes it, and all ranks need it."""
    made = UniqueId()
    if code := _library().ncclGetUniqueId(byref(made)):
        raise _failure("ncclGetUniqueId", code)
    return bytes(made).hex()


class Communicator:
    """NCCL's communicator of one GPU of each rank; every rank makes it at the same point.

    NCCL hears of a peer of another host that is gone, but not of one of the same host: its kernel would wait for ever.

    Args:
        name: result of rank 0's ``unique_id``.
        check: function that raises ``PeerGone`` if it knows that a peer is gone; called now and then while waiting.
        seconds: time limit of the start.

    Raises:
        UserError: NCCL does not start.
    """

    def __init__(self, gpu: Gpu, rank: int, size: int, name: str, check: Callable[[], None], seconds: float) -> None:
        self._gpu = gpu
        self._check = gpu.check = check
        self._doing = "its start"
        self._handle = c_void_p()
        self._abort = weakref.finalize(self, _abort, gpu, self._handle, os.getpid())
        self._abort.atexit = False  # the end of the process ends NCCL's kernel, too
        config = Config(ctypes.sizeof(Config), 0xCAFEBEEF, OLDEST, 0)
        gpu.make_current()
        unique = UniqueId.from_buffer_copy(bytes.fromhex(name))
        self._call("ncclCommInitRankConfig", byref(self._handle), size, unique, rank, byref(config))
        self._poll(self._is_taken, seconds)
        self._doing = "a sum over the GPUs"

    def sum(self, memory: Memory, count: int) -> None:
        """Replace int32 numbers on the GPU by their sums over all ranks, in the order of the GPU's work."""
        self._gpu.make_current()
        address = c_void_p(memory.view(0, 4 * count).address)
        self._call("ncclAllReduce", address, address, c_size_t(count), INT32, SUM, self._handle, self._gpu.stream)
        self._poll(self._is_taken)

    def wait(self) -> None:
        """Wait until all work of the GPU is done.

        Raises:
            PeerGone: another rank is gone.
        """
        self._poll(self._gpu.is_done)

    def _poll(self, is_done: Callable[[], bool], seconds: float = math.inf) -> None:
        start = look = time.monotonic()
        try:
            while not is_done():
                now = time.monotonic()
                if now - look >= LOOK_SECONDS:
                    look = now
                    self._check()
                    self._is_taken()
                if now - start > seconds:
                    raise UserError(
                        f"NCCL did not start within {seconds:g} s",
                        "the network between the GPUs or hosts is blocked, or a process is suspended",
                        "set NCCL_DEBUG=INFO to see for what it waits, and NCCL_SOCKET_IFNAME to the network between "
                        f"the hosts, or raise --safety.watchdog-s; {WITHOUT}",
                        code=ExitCode.FAILURE,
                    )
                if now - start > SPIN_SECONDS:
                    time.sleep(SPIN_SECONDS / 10)
        except BaseException:
            self._abort()  # NCCL's kernel ends, and so do all that wait for it
            raise

    def _is_taken(self) -> bool:
        """Return whether NCCL has taken a call to the GPU's work: calls of this communicator return before that.

        Raises:
            PeerGone: another rank is gone, or the connection to it.
            UserError: NCCL failed.
        """
        state = c_int()
        self._call("ncclCommGetAsyncError", self._handle, byref(state))
        self._expect(self._doing, state.value)
        return state.value != IN_PROGRESS

    def _call(self, name: str, *arguments: object) -> None:
        self._expect(name, getattr(_library(), name)(*arguments))

    def _expect(self, what: str, code: int) -> None:
        if code not in (0, IN_PROGRESS):
            if code != REMOTE_ERROR:
                self._gpu.search()
            raise _failure(what, code)


def _failure(what: str, code: int) -> Exception:
    why = f"{(_library().ncclGetErrorString(code) or b'').decode('utf-8', 'replace')} ({code})"
    if code == REMOTE_ERROR:
        return PeerGone(f"NCCL: {what} failed: {why}")
    remedy = f"set NCCL_DEBUG=WARN to see more; a container may need --shm-size 1g; {WITHOUT}"
    return UserError(f"NCCL failed: {what}", why, remedy, code=ExitCode.FAILURE)


def _abort(gpu: Gpu, handle: c_void_p, process: int) -> None:
    """Leave the communicator without waiting for other ranks, nor long for NCCL, which may hang (its issue 829)."""

    def work() -> None:
        with suppress(UserError, PeerGone):  # after an error of the GPU
            gpu.make_current()
        _library().ncclCommAbort(handle)

    if handle.value and os.getpid() == process:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(HANG_SECONDS)


@cache
def _library() -> ctypes.CDLL:
    found = load_from_package(PACKAGE, PATH)
    found.ncclGetErrorString.restype = c_char_p  # all others return a number
    return found
