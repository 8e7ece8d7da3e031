"""Communication between hosts: all-reduce of the dense gradients, and transfer of the rows of sharded embeddings.

An all-reduce over all ranks would send every number through every rank. An all-to-all sends each number only once to
each host that needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.native import library
from crepe_dist.parallel.sharded_embedding import Int32Array, ShardedEmbedding


class InterHostReducer:
    """Reducer that sums gradient slices over the hosts, and transfers embedding rows between hosts.

    Dense gradients: one rank on each host has the same slice. These ranks divide the slice into pieces, one per rank.
    Each rank receives its piece from the other ranks, sums the piece, and sends the sum to the other ranks. This is a
    reduce-scatter, and then an all-gather. As in a ring all-reduce, each rank sends 2 (hosts - 1) / hosts times the
    size of the slice.

    Embedding rows: each row has an owner, which is a rank. Each process of a host communicates with some of the owners
    on other hosts. The process requests from these owners the rows that the batch of its host uses. Later, it sends the
    gradients of these rows, summed over its host, to the owners. Most of these sums fit into 16 bits.

    Args:
        group: Process group.
        hosts: For each host, the list of its ranks. The ranks own the shards of each embedding in this order.
        slice_peers: Ranks that have the same gradient slice as this rank, one per host, including this rank. The
            sequence is empty if this rank has no slice.
        grad_slice: Gradient slice of this rank, int32 [n]. ``all_reduce`` replaces it by the sum over the hosts.
        embeddings: Sharded embeddings.
    """

    def __init__(
        self,
        group: ProcessGroup,
        hosts: Sequence[Sequence[int]],
        slice_peers: Sequence[int],
        grad_slice: Int32Array,
        embeddings: Sequence[ShardedEmbedding],
    ) -> None:
        self._group = group
        self._slice_peers = sorted(slice_peers)
        self._grad_slice = grad_slice
        self._embeddings = embeddings
        own_host = next(host for host in hosts if group.rank in host)
        shard_ranks = [rank for host in hosts for rank in host]
        self._own_shard = shard_ranks.index(group.rank)
        # Shards whose owners are on other hosts, by owner.
        self._remote_shards = {rank: shard for shard, rank in enumerate(shard_ranks) if rank not in own_host}
        local_rank = own_host.index(group.rank)
        # The remote shards whose rows this process requests, by owner. The kernels divide the remote shards among the
        # processes of a host in the same way (RowSharding::local_process_for).
        self._requested_shards = {
            rank: shard for rank, shard in self._remote_shards.items() if shard % len(own_host) == local_rank
        }
        # The ranks that request rows of this rank's shard. There is one on each other host.
        self._requesting_ranks = [host[self._own_shard % len(host)] for host in hosts if host is not own_host]
        self._requested_rows: dict[int, list[Int32Array]] = {}  # By rank: the requested rows of each embedding.

    def pull_rows(self) -> None:
        """Fetch the values of the remote rows that this host's batch uses. Every rank must call this method."""
        for embedding in self._embeddings:
            embedding.collect_remote_rows()
        requests = {
            rank: [embedding.remote_row_ids(shard) for embedding in self._embeddings]
            for rank, shard in self._requested_shards.items()
        }
        self._requested_rows = self._send(
            requests, "rows", {rank: [None] * len(self._embeddings) for rank in self._requesting_ranks}
        )
        replies = {
            rank: [
                embedding.read_rows(self._check_rows(rows, embedding))
                for embedding, rows in zip(self._embeddings, row_lists)
            ]
            for rank, row_lists in self._requested_rows.items()
        }
        expected = {rank: [len(buffer) for buffer in self._remote_buffers(rank)] for rank in self._requested_shards}
        for rank, values in self._send(replies, "values", expected).items():
            for buffer, received in zip(self._remote_buffers(rank), values):
                buffer[:] = received

    def all_reduce(self) -> None:
        """Sum this rank's gradient slice over the hosts, and sum the gradients of the rows that this rank owns.

        Every rank must call this method.
        """
        for embedding in self._embeddings:
            embedding.reduce_remote_grads()
        num_peers = len(self._slice_peers)
        pieces = dict(zip(self._slice_peers, np.array_split(self._grad_slice, num_peers or 1)))
        empty = self._grad_slice[:0]
        # Each message contains a piece of the slice and, for each embedding, the gradients of rows that the receiver
        # owns.
        messages = {
            rank: [pieces.get(rank, empty), *map(pack_int16, self._remote_buffers(rank))]
            for rank in {*pieces, *self._requested_shards}
        }
        piece_lengths = {rank: len(piece) for rank, piece in pieces.items()}
        own_length = piece_lengths.get(self._group.rank, 0)
        expected: dict[int, list[int | None]] = {rank: [own_length] for rank in self._slice_peers}
        for rank in self._requesting_ranks:
            expected[rank] = [*expected.get(rank, [0]), *[None] * len(self._embeddings)]
        received = self._send(messages, "gradients", expected)
        for index, embedding in enumerate(self._embeddings):
            rows = [row_lists[index] for row_lists in self._requested_rows.values()]
            counts = [embedding.num_elements(rank_rows) for rank_rows in rows]
            packed = [received[rank][1 + index] for rank in self._requested_rows]
            embedding.accumulate(rows, [*map(unpack_int16, packed, counts)])
        total = sum((received[peer][0] for peer in self._slice_peers), np.zeros(1, np.int32))
        sums = self._send(
            {peer: [total] for peer in self._slice_peers},
            "sums",
            {rank: [piece_lengths[rank]] for rank in self._slice_peers},
        )
        self._grad_slice[:] = np.concatenate([empty, *(sums[peer][0] for peer in self._slice_peers)])

    def gather_rows(
        self, embedding: ShardedEmbedding, arrays: Sequence[npt.NDArray[Any]], ranks: Sequence[int]
    ) -> None:
        """Copy the rows that ranks of other hosts own into arrays. Every rank must call this method.

        Args:
            embedding: Embedding that the rows belong to.
            arrays: Arrays [rows, …] of four-byte numbers. They already contain the rows of this rank's shard. On each
                rank in ``ranks``, this method also fills in the rows that ranks of other hosts own.
            ranks: Ranks that receive the rows.
        """
        own_rows = [array[embedding.shard_slice(self._own_shard)].reshape(-1).view(np.int32) for array in arrays]
        is_receiver = self._group.rank in ranks
        slices = {rank: embedding.shard_slice(shard) for rank, shard in self._remote_shards.items() if is_receiver}
        expected = {rank: [array[rows].size for array in arrays] for rank, rows in slices.items()}
        name = f"rows of {embedding.name}"
        received = self._send({rank: own_rows for rank in ranks if rank in self._remote_shards}, name, expected)
        for rank, rank_arrays in received.items():
            for array, numbers in zip(arrays, rank_arrays):
                target = array[slices[rank]]
                target[:] = numbers.view(array.dtype).reshape(target.shape)

    def _check_rows(self, rows: Int32Array, embedding: ShardedEmbedding) -> Int32Array:
        """Validate the row ids that another rank has requested, and return them. The kernels do not validate row ids.

        Raises:
            RuntimeError: The rows are not in ascending order, or this rank does not own them.
        """
        own_rows = embedding.shard_slice(self._own_shard)
        if len(rows) and not (own_rows.start <= rows[0] and rows[-1] < own_rows.stop and (rows[1:] > rows[:-1]).all()):
            raise RuntimeError(f"another rank requested rows of {embedding.name} that this rank does not own")
        return rows

    def _remote_buffers(self, rank: int) -> list[Int32Array]:
        """Return the buffers of the rows that this rank requests from ``rank``. There is one buffer per embedding.

        The list is empty if this rank requests no rows from ``rank``.
        """
        if rank not in self._requested_shards:
            return []
        return [embedding.remote_buffer(self._requested_shards[rank]) for embedding in self._embeddings]

    def _send(
        self, messages: Mapping[int, Sequence[Int32Array]], name: str, expected: Mapping[int, Sequence[int | None]]
    ) -> dict[int, list[Int32Array]]:
        """Send a list of arrays to each rank in ``messages``. Every rank must call this method.

        Args:
            messages: Arrays to send, by receiver.
            expected: Lengths of the arrays that each sender must send. ``None`` allows any length.

        Returns:
            The received arrays, by sender.

        Raises:
            RuntimeError: The received arrays do not have the expected lengths. Without this check, a missing array
                would leave old numbers in place, and NumPy would broadcast an array of a single number.
        """
        group = self._group
        parts: list[Int32Array] = []
        counts = [0] * group.size
        for rank, arrays in sorted(messages.items()):
            header = np.array([len(arrays), *map(len, arrays)], np.int64).view(np.int32)
            parts += [header, *arrays]
            counts[rank] = len(header) + sum(map(len, arrays))
        received, sizes = group.all_to_all(np.concatenate([self._grad_slice[:0], *parts]), counts, name)
        received_messages = enumerate(np.split(received, np.cumsum(sizes)[:-1]))
        received_arrays = {rank: _split_message(message) for rank, message in received_messages if len(message)}
        for rank in sorted({*expected, *received_arrays}):
            lengths, expected_lengths = list(map(len, received_arrays.get(rank, []))), expected.get(rank, [])
            if (rank in received_arrays) != (rank in expected) or not _match(lengths, expected_lengths):
                raise RuntimeError(
                    f"rank {rank} sent {_describe_lengths(lengths)} to rank {group.rank} as {name}, "
                    f"not {_describe_lengths(expected_lengths)}"
                )
        return received_arrays


