"""Messages between hosts: sums of the dense gradients, and rows of tables.

An all-reduce over all ranks would send every number through every rank; an all-to-all sends each number once to each
host that needs it.
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
    """Exchange between hosts: sums of a part of the dense gradients, and rows of tables.

    The ranks that have the same part, one on each host, add a piece of it each: they send each other these pieces, then
    the sums. A host sends 2 (hosts - 1) / hosts of the part, as in a ring.

    Each row of a table has an owner. The processes of a host deal with some owners on other hosts each: a process asks
    these for the rows that the host's batch touches, and later sends them the host's sums, most of which fit into 16
    bits.

    Args:
        hosts: ranks of each host. In this order they own the blocks of each table.
        peers: the ranks that have this part, one per host; empty if this rank has no part.
        part: this rank's part, int32 [n], which the sum replaces.
    """

    def __init__(
        self,
        group: ProcessGroup,
        hosts: Sequence[Sequence[int]],
        slice_peers: Sequence[int],
        grad_slice: Int32Array,
        embeddings: Sequence[ShardedEmbedding],
    ) -> None:
        self._world = group
        self._peers = sorted(slice_peers)
        self._part = grad_slice
        self._tables = embeddings
        host = next(host for host in hosts if group.rank in host)
        order = [rank for host in hosts for rank in host]
        self._own = order.index(group.rank)
        self._remote = {rank: owner for owner, rank in enumerate(order) if rank not in host}
        mine = host.index(group.rank)
        self._owners = {rank: owner for rank, owner in self._remote.items() if owner % len(host) == mine}
        # The ranks that deal with this owner, one on each other host.
        self._askers = [other[self._own % len(other)] for other in hosts if other is not host]
        self._requested_rows: dict[int, list[Int32Array]] = {}  # by rank: the rows of each table that it has asked for

    def pull_rows(self) -> None:
        """Get the values of the rows that this host's batch touches; every rank calls it."""
        for table in self._tables:
            table.collect_remote_rows()
        questions = {
            rank: [table.remote_row_ids(owner) for table in self._tables] for rank, owner in self._owners.items()
        }
        self._requested_rows = self._send(
            questions, "rows", {rank: [None] * len(self._tables) for rank in self._askers}
        )
        answers = {
            rank: [table.read_rows(self._check(rows, table)) for table, rows in zip(self._tables, lists)]
            for rank, lists in self._requested_rows.items()
        }
        expected = {rank: [len(kept) for kept in self._remote_buffers(rank)] for rank in self._owners}
        for rank, values in self._send(answers, "values", expected).items():
            for kept, received in zip(self._remote_buffers(rank), values):
                kept[:] = received

    def all_reduce(self) -> None:
        """Replace the part by its sum over the hosts, and complete the sums of own rows; every rank calls it."""
        for table in self._tables:
            table.reduce_remote_grads()
        pieces = dict(zip(self._peers, np.array_split(self._part, len(self._peers) or 1)))
        nothing = self._part[:0]
        messages = {
            rank: [pieces.get(rank, nothing), *map(pack_int16, self._remote_buffers(rank))]
            for rank in {*pieces, *self._owners}
        }
        sizes = {rank: len(piece) for rank, piece in pieces.items()}
        expected: dict[int, list[int | None]] = {rank: [sizes.get(self._world.rank, 0)] for rank in self._peers}
        for rank in self._askers:
            expected[rank] = [*expected.get(rank, [0]), *[None] * len(self._tables)]
        received = self._send(messages, "gradients", expected)
        for number, table in enumerate(self._tables):
            rows = [lists[number] for lists in self._requested_rows.values()]
            counts = [table.num_elements(of_rank) for of_rank in rows]
            short = [received[rank][1 + number] for rank in self._requested_rows]
            table.accumulate(rows, [*map(unpack_int16, short, counts)])
        total = sum((received[peer][0] for peer in self._peers), np.zeros(1, np.int32))
        sums = self._send(
            {peer: [total] for peer in self._peers}, "sums", {rank: [sizes[rank]] for rank in self._peers}
        )
        self._part[:] = np.concatenate([nothing, *(sums[peer][0] for peer in self._peers)])

    def gather_rows(
        self, embedding: ShardedEmbedding, arrays: Sequence[npt.NDArray[Any]], ranks: Sequence[int]
    ) -> None:
        """Copy the rows of other hosts into arrays of a table on some ranks; every rank calls it.

        Args:
            arrays: arrays [rows, …] of four bytes a number, which hold this rank's rows.
            ranks: those that get the rows.
        """
        own = [array[embedding.shard_slice(self._own)].reshape(-1).view(np.int32) for array in arrays]
        blocks = {
            rank: embedding.shard_slice(owner) for rank, owner in self._remote.items() if self._world.rank in ranks
        }
        expected = {rank: [array[block].size for array in arrays] for rank, block in blocks.items()}
        name = f"rows of {embedding.name}"
        received = self._send({rank: own for rank in ranks if rank in self._remote}, name, expected)
        for rank, parts in received.items():
            for array, part in zip(arrays, parts):
                rows = array[blocks[rank]]
                rows[:] = part.view(array.dtype).reshape(rows.shape)

    def _check(self, rows: Int32Array, table: ShardedEmbedding) -> Int32Array:
        """Return rows that another rank has asked for; the kernels cannot check them.

        Raises:
            RuntimeError: they do not ascend, or are not this rank's.
        """
        own = table.shard_slice(self._own)
        if len(rows) and not (own.start <= rows[0] and rows[-1] < own.stop and (rows[1:] > rows[:-1]).all()):
            raise RuntimeError(f"another rank asked for rows of {table.name} that this one does not own")
        return rows

    def _remote_buffers(self, rank: int) -> list[Int32Array]:
        """Return the numbers of the rows of each table for which this rank has asked another, if it asks that one."""
        return [table.remote_buffer(self._owners[rank]) for table in self._tables] if rank in self._owners else []

    def _send(
        self, messages: Mapping[int, Sequence[Int32Array]], name: str, expected: Mapping[int, Sequence[int | None]]
    ) -> dict[int, list[Int32Array]]:
        """Send lists of arrays to ranks, and return the lists that came, by rank; every rank calls it.

        Args:
            expected: lengths of the arrays that each rank sends; ``None`` for any length.

        Raises:
            RuntimeError: other arrays came. A missing one would leave old numbers in place, and one number would be
                copied to all.
        """
        world = self._world
        parts: list[Int32Array] = []
        counts = [0] * world.size
        for rank, own in sorted(messages.items()):
            head = np.array([len(own), *map(len, own)], np.int64).view(np.int32)
            parts += [head, *own]
            counts[rank] = len(head) + sum(map(len, own))
        received, sizes = world.all_to_all(np.concatenate([self._part[:0], *parts]), counts, name)
        came = enumerate(np.split(received, np.cumsum(sizes)[:-1]))
        lists = {rank: _arrays(message) for rank, message in came if len(message)}
        for rank in sorted({*expected, *lists}):
            lengths, wanted = [len(each) for each in lists.get(rank, [])], expected.get(rank, [])
            if (rank in lists) != (rank in expected) or not _fit(lengths, wanted):
                raise RuntimeError(
                    f"rank {rank} sent {_described(lengths)} to rank {world.rank} as {name}, not {_described(wanted)}"
                )
        return lists


