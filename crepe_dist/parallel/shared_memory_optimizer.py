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
        group: ProcessGroup,
        optimizer: OptimizerSpec,
        scales: FixedPointScales,
        sparse_parameters: Sequence[SparseParameter] = (),
    ) -> None:
        super().__init__(scales)
        self._group = group
        self._optimizer = optimizer
        by_row = {each.name for each in sparse_parameters}
        dense = {name: parameter for name, parameter in scales.parameters.items() if name not in by_row}
        width = num_step_stats(scales)
        self._add_whole = library.functions().crepe_sum_int32
        gradients = sum(_aligned(parameter.data.size) for parameter in dense.values())
        count = gradients + _aligned(2 * group.size * width)  # float64, as two words
        self._squares_at = START + 4 * count
        tables_at = -(-(self._squares_at + 16 * len(sparse_parameters)) // mmap.PAGESIZE) * mmap.PAGESIZE

        def memory_of(processes: int) -> int:
            return tables_at + sum(
                each.segment_bytes(RowSharding(group.size, 0, processes)) for each in sparse_parameters
            )

        self._hosts, self._memory = open_host_memory(group, memory_of)
        memory, rank = self._memory, self._memory.local_rank
        self._words = [np.frombuffer(pages, np.int32, count, START) for pages in memory.segments]
        self._arrays = (ctypes.c_void_p * memory.num_processes)(*[words.ctypes.data for words in self._words])
        numbers = np.frombuffer(memory.segments[rank], np.float64, group.size * width, START + 4 * gradients)
        self._rows = numbers.reshape(group.size, width)
        offset = 0
        for parameter in dense.values():  # The kernels write the gradients into the memory of this process.
            size = parameter.data.size
            parameter.grad = self._words[rank][offset : offset + size].reshape(parameter.shape)
            offset += _aligned(size)
        self._dense_optimizer = FusedOptimizer(optimizer, dense, scales)

        self._embeddings: list[ShardedEmbedding] = []
        place, here = tables_at, next(at for at, host in enumerate(self._hosts) if group.rank in host)
        owners = RowSharding(group.size, sum(map(len, self._hosts[:here])), memory.num_processes)
        for each in sparse_parameters:
            memories = [np.frombuffer(pages, np.uint8, each.segment_bytes(owners), place) for pages in memory.segments]
            self._embeddings.append(ShardedEmbedding(each, optimizer, owners, memories, rank))
            place += each.segment_bytes(owners)
        self._own = owners.first_local_shard + rank

        parts = min(map(len, self._hosts))
        self._part = slice(*[count * min(part, parts) // parts for part in (rank, rank + 1)])
        self._inter_host: InterHostReducer | None = None
        if len(self._hosts) > 1:
            peers = [host[rank] for host in self._hosts] if rank < parts else []
            self._inter_host = InterHostReducer(
                group, self._hosts, peers, self._words[rank][self._part], self._embeddings
            )
            self.reduce_backend = (
                f"shared memory and {group.backend}" if max(map(len, self._hosts)) > 1 else group.backend
            )
        elif group.size > 1:
            self.reduce_backend = "shared memory"
        memory.barrier()

    def wait_for_update(self) -> None:
        self._memory.wait()  # Until all processes of the host have updated their rows.

    def pull_rows(self) -> None:
        if self._inter_host and self._embeddings:
            self._memory.barrier()  # Until all processes have listed their rows.
            self._inter_host.pull_rows()
            self._memory.barrier()

    def _sum_gradients(self, loss: float, step_info: Sequence[int]) -> list[StepStats]:
        row = [*self._scales.sum_bounds, loss, *step_info]
        self._rows[:] = 0
        self._rows[self._group.rank, : len(row)] = row
        self._memory.barrier()
        rank, part, processes = self._memory.local_rank, self._part, self._memory.num_processes
        into = rank if self._inter_host else -1  # -1: write the sums into the arrays of all processes.
        self._add_whole(self._arrays, processes, into, part.start, part.stop)
        if self._inter_host:
            self._inter_host.all_reduce()
            for other in range(processes):
                if other != rank:
                    self._words[other][part] = self._words[rank][part]
        self._memory.barrier()
        # The rows can be read after the barrier, because a process clears its rows only in the next call. Other
        # processes write into its memory only after the barrier of that call.
        rows: list[StepStats] = self._rows.tolist()
        return rows

    def step(self, global_batch_size: float, learning_rate: float) -> None:
        scale = mean_and_clip_factor(global_batch_size, self._optimizer.clip_norm, self._squared_norm)
        self._num_updates += 1
        self._dense_optimizer.step(self._optimizer.bias_corrected_lr(learning_rate, self._num_updates), scale)
        for table in self._embeddings:
            table.step(learning_rate, scale * self._scales.scale_of(table.name))
        self._memory.arrive()  # A process that reads rows waits for all arrivals first (``ready``).

    def _squared_norm(self) -> float:
        """Return the squared norm of all summed gradients, the same on every rank. Clipping needs it."""
        total = self._dense_optimizer.squared_norm()
        # Each rank sums the gradients of the rows that it owns. The ranks then exchange these sums of squares.
        own = [table.squared_norm() for table in self._embeddings]
        for table, squares in zip(self._embeddings, zip(*self._of_all(own))):
            total += sum(squares) * self._scales.scale_of(table.name) ** 2
        return float(total)

    def _of_all(self, squares: list[int]) -> list[list[int]]:
        """Return the sums of squares of all ranks, given this rank's."""
        if self._inter_host:
            return self._group.all_gather_object(squares, "squares")
        words = [np.frombuffer(pages, np.uint64, 2 * len(squares), self._squares_at) for pages in self._memory.segments]
        for number, of_table in enumerate(squares):
            words[self._memory.local_rank][2 * number : 2 * number + 2] = of_table % 2**64, of_table >> 64
        self._memory.barrier()
        return [[low + (high << 64) for low, high in each.reshape(-1, 2).tolist()] for each in words]

    def synchronize(self) -> None:
        self._memory.barrier()  # Rank 0 may still copy the rows of other processes for a saved state.
        for table in self._embeddings:
            table.synchronize()
        self._memory.barrier()
        for table in self._embeddings:
            table.copy_to_parameter()
            if self._inter_host:
                self._inter_host.gather_rows(table, [table.parameter.data], range(self._group.size))

    def state_dict(self) -> Arrays:
        self._memory.wait()
        arrays, is_root = super().state_dict(), self._group.is_root
        if not self._num_updates or not (is_root or self._inter_host):
            return arrays
        arrays.update(self._dense_optimizer.state_dict())
        for table in self._embeddings:
            rows = table.state_dict(table.host_slice if is_root else table.shard_slice(self._own))
            if self._inter_host:
                self._inter_host.gather_rows(table, [*rows.values()], [0])
            drift = table.drift_history()
            if len(drift) > 1:
                rows[f"{table.name}.drift"] = drift
            else:
                del rows[f"{table.name}.updated"]
            arrays.update(rows)
        return arrays

    def load_state_dict(self, arrays: Arrays) -> None:
        saved = OptimizerState(arrays)
        self._dense_optimizer.load_state_dict(saved)
        for table in self._embeddings:
            table.load_state_dict(saved)
        self._scales.load_state_dict(saved.exponents(len(self._scales.parameters)))
        self._num_updates = saved.num_updates
        self._memory.arrive()


def open_host_memory(
    group: ProcessGroup, segment_bytes: Callable[[int], int]
) -> tuple[list[list[int]], HostSharedMemory]:
    """Open the memory of this host's processes; every rank calls it.

    Args:
        size: function that returns the bytes of each process, given the number of processes of its host.

    Returns:
        The ranks of each host, and the memory. If one process cannot share, each is a host of its own.
    """
    if len(group.hosts) < group.size:
        host = next(host for host in group.hosts if group.rank in host)
        if memory := open_shared(group, host, segment_bytes(len(host))):
            return group.hosts, memory
    return [[rank] for rank in range(group.size)], allocate_private(segment_bytes(1))


def _aligned(count: int) -> int:
    """Round the number of elements of a gradient up to whole pages."""
    step = mmap.PAGESIZE // 4
    return -(-count // step) * step
