"""All-reduce of gradients in memory that the processes of one host share.

Horovod's Gloo sends every gradient through a socket, even to a process of the same host. That takes five to ten times
as long, on the same cores that compute.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt

from crepe_dist import machine
from crepe_dist.distributed.collectives import Collectives
from crepe_dist.distributed.gradients import Reduced, Row, Trainer
from crepe_dist.errors import PeerGone
from crepe_dist.mxnet_internals import replace_allreduce, set_gradients, view
from crepe_dist.native import library

FOLDER = machine.SHARED_MEMORY
# The barrier is at the start of rank 0's memory. Gradients begin where MXNet's own arrays do, 64 bytes into a page: the
# update of parameters reads several arrays at the same index, and is a third slower if their alignments differ.
START = mmap.PAGESIZE + 64
NOTE = 64 * 1024  # bytes behind the gradients, for small arrays of other all-reduces
VERDICT = 64  # bytes at the end: bits of the processes with non-finite gradients in this process's share
PREFIX = "crepe_dist-"
STALE_SECONDS = 60.0
LOOK_SECONDS = 0.2  # interval between two checks that the others are alive
GIVE_UP_SECONDS = 3600.0


@dataclass(frozen=True)
class _Memory:
    """Memory of one process, which holds a lock on the file while it lives; the kernel releases the lock at its end."""

    descriptor: int
    pages: mmap.mmap

    def owner_is_gone(self) -> bool:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        return True


class SharedGradients:
    """Gradients of Gluon parameters in memory that every process of the host sees; made by ``share``."""

    def __init__(self, parameters: list[Any], memories: list[_Memory], rank: int, native: library.Library) -> None:
        self._parameters = parameters
        self._memories = memories
        self._rank = rank
        self._functions = native.functions
        self._notes = [memoryview(memory.pages)[-NOTE - VERDICT : -VERDICT] for memory in memories]
        self._verdicts = [np.frombuffer(memory.pages, np.uint64)[-1:] for memory in memories]
        numbers = (len(memories[0].pages) - START - NOTE - VERDICT) // 4
        self._flat = [np.frombuffer(memory.pages, np.float32, numbers, START) for memory in memories]
        self._arrays = (ctypes.c_void_p * len(memories))(*[flat.ctypes.data for flat in self._flat])
        self._barrier = self._flat[0].ctypes.data - START
        self._bound = self._move()

    def all_reduce(self, row: Row, loss: mx.nd.NDArray | None = None) -> Reduced:
        """Sum the gradients over the processes, in the order of ranks, in place; bit-identical on every rank."""
        if any(p.grad() is not bound for p, bound in zip(self._parameters, self._bound)):
            raise RuntimeError("a parameter was given another gradient array, which is not in shared memory")
        mx.nd.waitall()
        if loss is not None:
            row = np.append(row, view(loss))
        self._write_note(row)
        self._wait_for_all()
        rows = np.stack(self._read_notes(row))
        self._verdicts[self._rank][0] = self._functions.crepe_add(
            self._arrays, len(self._memories), self._rank, self._flat[0].size
        )
        self._wait_for_all()
        # No process writes a verdict again before all have reached the next sum.
        bad = int(np.bitwise_or.reduce(np.concatenate(self._verdicts)))
        return Reduced(rows, tuple(rank for rank in range(len(self._memories)) if bad >> (rank % 64) & 1))

    def sum(self) -> None:
        """Sum the gradients without a row, in place of a Gluon trainer's ``_allreduce_grads``."""
        self.all_reduce(np.zeros(0, np.float32))

    def sum_note(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Sum a small array, of at most ``NOTE`` bytes, over the processes in the order of ranks.

        Through Horovod this would take one to two of its cycles.
        """
        self._write_note(array)
        self._wait_for_all()
        each = self._read_notes(array)
        total = sum(each[1:], each[0].copy())
        self._wait_for_all()
        return np.asarray(total, dtype=array.dtype)

    def _write_note(self, array: npt.NDArray[Any]) -> None:
        self._notes[self._rank][: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data

    def _read_notes(self, like: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        return [np.frombuffer(note, like.dtype, like.size).reshape(like.shape) for note in self._notes]

    def _move(self) -> list[Any]:
        """Move the gradients into shared memory.

        Call before a backward pass is compiled; otherwise MXNet would keep writing into the old arrays.
        """
        offset = 0
        for parameter in self._parameters:
            size = int(np.prod(parameter.shape))
            here = self._flat[self._rank][offset : offset + size].reshape(parameter.shape)
            set_gradients(parameter, [mx.nd.from_numpy(here, zero_copy=True)])
            offset += _aligned(size)
        return [p.grad() for p in self._parameters]

    def _wait_for_all(self) -> None:
        round_ = self._functions.crepe_arrive(self._barrier, len(self._memories))
        due = time.monotonic() + GIVE_UP_SECONDS
        # Wait in short pieces, so that signals are handled and the end of a process is noticed.
        while not self._functions.crepe_passed(self._barrier, round_, LOOK_SECONDS):
            peers = [memory for rank, memory in enumerate(self._memories) if rank != self._rank]
            if any(peer.owner_is_gone() for peer in peers):
                # If it ended after it had arrived, all continue.
                if self._functions.crepe_passed(self._barrier, round_, 0.0):
                    return
                raise PeerGone("another process of this host ended")
            if time.monotonic() > due:
                raise PeerGone(f"another process of this host did not arrive within {GIVE_UP_SECONDS:.0f} seconds")


class SharedMemoryTrainer(Trainer):
    """All-reduce in memory that the processes of one host share."""

    by = "shared memory"

    def __init__(self, trainer: Any, shared: SharedGradients) -> None:
        super().__init__(trainer)
        self._shared = shared
        replace_allreduce(trainer, shared.sum)

    def all_reduce(self, row: Row, loss: mx.nd.NDArray) -> Reduced:
        return self._shared.all_reduce(row, loss)


def share(ranks: Collectives, parameters: Iterable[Any]) -> SharedGradients | None:
    """Move the gradients of all ranks into shared memory; every rank calls it.

    Returns:
        The shared gradients, or ``None`` on all ranks if one of them cannot share: a rank is on another host, /dev/shm
        is too small (a container has 64 MB by default), or there are no compiled kernels.
    """
    trained = [p for p in parameters if p.grad_req != "null"]
    native, _ = library.find()
    size = START + 4 * sum(_aligned(int(np.prod(p.shape))) for p in trained) + NOTE + VERDICT
    remove_stale()
    path = _create(size) if native and ranks.local_size == ranks.size else None
    try:
        names = ranks.gather(path and path.name, "shared memory")
        memories = [] if None in names else _open(names, size)
        if 0 in ranks.gather(len(memories), "shared memory opened") or native is None:
            return None
        return SharedGradients(trained, memories, ranks.rank, native)
    finally:
        if path is not None:
            path.unlink()  # the memory lives until the last process ends, even if it is killed


def remove_stale() -> None:
    """Remove files of processes that were killed between creating and removing one."""
    for path in FOLDER.glob(f"{PREFIX}*"):
        try:
            if time.time() - path.stat().st_mtime < STALE_SECONDS:
                continue
            descriptor = os.open(path, os.O_RDWR)
        except OSError:  # gone by now, or another user's
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except OSError:  # in use
            pass
        finally:
            os.close(descriptor)


def _aligned(count: int) -> int:
    """Round the number of elements of a gradient up to whole pages."""
    step = mmap.PAGESIZE // 4
    return -(-count // step) * step


def _create(size: int) -> Path | None:
    """Create a file of that size, locked until this process ends; ``None`` if that fails."""
    path = FOLDER / f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.posix_fallocate(descriptor, 0, size)  # otherwise a full /dev/shm would kill the process at the first write
    except OSError:
        path.unlink()
        os.close(descriptor)
        return None
    return path


def _open(names: list[str], size: int) -> list[_Memory]:
    """Open the memories of all processes; empty if one cannot be opened."""
    memories = []
    for name in names:
        try:
            descriptor = os.open(FOLDER / name, os.O_RDWR)
            memories.append(_Memory(descriptor, mmap.mmap(descriptor, size)))
        except (OSError, ValueError):
            return []
    return memories
