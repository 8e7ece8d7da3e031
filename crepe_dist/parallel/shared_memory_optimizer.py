"""Distributed optimizer on CPUs: all-reduce of fixed-point gradients in shared memory and between hosts.

Each process keeps its dense gradients in a memory segment that all processes of its host map. After the gradients, the
segment contains the statistics of the process, and the statistics of all ranks. Rank k of a host sums slice k of the
segments of its host. If there are several hosts, one rank on each host has the same slice, and these ranks then sum the
slice over the hosts by an all-to-all. If hosts have different numbers of processes, the surplus ranks have no slice.

Each row of an n-gram table has one owner among all ranks. The owner sums the gradients of the row and updates the row.
If all ranks are on one host, the owner does both in ``step``. If any process cannot share memory, each process is
treated as a host of its own.

If there are several hosts, a step waits for other hosts only twice (``InterHostReducer``). ``all_reduce`` sends the
gradients together with a request for the rows of the next batch. ``step`` updates the rows, sends the sums of the
dense gradients together with the requested rows, and then updates the dense parameters.
"""

import ctypes
import mmap
from collections.abc import Callable, Sequence

import numpy as np

from crepe_dist.data.arrays import Arrays
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.native import library
from crepe_dist.optim.fixed_point import FixedPointScales
from crepe_dist.optim.optimizer_state import OptimizerState
from crepe_dist.optim.optimizers import FusedOptimizer, OptimizerSpec, batch_factor
from crepe_dist.parallel.distributed_optimizer import StepStats
from crepe_dist.parallel.fixed_point_optimizer import FixedPointOptimizer, num_step_stats
from crepe_dist.parallel.host_shared_memory import HostSharedMemory, allocate_private, open_shared
from crepe_dist.parallel.inter_host import InterHostReducer
from crepe_dist.parallel.sharded_embedding import RowSharding, ShardedEmbedding, SparseParameter

# Offset in bytes of the gradients in a process's segment. The first page of the segment is for the barrier. The
# gradients start 16 bytes after the start of a page, like the data of NumPy's large arrays. An update reads several
# arrays at the same index, and takes a third longer on an Intel Xeon if the arrays have different alignments.
GRADIENTS_OFFSET = mmap.PAGESIZE + 16


