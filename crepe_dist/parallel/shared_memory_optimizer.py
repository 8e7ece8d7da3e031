"""Distributed optimizer on CPUs: all-reduce of fixed-point gradients in shared memory and between hosts.

Each process keeps its dense gradients in memory that all processes of its host map. Behind the gradients is a table
with one row of statistics per rank, which is summed like a gradient. Rank k of a host sums slice k of this memory over
the processes of the host. It then sums the slice with the ranks that have the same slice on the other hosts, by an
all-to-all. If hosts have different numbers of processes, the surplus ranks have no slice.

Each row of an n-gram table has one owner among all ranks, which sums the gradients of the row and updates it. On one
host, the owner does both in ``update``. If one process cannot share memory, each process counts as a host.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence

import numpy as np

from crepe_dist.data.arrays import Arrays
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.native import library
from crepe_dist.optim.fixed_point import FixedPointScales, mean_and_clip_factor
from crepe_dist.optim.optimizer_state import OptimizerState
from crepe_dist.optim.optimizers import FusedOptimizer, OptimizerSpec
from crepe_dist.parallel.distributed_optimizer import StepStats
from crepe_dist.parallel.fixed_point_optimizer import FixedPointOptimizer, num_step_stats
from crepe_dist.parallel.host_shared_memory import HostSharedMemory, allocate_private, open_shared
from crepe_dist.parallel.inter_host import InterHostReducer
from crepe_dist.parallel.sharded_embedding import RowSharding, ShardedEmbedding, SparseParameter

# Place of the gradients in a process's memory, behind the barrier. They begin where NumPy's large arrays do, 16 bytes
# into a page: an update reads several arrays at the same index, and takes a third longer on an Intel Xeon if their
# alignments differ.
START = mmap.PAGESIZE + 16


class SharedMemoryOptimizer(FixedPointOptimizer):
    """Optimizer that sums in shared memory and, between hosts, by all-to-all. Our own kernels update the parameters.

    Args:
        quanta: The trained parameters, and the fixed-point scales of their gradients.
        sparse: The row-sparse ones among the trained parameters.
    """

    def __init__(
        self,
        world: ProcessGroup,
        optimizer: OptimizerSpec,
        quanta: FixedPointScales,
        sparse: Sequence[SparseParameter] = (),
    ) -> None:
        super().__init__(quanta)
        self._world = world
        self._optimizer = optimizer
        by_row = {each.name for each in sparse}
        dense = {name: parameter for name, parameter in quanta.parameters.items() if name not in by_row}
        width = num_step_stats(quanta)
        self._add_whole = library.functions().crepe_sum_int32
        gradients = sum(_aligned(parameter.data.size) for parameter in dense.values())
        count = gradients + _aligned(2 * world.size * width)  # float64, as two words
        self._squares_at = START + 4 * count
        tables_at = -(-(self._squares_at + 16 * len(sparse)) // mmap.PAGESIZE) * mmap.PAGESIZE

        def memory_of(processes: int) -> int:
            return tables_at + sum(each.bytes(RowSharding(world.size, 0, processes)) for each in sparse)

        self._hosts, self._memory = open_host_memory(world, memory_of)
        memory, rank = self._memory, self._memory.rank
        self._words = [np.frombuffer(pages, np.int32, count, START) for pages in memory.segments]
        self._arrays = (ctypes.c_void_p * memory.num_processes)(*[words.ctypes.data for words in self._words])
        numbers = np.frombuffer(memory.segments[rank], np.float64, world.size * width, START + 4 * gradients)
        self._rows = numbers.reshape(world.size, width)
        offset = 0
        for parameter in dense.values():  # The kernels write the gradients into the memory of this process.
            size = parameter.data.size
            parameter.grad = self._words[rank][offset : offset + size].reshape(parameter.shape)
            offset += _aligned(size)
        self._dense = FusedOptimizer(optimizer, dense, quanta)

        self._tables: list[ShardedEmbedding] = []
        place, here = tables_at, next(at for at, host in enumerate(self._hosts) if world.rank in host)
        owners = RowSharding(world.size, sum(map(len, self._hosts[:here])), memory.num_processes)
        for each in sparse:
            memories = [np.frombuffer(pages, np.uint8, each.bytes(owners), place) for pages in memory.segments]
            self._tables.append(ShardedEmbedding(each, optimizer, owners, memories, rank))
            place += each.bytes(owners)
        self._own = owners.first_local_shard + rank

        parts = min(map(len, self._hosts))
        self._part = slice(*[count * min(part, parts) // parts for part in (rank, rank + 1)])
        self._between: InterHostReducer | None = None
        if len(self._hosts) > 1:
            peers = [host[rank] for host in self._hosts] if rank < parts else []
            self._between = InterHostReducer(world, self._hosts, peers, self._words[rank][self._part], self._tables)
            self.reduce_backend = (
                f"shared memory and {world.backend}" if max(map(len, self._hosts)) > 1 else world.backend
            )
        elif world.size > 1:
            self.reduce_backend = "shared memory"
        memory.barrier()

    def wait_for_update(self) -> None:
        self._memory.wait()  # Until all processes of the host have updated their rows.

    def pull_rows(self) -> None:
        if self._between and self._tables:
            self._memory.barrier()  # Until all processes have listed their rows.
            self._between.pull_rows()
            self._memory.barrier()

    def _add(self, loss: float, numbers: Sequence[int]) -> list[StepStats]:
        row = [*self._quanta.sum_bounds, loss, *numbers]
        self._rows[:] = 0
        self._rows[self._world.rank, : len(row)] = row
        self._memory.barrier()
        rank, part, processes = self._memory.rank, self._part, self._memory.num_processes
        into = rank if self._between else -1  # -1: write the sums into the arrays of all processes.
        self._add_whole(self._arrays, processes, into, part.start, part.stop)
        if self._between:
            self._between.all_reduce()
            for other in range(processes):
                if other != rank:
                    self._words[other][part] = self._words[rank][part]
        self._memory.barrier()
        # The rows can be read after the barrier, because a process clears its rows only in the next call. Other
        # processes write into its memory only after the barrier of that call.
        rows: list[StepStats] = self._rows.tolist()
        return rows

    def step(self, documents: float, learning_rate: float) -> None:
        scale = mean_and_clip_factor(documents, self._optimizer.clip_norm, self._squares)
        self._updates += 1
        self._dense.update(self._optimizer.bias_corrected_lr(learning_rate, self._updates), scale)
        for table in self._tables:
            table.step(learning_rate, scale * self._quanta.scale_of(table.name))
        self._memory.arrive()  # A process that reads rows waits for all arrivals first (``ready``).

    def _squares(self) -> float:
        """Return the squared norm of all summed gradients, the same on every rank. Clipping needs it."""
        total = self._dense.squared_norm()
        # Each rank sums the gradients of the rows that it owns. The ranks then exchange these sums of squares.
        own = [table.squared_norm() for table in self._tables]
        for table, squares in zip(self._tables, zip(*self._of_all(own))):
            total += sum(squares) * self._quanta.scale_of(table.name) ** 2
        return float(total)

    def _of_all(self, squares: list[int]) -> list[list[int]]:
        """Return the sums of squares of all ranks, given this rank's."""
        if self._between:
            return self._world.all_gather_object(squares, "squares")
        words = [np.frombuffer(pages, np.uint64, 2 * len(squares), self._squares_at) for pages in self._memory.segments]
        for number, of_table in enumerate(squares):
            words[self._memory.rank][2 * number : 2 * number + 2] = of_table % 2**64, of_table >> 64
        self._memory.barrier()
        return [[low + (high << 64) for low, high in each.reshape(-1, 2).tolist()] for each in words]

    def synchronize(self) -> None:
        self._memory.barrier()  # Rank 0 may still copy the rows of other processes for a saved state.
        for table in self._tables:
            table.synchronize()
        self._memory.barrier()
        for table in self._tables:
            table.copy_to_parameter()
            if self._between:
                self._between.gather_rows(table, [table.parameter.data], range(self._world.size))

    def state_dict(self) -> Arrays:
        self._memory.wait()
        arrays, is_root = super().state_dict(), self._world.is_root
        if not self._updates or not (is_root or self._between):
            return arrays
        arrays.update(self._dense.arrays())
        for table in self._tables:
            rows = table.state_dict(table.host_slice if is_root else table.shard_slice(self._own))
            if self._between:
                self._between.gather_rows(table, [*rows.values()], [0])
            drift = table.drift()
            if len(drift) > 1:
                rows[f"{table.name}.drift"] = drift
            else:
                del rows[f"{table.name}.updated"]
            arrays.update(rows)
        return arrays

    def load_state_dict(self, arrays: Arrays) -> None:
        saved = OptimizerState(arrays)
        self._dense.restore(saved)
        for table in self._tables:
            table.load_state_dict(saved)
        self._quanta.load_state_dict(saved.quanta(len(self._quanta.parameters)))
        self._updates = saved.updates
        self._memory.arrive()


def open_host_memory(world: ProcessGroup, size: Callable[[int], int]) -> tuple[list[list[int]], HostSharedMemory]:
    """Open the memory of this host's processes; every rank calls it.

    Args:
        size: function that returns the bytes of each process, given the number of processes of its host.

    Returns:
        The ranks of each host, and the memory. If one process cannot share, each is a host of its own.
    """
    if len(world.hosts) < world.size:
        host = next(host for host in world.hosts if world.rank in host)
        if memory := open_shared(world, host, size(len(host))):
            return world.hosts, memory
    return [[rank] for rank in range(world.size)], allocate_private(size(1))


def _aligned(count: int) -> int:
    """Round the number of elements of a gradient up to whole pages."""
    step = mmap.PAGESIZE // 4
    return -(-count // step) * step