def _match(lengths: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(lengths) == len(expected) and all(limit in (None, length) for length, limit in zip(lengths, expected))


def _split_message(message: Int32Array) -> list[Int32Array]:
    """Split a message into its arrays. Its header contains the number and the lengths of the arrays, as int64 numbers.

    Raises:
        RuntimeError: The message is malformed.
    """
    words = message[: len(message) // 2 * 2].view(np.int64)
    num_arrays = int(words[0]) if len(words) else -1
    lengths, content = words[1 : 1 + num_arrays], message[2 + 2 * num_arrays :]
    if not 0 <= num_arrays < len(words) or (lengths < 0).any() or sum(lengths.tolist()) != len(content):
        raise RuntimeError(f"a message of {len(message)} words does not hold the arrays that it names")
    return np.split(content, np.cumsum(lengths)[:-1]) if num_arrays else []


def _describe_lengths(lengths: Sequence[int | None]) -> str:
    names = ["any" if length is None else str(length) for length in lengths]
    return f"arrays of lengths {', '.join(names)}" if names else "no arrays"


def pack_int16(numbers: Int32Array) -> Int32Array:
    """Compress numbers into a message. A number takes 16 bits, or 48 bits if it does not fit into 16 bits."""
    message = np.empty(-(-len(numbers) // 2) + len(numbers), np.int32)
    return message[: library.functions().crepe_pack_int16(numbers.ctypes.data, len(numbers), message.ctypes.data)]


def unpack_int16(message: Int32Array, count: int) -> Int32Array:
    """Return the ``count`` numbers of a message that ``pack_int16`` returned.

    Raises:
        RuntimeError: The message does not contain ``count`` numbers.
    """
    numbers = np.empty(count, np.int32)
    if library.functions().crepe_unpack_int16(message.ctypes.data, len(message), count, numbers.ctypes.data):
        raise RuntimeError(f"a message of {len(message)} words does not hold {count} numbers")
    return numbers