class SharedMemoryOptimizer(FixedPointOptimizer):
    """Optimizer that sums gradients in two stages: in shared memory on each host, and by an all-to-all between hosts.

    Our own CPU kernels update the parameters.

    Args:
        group: Process group.
        optimizer: Hyperparameters of the optimizer.
        scales: The trained parameters, and the fixed-point scales of their gradients.
        sparse_parameters: The row-sparse parameters among the trained parameters.
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
        sparse_names = {sparse_parameter.name for sparse_parameter in sparse_parameters}
        dense = {name: parameter for name, parameter in scales.parameters.items() if name not in sparse_names}
        num_stats = num_step_stats(scales)
        self._sum_int32 = library.functions().crepe_sum_int32
        num_gradients = sum(_aligned(parameter.data.size) for parameter in dense.values())
        stats_offset = GRADIENTS_OFFSET + 4 * num_gradients
        stats_end = stats_offset + 8 * (1 + group.size) * num_stats
        embeddings_offset = -(-stats_end // mmap.PAGESIZE) * mmap.PAGESIZE

        def segment_bytes(num_processes: int) -> int:
            sharding = RowSharding(group.size, 0, num_processes)
            return embeddings_offset + sum(sparse.segment_bytes(sharding) for sparse in sparse_parameters)

        self._hosts, self._memory = open_host_memory(group, segment_bytes, "they exchange messages, which is slower")
        memory, local_rank = self._memory, self._memory.local_rank
        self._words = [np.frombuffer(segment, np.int32, num_gradients, GRADIENTS_OFFSET) for segment in memory.segments]
        self._word_addresses = (ctypes.c_void_p * memory.num_processes)(*[words.ctypes.data for words in self._words])
        # For each process of this host: its statistics, and the statistics of all ranks that it has collected, in the
        # order of shards.
        stats = [
            np.frombuffer(segment, np.float64, (1 + group.size) * num_stats, stats_offset).reshape(-1, num_stats)
            for segment in memory.segments
        ]
        self._process_stats, self._stats = [rows[0] for rows in stats], [rows[1:] for rows in stats]
        offset = 0
        for parameter in dense.values():  # The kernels write the gradients into the segment of this process.
            size = parameter.data.size
            parameter.grad = self._words[local_rank][offset : offset + size].reshape(parameter.shape)
            offset += _aligned(size)
        self._dense_optimizer = FusedOptimizer(optimizer, dense, scales)

        self._embeddings: list[ShardedEmbedding] = []
        offset = embeddings_offset
        host_index = next(index for index, host_ranks in enumerate(self._hosts) if group.rank in host_ranks)
        sharding = RowSharding(group.size, sum(map(len, self._hosts[:host_index])), memory.num_processes)
        for sparse in sparse_parameters:
            num_bytes = sparse.segment_bytes(sharding)
            segments = [np.frombuffer(segment, np.uint8, num_bytes, offset) for segment in memory.segments]
            self._embeddings.append(ShardedEmbedding(sparse, optimizer, sharding, segments, local_rank))
            offset += num_bytes
        self._own_shard = sharding.first_local_shard + local_rank
        self._host_shards = slice(sharding.first_local_shard, sharding.first_local_shard + memory.num_processes)
        owners = [rank for host_ranks in self._hosts for rank in host_ranks]
        self._shard_of_rank = np.argsort(owners)

        num_slices = min(map(len, self._hosts))
        self._slice = slice(
            *[num_gradients * min(index, num_slices) // num_slices for index in (local_rank, local_rank + 1)]
        )
        self._inter_host: InterHostReducer | None = None
        self._has_request = False  # Whether the next ``all_reduce`` requests rows.
        if len(self._hosts) > 1:
            slice_peers = [host_ranks[local_rank] for host_ranks in self._hosts] if local_rank < num_slices else []
            grad_slice = self._words[local_rank][self._slice]
            self._inter_host = InterHostReducer(
                group, self._hosts, slice_peers, grad_slice, self._stats[local_rank], self._embeddings, sharding
            )
            self.reduce_backend = (
                f"shared memory and {group.backend}" if max(map(len, self._hosts)) > 1 else group.backend
            )
        elif group.size > 1:
            self.reduce_backend = "shared memory"
        memory.barrier()

    @property
    def requests_rows(self) -> bool:
        """True if rows are requested from other hosts.

        In this case, the engine lists the rows of each batch one step ahead, and calls ``request_next_rows``.
        """
        return bool(self._inter_host and self._embeddings)

    def request_next_rows(self) -> None:
        """Let the next ``all_reduce`` request the rows of the next batch, which the engine has just listed."""
        self._has_request = True

    def wait_for_update(self) -> None:
        """Wait until the other processes of this host have updated the rows that they own."""
        self._complete_exchange()  # Something is left to exchange only if ``step`` was not called.
        self._memory.wait()

    def pull_rows(self) -> None:
        """Fetch the rows that the batch uses and that ranks of other hosts own.

        The engine must have listed the rows of the batch before this call.
        """
        if self._inter_host and self.requests_rows:
            self._memory.barrier()  # Wait until all processes have listed their rows.
            self._inter_host.exchange_grads(has_grads=False, has_request=True)
            self._complete_exchange()

    def _sum_gradients(self, loss: float, step_info: Sequence[int]) -> list[StepStats]:
        local_rank, grad_slice, num_processes = self._memory.local_rank, self._slice, self._memory.num_processes
        own_stats = [*self._scales.sum_bounds, loss, *step_info]
        self._process_stats[local_rank][: len(own_stats)] = own_stats
        self._memory.barrier()
        self._stats[local_rank][self._host_shards] = self._process_stats
        # If there are several hosts, the sum is written only into the segment of this process. If there is one host
        # (-1), the sum is written into the segments of all processes.
        target = local_rank if self._inter_host else -1
        self._sum_int32(self._word_addresses, num_processes, target, grad_slice.start, grad_slice.stop)
        if self._inter_host:
            self._inter_host.exchange_grads(has_grads=True, has_request=self._has_request)
            self._has_request = False
        self._memory.barrier()
        # Process 0 has the statistics of all ranks. It changes them only in its next call of this method, after the
        # first barrier of that call.
        stats: list[StepStats] = self._stats[0][self._shard_of_rank].tolist()
        return stats

    def _complete_exchange(self) -> None:
        """Complete the sums of the dense gradients, and fetch the requested rows."""
        if self._inter_host and self._inter_host.exchange_rows():
            own_words = self._words[self._memory.local_rank][self._slice]
            for peer, words in enumerate(self._words):
                if peer != self._memory.local_rank:
                    words[self._slice] = own_words
            self._memory.barrier()

    def step(self, global_batch_size: float, learning_rate: float) -> None:
        factor = batch_factor(global_batch_size)
        grad_factor = factor * float(np.float32(1 / global_batch_size))
        learning_rate *= factor
        self._num_updates += 1
        for embedding in self._embeddings:
            embedding.step(learning_rate, grad_factor * self._scales.scale_of(embedding.name))
        self._complete_exchange()
        self._dense_optimizer.step(self._optimizer.bias_corrected_lr(learning_rate, self._num_updates), grad_factor)
        self._memory.arrive()  # ``wait_for_update`` waits for the arrival of all processes before rows are read.

    def synchronize(self) -> None:
        self._memory.barrier()  # Rank 0 may still be copying rows of other processes into a saved state.
        for embedding in self._embeddings:
            embedding.synchronize()
        self._memory.barrier()
        for embedding in self._embeddings:
            embedding.copy_to_parameter()
            if self._inter_host:
                self._inter_host.gather_rows(embedding, [embedding.parameter.data], range(self._group.size))

    def state_dict(self) -> Arrays:
        self._memory.wait()
        arrays, is_root = super().state_dict(), self._group.is_root
        if not self._num_updates or not (is_root or self._inter_host):
            return arrays
        arrays.update(self._dense_optimizer.state_dict())
        for embedding in self._embeddings:
            # Rank 0 reads all rows of its host in shared memory. A rank of another host sends the rows of its shard.
            rows = embedding.host_slice if is_root else embedding.shard_slice(self._own_shard)
            embedding_arrays = embedding.state_dict(rows)
            if self._inter_host:
                self._inter_host.gather_rows(embedding, [*embedding_arrays.values()], [0])
            drift = embedding.drift_history()
            if len(drift) > 1:
                embedding_arrays[f"{embedding.name}.lazy_drift"] = drift
            else:  # All rows are up to date.
                del embedding_arrays[f"{embedding.name}.last_update"]
            arrays.update(embedding_arrays)
        return arrays

    def load_state_dict(self, arrays: Arrays) -> None:
        state = OptimizerState(arrays)
        self._dense_optimizer.load_state_dict(state)
        for embedding in self._embeddings:
            embedding.load_state_dict(state)
        self._scales.load_state_dict(state.exponents(len(self._scales.parameters)))
        self._num_updates = state.num_updates
        self._memory.arrive()


def open_host_memory(
    group: ProcessGroup, segment_bytes: Callable[[int], int], consequence: str
) -> tuple[list[list[int]], HostSharedMemory]:
    """Open the memory that the processes of this host share. Every rank must call this function.

    Args:
        segment_bytes: Function that returns the size of a process's segment in bytes, given the number of processes of
            its host.
        consequence: See ``open_shared``.

    Returns:
        The ranks of each host, and the memory. If any process cannot share memory, each process is treated as a host of
        its own.
    """
    if len(group.hosts) < group.size:
        host_ranks = next(host_ranks for host_ranks in group.hosts if group.rank in host_ranks)
        if memory := open_shared(group, host_ranks, segment_bytes(len(host_ranks)), consequence):
            return group.hosts, memory
    return [[rank] for rank in range(group.size)], allocate_private(segment_bytes(1))


def _aligned(num_words: int) -> int:
    """Round a number of int32 words up to whole pages."""
    page_words = mmap.PAGESIZE // 4
    return -(-num_words // page_words) * page_words
