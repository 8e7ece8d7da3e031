"""All-reduce of gradients in memory that the processes of a host share.

Horovod's Gloo sends every gradient through a socket, even to a process of the same host. That takes five to ten times
as long, on the same cores that compute. With several hosts, only the sums of each host go through Horovod.
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
from crepe_dist.distributed.gradients import Reduced, Row, Trainer, culprits
from crepe_dist.distributed.host_sums import HostSums, all_hosts, cuts
from crepe_dist.distributed.table import HostExchange, Table
from crepe_dist.distributed.whole_sums import WholeSums
from crepe_dist.errors import PeerGone
from crepe_dist.mxnet_internals import replace_allreduce, set_gradients, view
from crepe_dist.native import library

FOLDER = machine.SHARED_MEMORY
# The barrier is at the start of rank 0's memory. Gradients begin where MXNet's own arrays do, 64 bytes into a page: the
# update of parameters reads several arrays at the same index, and is a third slower if their alignments differ.
START = mmap.PAGESIZE + 64
NOTE = 64 * 1024  # bytes behind the gradients, for small arrays of other all-reduces
VERDICT = 64  # bytes at the end, of which two uint64 are used: the results of ``_add``
ROW = 16  # numbers of a rank's row, at most, besides the bounds of its gradients
EVERYWHERE = -1  # for ``crepe_add``: write the sums into all arrays
ALL = 2**64 - 1
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
    """Gradients of Gluon parameters in memory that every process of the host sees; made by ``share``.

    Behind the gradients is a table with a row for each rank, which is summed with them. Rank k of a host adds up the
    k-th part of all these numbers over the processes of the host. If there are several hosts, the ranks that have the
    same part then add theirs through Horovod. A host with more processes than another one has some without a part.

    Args:
        parameters: those with gradients.
        memories: the memory of each process of this host, in the order of ``hosts``.
        hosts: ranks of each host.
        ranks: collectives of all ranks.
        native: compiled kernels.
        horovod: the module ``horovod.mxnet``.
        size: bytes of a memory for the gradients and what belongs to them; the tables have the rest.
        optimizer: MXNet's optimizer.
        sums: quanta of the gradients and the parameters that are trained row by row, if gradients are whole numbers.

    Attributes:
        tables: the tables of these parameters.
        sums: as given.
    """

    def __init__(
        self,
        parameters: list[Any],
        memories: list[_Memory],
        hosts: list[list[int]],
        ranks: Collectives,
        native: library.Library,
        horovod: Any,
        size: int,
        optimizer: mx.optimizer.Optimizer,
        sums: WholeSums | None = None,
    ) -> None:
        self.sums = sums
        self._parameters = parameters
        self._memories = memories
        self._ranks = ranks
        self._hosts = hosts
        self._rank = next(each.index(ranks.rank) for each in hosts if ranks.rank in each)
        self._functions = native.functions
        self._notes = [memoryview(memory.pages)[size - NOTE - VERDICT : size - VERDICT] for memory in memories]
        self._verdicts = [np.frombuffer(memory.pages, np.uint64, 2, size - 16) for memory in memories]
        numbers = (size - START - NOTE - VERDICT) // 4
        self._flat = [np.frombuffer(memory.pages, np.float32, numbers, START) for memory in memories]
        width = _row(sums)
        self._reports = self._flat[self._rank][numbers - _aligned(ranks.size * width) :][: ranks.size * width]
        self._reports = self._reports.reshape(ranks.size, width)
        self._arrays = (ctypes.c_void_p * len(memories))(*[flat.ctypes.data for flat in self._flat])
        self._barrier = self._flat[0].ctypes.data - START
        self._bound = self._move()
        parts = min(map(len, hosts))
        bounds = cuts(numbers, parts) + [numbers] * len(memories)
        self._part = slice(*bounds[self._rank : self._rank + 2])
        self._across: HostSums | None = None
        if len(hosts) > 1:
            peers = [each[self._rank] for each in hosts] if self._rank < parts else []
            part = self._flat[self._rank][self._part]
            self._across = HostSums(horovod, ranks, len(hosts), peers, part.view(np.int32) if sums else part)
        self.tables: list[Table] = []
        offset = _whole_pages(size)
        for each in sums.sparse if sums else ():
            count = each.bytes(len(memories))
            of_all = [np.frombuffer(memory.pages, np.uint8, count, offset) for memory in memories]
            exchange = HostExchange(horovod, ranks, hosts, each) if len(hosts) > 1 else None
            self.tables.append(Table(each, optimizer, of_all, self._rank, exchange))
            offset += count
        self.wait_for_all()

    @property
    def on_one_host(self) -> bool:
        return self._across is None

    def all_reduce(self, row: Row, loss: mx.nd.NDArray | None = None) -> Reduced:
        """Sum the gradients over the ranks, in place, bit-identically on all.

        Args:
            row: this rank's numbers, float32 [n], fewer than ``_row``.
            loss: this rank's loss, float32 [1], appended to the row; ``None``: 0.
        """
        if any(p.grad() is not bound for p, bound in zip(self._parameters, self._bound)):
            raise RuntimeError("a parameter was given another gradient array, which is not in shared memory")
        mx.nd.waitall()
        self._reports[:] = 0
        self._reports[self._ranks.rank, : len(row)] = row
        if loss is not None:
            self._reports[self._ranks.rank, len(row)] = view(loss)[0]
        self.wait_for_all()
        verdict = self._verdicts[self._rank]
        bad, not_finite = self._add() if self._across is None else self._add_across(self._across)
        for table in self.tables:
            table.sum()
        verdict[:] = bad, not_finite
        self.wait_for_all()
        # No process writes a verdict or a row again before all have reached the next sum.
        rows = self._reports[:, : len(row) + 1].copy()
        if not any(verdict[1] for verdict in self._verdicts):
            return Reduced(rows, ())
        bits = int(np.bitwise_or.reduce([verdict[0] for verdict in self._verdicts]))
        return Reduced(rows, culprits(self._ranks, bool(bits >> (self._rank % 64) & 1)))

    def _add(self) -> tuple[int, bool]:
        """Sum this process's part over the processes of the host, and write the sum into the arrays of all of them.

        Returns:
            The processes with an infinity or NaN in the part, a bit for each, and whether the sum holds any.
        """
        bad = self._add_up(EVERYWHERE)
        return bad % ALL, bad != 0

    def _add_across(self, across: HostSums) -> tuple[int, bool]:
        """Do as ``_add``, over all hosts; the bits are those of this host's processes."""
        bad = self._add_up(self._rank)
        across.add()
        part = self._flat[self._rank][self._part]
        for rank, flat in enumerate(self._flat):
            if rank != self._rank:
                flat[self._part] = part
        return bad % ALL, self.sums is None and not np.isfinite(part).all()

    def _add_up(self, into: int) -> int:
        place = (self._arrays, len(self._memories), into, self._part.start, self._part.stop)
        if self.sums:
            self._functions.crepe_add_whole(*place)
            return 0
        return int(self._functions.crepe_add(*place))

    def squares_of_rows(self) -> list[int]:
        """Return the sum of the squares of each table's summed gradient, in quanta; every rank calls it."""
        each = self._ranks.gather([table.squares() for table in self.tables], "squares") if self.tables else []
        return [sum(each[rank][place] for rank in self._hosts[0]) for place in range(len(self.tables))]

    def sum(self) -> None:
        """Sum the gradients without a row, in place of a Gluon trainer's ``_allreduce_grads``."""
        self.all_reduce(np.zeros(0, np.float32))

    def sum_note(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Sum a small array, of at most ``NOTE`` bytes, over the processes of the host in the order of ranks.

        Through Horovod this would take one to two of its cycles.
        """
        self._write_note(array)
        self.wait_for_all()
        each = self._read_notes(array)
        total = sum(each[1:], each[0].copy())
        self.wait_for_all()
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

    def wait_for_all(self) -> None:
        """Wait until all processes of the host have called it.

        Raises:
            PeerGone: one of them ended.
        """
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
    """All-reduce in memory that the processes of a host share, and between hosts through Horovod."""

    def __init__(self, trainer: Any, shared: SharedGradients) -> None:
        super().__init__(trainer, shared.tables, shared.sums)
        self._shared = shared
        self.by = "shared memory" if shared.on_one_host else "shared memory and Horovod"
        replace_allreduce(trainer, shared.sum)

    def _sum(self, row: Row, loss: mx.nd.NDArray) -> Reduced:
        return self._shared.all_reduce(row, loss)

    def _squares_of_rows(self) -> list[int]:
        return self._shared.squares_of_rows()

    def _wait_for_rows(self) -> None:
        if self.tables:
            self._shared.wait_for_all()


def share(
    ranks: Collectives,
    horovod: Any,
    parameters: Iterable[Any],
    optimizer: mx.optimizer.Optimizer,
    sums: WholeSums | None = None,
) -> SharedGradients | None:
    """Move the gradients of all ranks into memory that each host's ranks share; every rank calls it.

    Args:
        ranks: collectives of all ranks.
        horovod: the module ``horovod.mxnet``.
        parameters: Gluon parameters.
        optimizer: MXNet's optimizer.
        sums: quanta of the gradients and those that are trained row by row, if gradients are whole numbers.

    Returns:
        The shared gradients, or ``None`` on all ranks if it gains nothing, because every rank has a host of its own, or
        one of them cannot share: /dev/shm is too small (a container has 64 MB by default), or there are no compiled
        kernels.
    """
    trained = [p for p in parameters if p.grad_req != "null"]
    native, _ = library.find()
    numbers = sum(_aligned(int(np.prod(p.shape))) for p in trained) + _aligned(ranks.size * _row(sums))
    size = START + 4 * numbers + NOTE + VERDICT
    hosts = all_hosts(ranks)
    if hosts is None or len(hosts) == ranks.size:
        return None
    mine = next(each for each in hosts if ranks.rank in each)
    whole = _whole_pages(size) + sum(each.bytes(len(mine)) for each in (sums.sparse if sums else ()))
    remove_stale()
    path = _create(whole) if native else None
    try:
        names = ranks.gather(path and path.name, "shared memory")
        if native is None or None in names:
            return None
        memories = _open([names[rank] for rank in mine], whole)
        if 0 in ranks.gather(len(memories), "shared memory opened"):
            return None
        return SharedGradients(trained, memories, hosts, ranks, native, horovod, size, optimizer, sums)
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


def _row(sums: WholeSums | None) -> int:
    """Return the largest number of numbers in a rank's row."""
    return ROW + (len(sums.parameters) if sums else 0)


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


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
