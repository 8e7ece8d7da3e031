"""Exchange of gradients in whole numbers, which our own kernels compute on CPUs.

Each process keeps its gradients in memory that all processes of its host map. Behind the gradients is a table with a
row of numbers for each rank, which is summed with them. Rank k of a host sums the k-th part of all this over the
processes of the host, and then, by an all-to-all, with the ranks that have the same part on the other hosts. If hosts
have different numbers of processes, the surplus ranks have no part. Each row of an n-gram table is summed by the rank
that keeps it. If a process cannot share memory, each counts as a host of its own.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from crepe_dist.data.arrays import Arrays
from crepe_dist.distributed.world import World
from crepe_dist.exchange.between_hosts import PartSums, RowSums, cuts, ranks_by_host
from crepe_dist.exchange.exchange import SavedArrays
from crepe_dist.exchange.host_memory import HostMemory, private_memory, share_memory
from crepe_dist.exchange.optimizer import DenseUpdate, Optimizer
from crepe_dist.exchange.quanta import Quanta, Row, WholeNumberExchange, mean_scale, row_width
from crepe_dist.exchange.table import SparseParameter, Table
from crepe_dist.native import library

# Place of the gradients in a process's memory, behind the barrier. They begin where NumPy's large arrays do, 16 bytes
# into a page: an update reads several arrays at the same index, and takes a third longer on an Intel Xeon if their
# alignments differ.
START = mmap.PAGESIZE + 16


class SharedMemoryExchange(WholeNumberExchange):
    """Exchange that sums in shared memory and, between hosts, by all-to-all; our own kernels update the parameters.

    Args:
        quanta: the trained parameters, and quanta of their gradients.
        sparse: those of them that are trained row by row.
    """

    def __init__(
        self, world: World, optimizer: Optimizer, quanta: Quanta, sparse: Sequence[SparseParameter] = ()
    ) -> None:
        super().__init__(quanta)
        self._world = world
        self._optimizer = optimizer
        by_row = {each.name for each in sparse}
        dense = {name: parameter for name, parameter in quanta.parameters.items() if name not in by_row}
        self._width = row_width(quanta)
        self._add_whole = library.functions().crepe_add_whole
        gradients = sum(_aligned(parameter.value.size) for parameter in dense.values())
        count = gradients + _aligned(2 * world.size * self._width)  # float64, as two words
        self._squares_at = START + 4 * count
        tables_at = -(-(self._squares_at + 16 * len(sparse)) // mmap.PAGESIZE) * mmap.PAGESIZE

        self._hosts, self._memory = share_on_hosts(world, lambda n: tables_at + sum(each.bytes(n) for each in sparse))
        memory, rank = self._memory, self._memory.rank
        self._words = [np.frombuffer(pages, np.int32, count, START) for pages in memory.pages]
        self._arrays = (ctypes.c_void_p * memory.processes)(*[words.ctypes.data for words in self._words])
        self._rows: Any = (ctypes.c_double * (world.size * self._width)).from_buffer(
            memory.pages[rank], START + 4 * gradients
        )
        offset = 0
        for parameter in dense.values():  # the kernels write the gradients into this process's memory
            size = parameter.value.size
            parameter.gradient = self._words[rank][offset : offset + size].reshape(parameter.shape)
            offset += _aligned(size)
        self._dense = DenseUpdate(optimizer, dense, quanta)

        parts = min(map(len, self._hosts))
        bounds = cuts(count, parts) + [count] * memory.processes
        self._part = slice(*bounds[rank : rank + 2])
        self._between: PartSums | None = None
        if len(self._hosts) > 1:
            peers = [host[rank] for host in self._hosts] if rank < parts else []
            self._between = PartSums(world, len(self._hosts), peers, self._words[rank][self._part])
            self.by = f"shared memory and {world.carrier}" if max(map(len, self._hosts)) > 1 else world.carrier
        elif world.size > 1:
            self.by = "shared memory"

        self._tables: list[Table] = []
        place = tables_at
        for each in sparse:
            size = each.bytes(memory.processes)
            memories = [np.frombuffer(pages, np.uint8, size, place) for pages in memory.pages]
            self._tables.append(Table(each, optimizer, memories, rank))
            place += size
        self._row_sums = [RowSums(world, self._hosts, table) for table in self._tables] if self._between else []
        memory.wait_for_all()

    def ready(self) -> None:
        self._memory.wait()  # until all rows are written

    def _add(self, row: Row) -> list[Row]:
        """Sum the gradients over the ranks, and return the rows of all ranks."""
        width, own = self._width, self._width * self._world.rank
        ctypes.memset(self._rows, 0, ctypes.sizeof(self._rows))
        self._rows[own : own + len(row)] = row
        self._memory.wait_for_all()
        rank, part, processes = self._memory.rank, self._part, self._memory.processes
        into = rank if self._between else -1  # -1: into the arrays of all processes
        self._add_whole(self._arrays, processes, into, part.start, part.stop)
        if self._between:
            self._between.add()
            for other in range(processes):
                if other != rank:
                    self._words[other][part] = self._words[rank][part]
        for table in self._tables:
            table.collect()
        for rows in self._row_sums:
            rows.add()
        self._memory.wait_for_all()
        # A process clears its rows in the next sum, and writes there only after all have reached its barrier.
        return [self._rows[start : start + len(row)] for start in range(0, len(self._rows), width)]

    def update(self, documents: float, learning_rate: float) -> None:
        scale = mean_scale(documents, self._optimizer.clip_norm, self._squares)
        self._updates += 1
        self._dense.update(self._optimizer.rate(learning_rate, self._updates), scale)
        for table in self._tables:
            table.update(learning_rate, scale * self._quanta.of(table.name))
        self._memory.arrive()  # whoever reads rows waits first

    def _squares(self) -> float:
        """Return the sum of the squares of all summed gradients, the same on every rank."""
        total = self._dense.squares()
        # Each rank of a host has the sums, over all ranks, of the rows that it keeps.
        sums = [
            np.frombuffer(pages, np.uint64, 2 * len(self._tables), self._squares_at) for pages in self._memory.pages
        ]
        for number, table in enumerate(self._tables):
            high, low = divmod(table.squares(), 2**64)
            sums[self._memory.rank][2 * number : 2 * number + 2] = low, high
        self._memory.wait_for_all()
        for number, table in enumerate(self._tables):
            squares = sum(int(words[2 * number]) + (int(words[2 * number + 1]) << 64) for words in sums)
            total += squares * self._quanta.of(table.name) ** 2
        return float(total)

    def flush(self) -> None:
        self._memory.wait_for_all()  # rank 0 may still copy the rows of other processes for a saved state
        for table in self._tables:
            table.flush()
        self._memory.arrive()
        self.publish()

    def publish(self) -> None:
        self._memory.wait()
        for table in self._tables:
            table.publish()

    def arrays(self) -> Arrays:
        self._memory.wait()
        arrays = super().arrays()
        if self._updates:
            arrays.update(self._dense.arrays())
        for table in self._tables:
            arrays.update(table.arrays())
        return arrays

    def restore(self, arrays: Arrays) -> None:
        saved = SavedArrays(arrays)
        self._dense.restore(saved)
        for table in self._tables:
            table.restore(saved)
        self._quanta.restore(saved.quanta(len(self._quanta.parameters)))
        self._updates = saved.updates
        self._memory.arrive()


def share_on_hosts(world: World, size: Callable[[int], int]) -> tuple[list[list[int]], HostMemory]:
    """Open the memory of this host's processes; every rank calls it.

    Args:
        size: function that returns the bytes of each process, given the number of processes of its host.

    Returns:
        The ranks of each host, and the memory. If one process cannot share, each is a host of its own.
    """
    hosts = ranks_by_host(world) if world.size > 1 else [[0]]
    if len(hosts) < world.size:
        host = next(host for host in hosts if world.rank in host)
        if memory := share_memory(world, host, size(len(host))):
            return hosts, memory
    return [[rank] for rank in range(world.size)], private_memory(size(1))


def _aligned(count: int) -> int:
    """Round the number of elements of a gradient up to whole pages."""
    step = mmap.PAGESIZE // 4
    return -(-count // step) * step