def _fit(lengths: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(lengths) == len(wanted) and all(want in (None, length) for length, want in zip(lengths, wanted))


def _arrays(message: Int32Array) -> list[Int32Array]:
    """Split a message into its arrays.

    Raises:
        RuntimeError: it is malformed.
    """
    words = message[: len(message) // 2 * 2].view(np.int64)
    number = int(words[0]) if len(words) else -1
    lengths, numbers = words[1 : 1 + number], message[2 + 2 * number :]
    if not 0 <= number < len(words) or (lengths < 0).any() or sum(lengths.tolist()) != len(numbers):
        raise RuntimeError(f"a message of {len(message)} words does not hold the arrays that it names")
    return np.split(numbers, np.cumsum(lengths)[:-1]) if number else []


def _described(lengths: Sequence[int | None]) -> str:
    names = ["any" if each is None else str(each) for each in lengths]
    return f"arrays of lengths {', '.join(names)}" if names else "no arrays"


def pack_int16(numbers: Int32Array) -> Int32Array:
    """Return a message of numbers: 16 bits each, and 32 more for each that does not fit into them."""
    message = np.empty(-(-len(numbers) // 2) + len(numbers), np.int32)
    return message[: library.functions().crepe_pack_int16(numbers.ctypes.data, len(numbers), message.ctypes.data)]


def unpack_int16(message: Int32Array, count: int) -> Int32Array:
    """Return the numbers of a message.

    Raises:
        RuntimeError: the message has not that count of numbers.
    """
    numbers = np.empty(count, np.int32)
    if library.functions().crepe_unpack_int16(message.ctypes.data, len(message), count, numbers.ctypes.data):
        raise RuntimeError(f"a message of {len(message)} words does not hold {count} numbers")
    return numbers
