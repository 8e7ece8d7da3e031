"""All-reduce over GPUs by NCCL.

The function signatures come from nccl.h 2.26. All versions of NCCL from 2.14 have these functions.
"""

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
from crepe_dist.cuda.gpu import HANG_SECONDS, DeviceBuffer, Gpu
from crepe_dist.errors import ExitCode, PeerLostError, UserError

LIBRARY = "libnccl.so.2"
PACKAGE, PATH = "nvidia-nccl-cu12", f"nvidia/nccl/lib/{LIBRARY}"
INT32, SUM = 2, 0  # ncclInt32, ncclSum
REMOTE_ERROR, IN_PROGRESS = 6, 7  # ncclRemoteError, ncclInProgress
FALLBACK_HINT = f"to sum without NCCL: pip uninstall {PACKAGE}"
MIN_VERSION = 21400  # NCCL_VERSION_CODE of 2.14, the first version with non-blocking communicators.
POLL_SECONDS = 0.2  # Seconds between two checks for lost peers.
SPIN_SECONDS = 1e-3  # Seconds that a wait polls without sleeping.


class UniqueId(ctypes.Structure):
    """Struct ncclUniqueId, which is passed to NCCL by value."""

    _fields_ = (("bytes", ctypes.c_char * 128),)


class NcclConfig(ctypes.Structure):
    """Struct ncclConfig_t of NCCL 2.14. Later versions infer from ``size`` that their additional members are absent."""

    _fields_ = (("size", c_size_t), ("magic", c_uint), ("version", c_uint), ("blocking", c_int))


def version() -> int:
    """Return NCCL's version code, such as 21400 for 2.14, or 0 if NCCL cannot be loaded or is too old."""
    number = c_int()
    with suppress(OSError, AttributeError):
        _library().ncclGetVersion(byref(number))
    return number.value if number.value >= MIN_VERSION else 0


def unique_id() -> str:
    """Return the id of a new communicator, in hexadecimal. Rank 0 creates the id and sends it to all ranks."""
    made = UniqueId()
    if code := _library().ncclGetUniqueId(byref(made)):
        raise _failure("ncclGetUniqueId", code)
    return bytes(made).hex()


class Communicator:
    """NCCL communicator with one GPU per rank. Every rank must create it at the same point of the program.

    NCCL detects the loss of a peer on another host, but not the loss of a peer on the same host: NCCL's kernel would
    wait forever. ``check`` detects such a loss.

    Args:
        gpu: GPU of this rank.
        rank: Rank of this process.
        size: Number of ranks.
        name: Id of the communicator, as returned by ``unique_id`` on rank 0.
        check: Function that raises ``PeerLostError`` if a peer is lost. The communicator calls it every
            ``POLL_SECONDS`` while it waits.
        seconds: Time limit of the initialisation in seconds.

    Raises:
        UserError: NCCL cannot be initialised.
    """

    def __init__(self, gpu: Gpu, rank: int, size: int, name: str, check: Callable[[], None], seconds: float) -> None:
        self._gpu = gpu
        self._check = gpu.check = check
        self._doing = "its start"
        self._handle = c_void_p()
        self._abort = weakref.finalize(self, _abort, gpu, self._handle, os.getpid())
        self._abort.atexit = False  # NCCL's kernel ends with the process.
        config = NcclConfig(ctypes.sizeof(NcclConfig), 0xCAFEBEEF, MIN_VERSION, 0)
        gpu.make_current()
        unique = UniqueId.from_buffer_copy(bytes.fromhex(name))
        self._call("ncclCommInitRankConfig", byref(self._handle), size, unique, rank, byref(config))
        self._poll(self._is_enqueued, seconds)
        self._doing = "a sum over the GPUs"

    def all_reduce(self, memory: DeviceBuffer, count: int) -> None:
        """Enqueue an all-reduce of ``count`` int32 numbers.

        The all-reduce replaces the numbers by their sums over all ranks.
        """
        self._gpu.make_current()
        address = c_void_p(memory.view(0, 4 * count).address)
        self._call("ncclAllReduce", address, address, c_size_t(count), INT32, SUM, self._handle, self._gpu.stream)
        self._poll(self._is_enqueued)

    def wait(self) -> None:
        """Wait until all enqueued work of the GPU is complete.

        Raises:
            PeerLostError: Another rank is lost.
        """
        self._poll(self._gpu.is_done)

    def _poll(self, is_done: Callable[[], bool], seconds: float = math.inf) -> None:
        start = look = time.monotonic()
        try:
            while not is_done():
                now = time.monotonic()
                if now - look >= POLL_SECONDS:
                    look = now
                    self._check()
                    self._is_enqueued()
                if now - start > seconds:
                    raise UserError(
                        f"NCCL did not start within {seconds:g} s",
                        "the network between the GPUs or hosts is blocked, or a process is suspended",
                        "set NCCL_DEBUG=INFO to see what it is waiting for; set NCCL_SOCKET_IFNAME to the network "
                        f"interface that connects the hosts; or raise --safety.watchdog-s; {FALLBACK_HINT}",
                        code=ExitCode.FAILURE,
                    )
                if now - start > SPIN_SECONDS:
                    time.sleep(SPIN_SECONDS / 10)
        except BaseException:
            self._abort()  # This ends NCCL's kernel, so that the kernels behind it in the stream can run.
            raise

    def _is_enqueued(self) -> bool:
        """Return True if NCCL has enqueued the last call. Calls of a non-blocking communicator may return before that.

        Raises:
            PeerLostError: Another rank, or the connection to it, is lost.
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
                self._gpu.wait_for_lost_peer()
            raise _failure(what, code)


def _failure(what: str, code: int) -> Exception:
    why = f"{(_library().ncclGetErrorString(code) or b'').decode('utf-8', 'replace')} ({code})"
    if code == REMOTE_ERROR:
        return PeerLostError(f"NCCL: {what} failed: {why}")
    remedy = (
        "set NCCL_DEBUG=WARN to see more; a container may need --shm-size 1g, and GPUs that cannot access each other's "
        f"memory NCCL_P2P_DISABLE=1; {FALLBACK_HINT}"
    )
    return UserError(f"NCCL failed: {what}", why, remedy, code=ExitCode.FAILURE)


def _abort(gpu: Gpu, handle: c_void_p, process: int) -> None:
    """Abort the communicator without waiting for other ranks. Wait at most ``HANG_SECONDS`` for NCCL.

    A thread makes the call, because ncclCommAbort may hang (https://github.com/NVIDIA/nccl/issues/829).
    """

    def work() -> None:
        with suppress(UserError, PeerLostError):  # The GPU may have failed before.
            gpu.make_current()
        _library().ncclCommAbort(handle)

    if handle.value and os.getpid() == process:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(HANG_SECONDS)


@cache
def _library() -> ctypes.CDLL:
    found = load_from_package(PACKAGE, PATH)
    found.ncclGetErrorString.restype = c_char_p  # All other functions return an integer.
    return found
