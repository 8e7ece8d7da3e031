"""Base class of the process groups whose backend limits the size of a collective.

Horovod and MPI count the bytes of a collective in 32-bit integers.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from crepe_dist.distributed.messages import HEADER_BYTES, Bytes
from crepe_dist.distributed.process_group import NO_BYTES, ProcessGroup

MAX_BYTES = 1 << 30  # Maximum number of bytes that a rank sends, or receives, in one collective.


class ChunkedProcessGroup(ProcessGroup):
    """Process group that splits a large message into chunks, and sends each chunk in a collective of its own.

    A header precedes each message. The first collective sends all headers with the first chunks. From the headers, each
    rank computes how many collectives the largest message needs, so all ranks run the same number of collectives.
    """

    @abstractmethod
    def _bounded_all_to_all(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        """Run one all-to-all of at most ``MAX_BYTES`` bytes. Each rank sends at least one byte to itself."""

    def _exchange(self, messages: Mapping[int, Bytes], name: str) -> tuple[Bytes, list[int]]:
        self._messages.start_collective(name)
        chunk_size, own = MAX_BYTES // self.size, self.rank
        # The message of this rank to itself is not sent, but copied at the end.
        outgoing = [messages.get(rank, NO_BYTES) if rank != own else NO_BYTES for rank in range(self.size)]
        largest = max(message.size for message in outgoing)
        headers = [np.frombuffer(self._messages.make_header(message, largest), np.uint8) for message in outgoing]
        first_size = chunk_size - HEADER_BYTES
        first_chunks = self._exchange_chunks(
            [np.concatenate([header, message[:first_size]]) for header, message in zip(headers, outgoing)], name
        )
        received_headers = [
            self._messages.parse_header(rank, chunk[:HEADER_BYTES].tobytes()) for rank, chunk in enumerate(first_chunks)
        ]
        chunks_by_rank = [[chunk[HEADER_BYTES:]] for chunk in first_chunks]
        dummy = np.zeros(1, np.uint8)  # The byte that this rank sends to itself; see ``_bounded_all_to_all``.
        for start in range(first_size, max(header.largest for header in received_headers), chunk_size):
            chunks = [
                message[start : start + chunk_size] if rank != own else dummy for rank, message in enumerate(outgoing)
            ]
            for rank_chunks, chunk in zip(chunks_by_rank, self._exchange_chunks(chunks, name)):
                rank_chunks.append(chunk)
        received = [chunks[0] if len(chunks) == 1 else np.concatenate(chunks) for chunks in chunks_by_rank]
        for rank, message in enumerate(received):
            if rank != own:
                self._messages.check_content(rank, message, received_headers[rank])
        received[own] = messages.get(own, NO_BYTES)
        return np.concatenate(received), [message.size for message in received]

    def _exchange_chunks(self, chunks: Sequence[Bytes], name: str) -> list[Bytes]:
        """Send one chunk to each rank in one collective. Return the received chunks in the order of ranks."""
        received, sizes = self._bounded_all_to_all(np.concatenate(chunks), [chunk.size for chunk in chunks], name)
        return np.split(received, np.cumsum(sizes)[:-1])
