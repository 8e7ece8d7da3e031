"""Communication between hosts: all-reduce of the dense gradients, and transfer of the rows of sharded embeddings.

An all-reduce over all ranks would send every number through every rank. Here, each number is sent only once to each
host that needs it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.distributed.messages import Bytes
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.parallel.row_exchange import DenseExchange, Received, RowExchange, check_message
from crepe_dist.parallel.sharded_embedding import Int32Array, RowSharding, ShardedEmbedding


class InterHostReducer:
    """Reducer that sums gradient slices over the hosts, and transfers embedding rows between hosts.

    Dense gradients: one rank on each host has the same slice. These ranks divide the slice into pieces, one per rank.
    Each rank receives its piece from the other ranks, sums the piece, and sends the sum to the other ranks. This is a
    reduce-scatter, and then an all-gather. As in a ring all-reduce, each rank sends 2 (hosts - 1) / hosts times the
    size of the slice.

    Embedding rows: each row has an owner, which is a rank. Each process of a host communicates with some of the owners
    on other hosts. The process requests from these owners the rows that the batch of its host uses. Later, it sends the
    gradients of these rows, summed over its host, to the owners.

    A step has two exchanges: ``exchange_grads``, and after the owners have updated their rows ``exchange_rows``. The
    first of them also requests the rows of the next batch, if the engine has already listed them.

    Args:
        group: Process group.
        hosts: For each host, the list of its ranks. The ranks own the shards of each embedding in this order.
        slice_peers: Ranks that have the same gradient slice as this rank, one per host, including this rank. The
            sequence is empty if this rank has no slice.
        grad_slice: Gradient slice of this rank, int32 [n]. The exchanges replace it by the sum over the hosts.
        stats: Statistics of all ranks, float64 [ranks, statistics], in the order of ``hosts``. The rows of this host
            are set before ``exchange_grads``, which receives the rows of other hosts. If this rank is the first of its
            host, it receives all rows.
        embeddings: Sharded embeddings.
        sharding: Division of their rows among ranks.
    """

    def __init__(
        self,
        group: ProcessGroup,
        hosts: Sequence[Sequence[int]],
        slice_peers: Sequence[int],
        grad_slice: Int32Array,
        stats: npt.NDArray[np.float64],
        embeddings: Sequence[ShardedEmbedding],
        sharding: RowSharding,
    ) -> None:
        self._group = group
        own_host = next(host for host in hosts if group.rank in host)
        owners = [rank for host in hosts for rank in host]
        self._own_shard, local_rank = owners.index(group.rank), own_host.index(group.rank)
        self._remote_shards = {rank: shard for shard, rank in enumerate(owners) if rank not in own_host}
        # The kernels divide the remote shards among the processes of a host in the same way
        # (RowSharding::local_process_for).
        requested = [rank for rank, shard in self._remote_shards.items() if shard % len(own_host) == local_rank]
        requesters = [host[self._own_shard % len(host)] for host in hosts if host is not own_host]
        slice_partners = [rank for rank in slice_peers if rank != group.rank]
        self._partners = {*requested, *requesters, *slice_partners}

        # The peers divide the slice. ``pieces`` is the start of each rank's piece, and the end of the last piece.
        pieces = np.array(
            [
                len(grad_slice) * sum(peer < rank for peer in slice_peers) // max(1, len(slice_peers))
                for rank in range(group.size + 1)
            ],
            np.int64,
        )
        own_piece = np.zeros(group.size, np.int64)
        own_piece[slice_partners] = pieces[group.rank + 1] - pieces[group.rank]

        def stats_range(host: Sequence[int]) -> tuple[int, int]:
            """Return the start and the number of the statistics of a host."""
            return owners.index(host[0]) * stats.shape[1], len(host) * stats.shape[1]

        stats_starts, stats_sizes = np.zeros((2, group.size), np.int64)
        for host in hosts:
            partners = [rank for rank in host if rank in self._partners]
            stats_starts[partners], stats_sizes[partners] = stats_range(host)
        self._arrays = grad_slice, pieces, own_piece, stats, stats_starts, stats_sizes  # Keep them alive.
        dense = DenseExchange(
            grad_slice.ctypes.data,
            pieces.ctypes.data,
            own_piece.ctypes.data,
            pieces[group.rank],
            stats.ctypes.data,
            stats_starts.ctypes.data,
            stats_sizes.ctypes.data,
            *stats_range(own_host),
        )
        self._rows = RowExchange(embeddings, sharding, local_rank, owners, requesters, dense)
        self._sums_pending = self._values_pending = False

    def exchange_grads(self, has_grads: bool, has_request: bool) -> None:
        """Sum this rank's piece of the gradients, and the gradients of the rows that this rank owns.

        Every rank must call this method, with the same arguments.

        Args:
            has_grads: False if the call only requests rows.
            has_request: True to request the remote rows of the newest batch of this host.
        """
        self._rows.read_grads(
            has_grads, has_request, self._exchange(self._rows.pack_grads(has_grads, has_request), "gradients")
        )
        self._sums_pending, self._values_pending = has_grads, has_request

    def exchange_rows(self) -> bool:
        """Complete this rank's gradient slice, and fetch the values of the rows that were requested.

        Every rank must call this method. Each part is exchanged once after each ``exchange_grads``.

        Returns:
            Whether anything was exchanged.
        """
        has_sums, has_values = self._sums_pending, self._values_pending
        if not (has_sums or has_values):
            return False
        self._rows.read_rows(has_sums, has_values, self._exchange(self._rows.pack_rows(has_sums, has_values), "rows"))
        self._sums_pending = self._values_pending = False
        return True

    def gather_rows(
        self, embedding: ShardedEmbedding, arrays: Sequence[npt.NDArray[Any]], ranks: Sequence[int]
    ) -> None:
        """Copy the rows that ranks of other hosts own into arrays. Every rank must call this method.

        Args:
            embedding: Embedding that the rows belong to.
            arrays: Arrays [rows, …] of numbers. They already contain the rows of this rank's shard. On each rank in
                ``ranks``, this method also fills in the rows that ranks of other hosts own.
            ranks: Ranks that receive the rows.
        """
        everyone, own_rows = range(self._group.size), embedding.shard_slice(self._own_shard)
        for array in arrays:
            content = array[own_rows].reshape(-1).view(np.uint8)
            messages = [content if rank in ranks and rank in self._remote_shards else content[:0] for rank in everyone]
            received = Received(*self._group.exchange(dict(enumerate(messages)), f"rows of {embedding.name}"))
            for rank, shard in self._remote_shards.items() if self._group.rank in ranks else ():
                rows = array[embedding.shard_slice(shard)]
                ((_, part),) = received.split([rank])
                check_message(part.size == rows.nbytes, rank, part.size, f"rows of {embedding.name}")
                rows[:] = part.view(array.dtype).reshape(rows.shape)

    def _exchange(self, messages: Sequence[Bytes], name: str) -> Received:
        return Received(*self._group.exchange({rank: messages[rank] for rank in self._partners}, name))
