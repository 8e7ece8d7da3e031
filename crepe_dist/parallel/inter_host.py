"""Communication between hosts: all-reduce of the dense gradients, and transfer of the rows of sharded embeddings.

An all-reduce over all ranks would send every number through every rank. Here, each number is sent only once to each
host that needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.distributed.messages import Bytes
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.parallel.row_exchange import Received, RowExchange, check_message
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

    Args:
        group: Process group.
        hosts: For each host, the list of its ranks. The ranks own the shards of each embedding in this order.
        slice_peers: Ranks that have the same gradient slice as this rank, one per host, including this rank. The
            sequence is empty if this rank has no slice.
        grad_slice: Gradient slice of this rank, int32 [n]. ``all_reduce`` replaces it by the sum over the hosts.
        embeddings: Sharded embeddings.
        sharding: Division of their rows among ranks.
    """

    def __init__(
        self,
        group: ProcessGroup,
        hosts: Sequence[Sequence[int]],
        slice_peers: Sequence[int],
        grad_slice: Int32Array,
        embeddings: Sequence[ShardedEmbedding],
        sharding: RowSharding,
    ) -> None:
        self._group = group
        self._grad_slice = grad_slice
        own_host = next(host for host in hosts if group.rank in host)
        owners = [rank for host in hosts for rank in host]
        self._own_shard, local_rank = owners.index(group.rank), own_host.index(group.rank)
        self._remote_shards = {rank: shard for shard, rank in enumerate(owners) if rank not in own_host}
        # The kernels divide the remote shards among the processes of a host in the same way
        # (RowSharding::local_process_for).
        requested = [rank for rank, shard in self._remote_shards.items() if shard % len(own_host) == local_rank]
        requesters = [host[self._own_shard % len(host)] for host in hosts if host is not own_host]
        self._rows = RowExchange(embeddings, sharding, local_rank, owners, requesters)
        # Ranks that this rank communicates with: for the rows, for the slice, and for either of them.
        self._row_partners = {*requested, *requesters}
        self._slice_partners = {*slice_peers} - {group.rank}
        self._partners = self._row_partners | self._slice_partners

        # The peers divide the slice. ``_pieces`` is the start of each rank's piece, and the end of the last piece.
        pieces = [
            len(grad_slice) * sum(peer < rank for peer in slice_peers) // max(1, len(slice_peers))
            for rank in range(group.size + 1)
        ]
        self._pieces = np.array(pieces, np.int64)
        self._piece_of = {peer: grad_slice[pieces[peer] : pieces[peer + 1]] for peer in {*slice_peers, group.rank}}
        # Each slice partner sends its gradients of this rank's piece.
        self._grad_counts = np.zeros(group.size, np.int64)
        self._grad_counts[[*self._slice_partners]] = len(self._piece_of[group.rank])

    def pull_rows(self) -> None:
        """Fetch the values of the remote rows that this host's batch uses. Every rank must call this method."""
        requests = self._exchange(self._rows.pack_requests(), self._row_partners, "rows")
        self._rows.store_replies(self._exchange(self._rows.pack_replies(requests), self._row_partners, "values"))

    def all_reduce(self) -> None:
        """Sum this rank's gradient slice over the hosts, and sum the gradients of the rows that this rank owns.

        Every rank must call this method.
        """
        own_piece = self._piece_of[self._group.rank]
        grads = self._exchange(self._rows.pack_grads(self._grad_slice, self._pieces), self._partners, "gradients")
        self._rows.add_grads(grads, self._grad_counts, own_piece)
        sums = self._exchange([own_piece.view(np.uint8)] * self._group.size, self._slice_partners, "sums")
        for rank, content in sums.split(self._slice_partners):
            check_message(content.size == self._piece_of[rank].nbytes, rank, content.size, "sums")
            self._piece_of[rank][:] = content.view(np.int32)

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
            received = self._exchange(messages, everyone, f"rows of {embedding.name}")
            for rank, shard in self._remote_shards.items() if self._group.rank in ranks else ():
                rows = array[embedding.shard_slice(shard)]
                ((_, part),) = received.split([rank])
                check_message(part.size == rows.nbytes, rank, part.size, f"rows of {embedding.name}")
                rows[:] = part.view(array.dtype).reshape(rows.shape)

    def _exchange(self, messages: Sequence[Bytes], partners: Iterable[int], name: str) -> Received:
        return Received(*self._group.exchange({rank: messages[rank] for rank in partners}, name))
