"""Messages of a training step between hosts: gradients, requests for embedding rows, and values of rows.

``native/row_exchange.h`` packs and unpacks the messages, and defines their contents.
"""

import ctypes
import itertools
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from crepe_dist.distributed.messages import Bytes
from crepe_dist.native import library
from crepe_dist.parallel.sharded_embedding import RowSharding, ShardedEmbedding, check_memory


class Received(NamedTuple):
    """Messages from all ranks.

    Attributes:
        data: Concatenated messages, in the order of ranks.
        sizes: Number of bytes from each rank.
    """

    data: Bytes
    sizes: Sequence[int]

    def split(self, ranks: Iterable[int]) -> Iterator[tuple[int, Bytes]]:
        """Yield some of the ranks and their messages."""
        ends = list(itertools.accumulate(self.sizes))
        for rank in ranks:
            yield rank, self.data[ends[rank] - self.sizes[rank] : ends[rank]]


class DenseExchange(ctypes.Structure):
    """Arrays that a rank exchanges with other ranks besides rows. ``native/row_exchange.h`` has the same struct.

    Attributes:
        grads: Address of this rank's slice of the dense gradients, int32.
        pieces: Address of the start of each rank's piece, and the end of the last piece, int64 [ranks + 1].
        own_piece: Address of int64 [ranks]: size of this rank's piece for the ranks with the same slice, 0 for others.
        own_piece_start: Start of this rank's piece.
        stats: Address of the statistics of all processes, float64.
        stats_starts: Address of the start of the statistics of each rank's host, int64 [ranks].
        stats_sizes: Address of the number of statistics of each rank's host, int64 [ranks]. The number is 0 if this
            rank exchanges nothing with the rank.
        stats_start: Start of the statistics of this host.
        stats_size: Number of statistics of this host.
    """

    _fields_ = (
        ("grads", ctypes.c_void_p), ("pieces", ctypes.c_void_p), ("own_piece", ctypes.c_void_p),
        ("own_piece_start", ctypes.c_int64), ("stats", ctypes.c_void_p), ("stats_starts", ctypes.c_void_p),
        ("stats_sizes", ctypes.c_void_p), ("stats_start", ctypes.c_int64), ("stats_size", ctypes.c_int64),
    )  # fmt: skip


class RowExchange:
    """Packer and reader of the messages of this rank.

    A packed message is a view of memory that the next packed messages overwrite. The arguments of the methods say
    which parts the messages have.

    Args:
        embeddings: Sharded embeddings.
        sharding: Division of their rows among ranks.
        local_rank: Local rank of this process.
        owners: Rank that owns each shard.
        requesters: Ranks that request rows of this process's shard.
        dense: Everything that is exchanged besides rows. The caller keeps the arrays alive.
    """

    def __init__(
        self,
        embeddings: Sequence[ShardedEmbedding],
        sharding: RowSharding,
        local_rank: int,
        owners: Sequence[int],
        requesters: Sequence[int],
        dense: DenseExchange,
    ) -> None:
        self._functions = library.functions()
        self._handle = self._functions.crepe_exchange_open(
            (ctypes.c_void_p * len(embeddings))(*[embedding.handle for embedding in embeddings]),
            len(embeddings),
            ctypes.byref(sharding),
            local_rank,
            len(owners),
            (ctypes.c_int * len(owners))(*owners),
            (ctypes.c_int * len(requesters))(*requesters),
            len(requesters),
            ctypes.byref(dense),
            library.num_threads(),
        )
        check_memory(self._handle is None)
        weakref.finalize(self, self._functions.crepe_exchange_close, self._handle)
        self._embeddings = embeddings  # This reference keeps the native embeddings alive.
        self._addresses, self._sizes = (ctypes.c_int64 * len(owners))(), (ctypes.c_int64 * len(owners))()

    def pack_grads(self, has_grads: bool, has_request: bool) -> list[Bytes]:
        """Return a message to each rank, with gradients and a request for the remote rows of the newest batch."""
        return self._pack("crepe_exchange_pack_grads", has_grads, has_request)

    def read_grads(self, has_grads: bool, has_request: bool, received: Received) -> None:
        """Add the gradients for this rank's piece and rows, and store the statistics and the requests."""
        self._read("crepe_exchange_read_grads", "gradients", has_grads, has_request, received)

    def pack_rows(self, has_sums: bool, has_values: bool) -> list[Bytes]:
        """Return a message to each rank, with the sum of this rank's piece and the values of the requested rows."""
        return self._pack("crepe_exchange_pack_rows", has_sums, has_values)

    def read_rows(self, has_sums: bool, has_values: bool, received: Received) -> None:
        """Store the sums of the other pieces, and copy the values to the shared memory that this host reads."""
        self._read("crepe_exchange_read_rows", "rows", has_sums, has_values, received)

    def _pack(self, function: str, *parts: bool) -> list[Bytes]:
        check_memory(getattr(self._functions, function)(self._handle, *parts, self._addresses, self._sizes))
        # All messages are in one buffer, in the order of ranks.
        start, end = self._addresses[0], self._addresses[-1] + self._sizes[-1]
        buffer = np.asarray(_Memory(start, end - start))
        return [buffer[address - start : address - start + size] for address, size in zip(self._addresses, self._sizes)]

    def _read(self, function: str, name: str, first_part: bool, second_part: bool, received: Received) -> None:
        """Call a C function that reads received messages.

        Raises:
            RuntimeError: A message does not contain what this rank expects.
        """
        data, sizes, wrong_rank = received.data, (ctypes.c_int64 * len(received.sizes))(*received.sizes), ctypes.c_int()
        check_memory(
            getattr(self._functions, function)(
                self._handle, first_part, second_part, data.ctypes.data, sizes, ctypes.byref(wrong_rank)
            )
        )
        check_message(wrong_rank.value < 0, wrong_rank.value, sizes[wrong_rank.value], name)


class _Memory:
    """Memory that NumPy can view. In contrast to an array of ctypes, it creates no class for each size."""

    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": (size,), "typestr": "|u1", "version": 3}


def check_message(is_right: bool, rank: int, size: int, name: str) -> None:
    """Check the result of the validation of a message.

    Raises:
        RuntimeError: The message is wrong.
    """
    if not is_right:
        raise RuntimeError(f"rank {rank} sent {size} bytes as {name}, which do not contain what this rank expects")
