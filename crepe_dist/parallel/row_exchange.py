"""Messages of a training step between hosts: requests for embedding rows, their values, and gradients.

``native/row_exchange.h`` packs and unpacks the messages, and defines their contents.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crepe_dist.distributed.messages import Bytes
from crepe_dist.native import library
from crepe_dist.parallel.sharded_embedding import Int32Array, RowSharding, ShardedEmbedding, check_memory

Int64Array = npt.NDArray[np.int64]


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


class RowExchange:
    """Packer and reader of the messages of this rank.

    A packed message is a view of memory that the next packed messages overwrite.

    Args:
        embeddings: Sharded embeddings.
        sharding: Division of their rows among ranks.
        local_rank: Local rank of this process.
        owners: Rank that owns each shard.
        requesters: Ranks that request rows of this process's shard.
    """

    def __init__(
        self,
        embeddings: Sequence[ShardedEmbedding],
        sharding: RowSharding,
        local_rank: int,
        owners: Sequence[int],
        requesters: Sequence[int],
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
            library.num_threads(),
        )
        check_memory(self._handle is None)
        weakref.finalize(self, self._functions.crepe_exchange_close, self._handle)
        self._embeddings = embeddings  # This reference keeps the native embeddings alive.
        self._addresses, self._sizes = (ctypes.c_int64 * len(owners))(), (ctypes.c_int64 * len(owners))()

    def pack_requests(self) -> list[Bytes]:
        """Return a message to each rank that requests the remote rows which the batch of this host uses."""
        check_memory(self._functions.crepe_exchange_pack_requests(self._handle, self._addresses, self._sizes))
        return self._messages()

    def pack_replies(self, requests: Received) -> list[Bytes]:
        """Return a message to each rank with the values of the rows that it has requested."""
        self._read("crepe_exchange_pack_replies", "rows", requests, self._addresses, self._sizes)
        return self._messages()

    def store_replies(self, replies: Received) -> None:
        """Copy the received values of rows to the shared memory of this host. Its processes read them there."""
        self._read("crepe_exchange_store_replies", "values", replies)

    def pack_grads(self, dense: Int32Array, pieces: Int64Array) -> list[Bytes]:
        """Return a message to each rank. It contains the rank's piece of the dense gradients, and its rows' gradients.

        Args:
            dense: Dense gradients, int32 [n].
            pieces: Start of each rank's piece, and the end of the last piece, int64 [ranks + 1].
        """
        check_memory(
            self._functions.crepe_exchange_pack_grads(
                self._handle, dense.ctypes.data, pieces.ctypes.data, self._addresses, self._sizes
            )
        )
        return self._messages()

    def add_grads(self, grads: Received, counts: Int64Array, dense: Int32Array) -> None:
        """Add the received dense gradients to this rank's piece, and sum the gradients of the rows of this rank.

        Args:
            counts: Number of dense gradients that each rank sends, int64 [ranks].
            dense: Piece of this rank, int32 [n].
        """
        self._read("crepe_exchange_add_grads", "gradients", grads, counts.ctypes.data, dense.ctypes.data)

    def _messages(self) -> list[Bytes]:
        # All messages are in one buffer, in the order of ranks.
        start, end = self._addresses[0], self._addresses[-1] + self._sizes[-1]
        buffer = np.asarray(_Memory(start, end - start))
        return [buffer[address - start : address - start + size] for address, size in zip(self._addresses, self._sizes)]

    def _read(self, function: str, name: str, received: Received, *arguments: Any) -> None:
        """Call a C function that reads received messages.

        Raises:
            RuntimeError: A message does not contain what this rank expects.
        """
        data, sizes, wrong_rank = received.data, (ctypes.c_int64 * len(received.sizes))(*received.sizes), ctypes.c_int()
        check_memory(
            getattr(self._functions, function)(
                self._handle, data.ctypes.data, sizes, ctypes.byref(wrong_rank), *arguments
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
