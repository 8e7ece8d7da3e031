"""Base class of worlds with bounded collectives: Horovod and MPI count bytes in 32-bit numbers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from crepe_dist.distributed.messages import HEADER_BYTES, Bytes
from crepe_dist.distributed.process_group import ProcessGroup

MAX_BYTES = 1 << 30  # that a rank sends or receives in one collective


class ChunkedProcessGroup(ProcessGroup):
    """World that sends large messages in pieces, with a head before each message.

    The first collective carries the heads, which tell all ranks how many collectives the largest message needs.
    """

    @abstractmethod
    def _bounded_all_to_all(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        """Run one collective of at most ``MAX_BYTES``, as ``_swap``; each rank sends something to itself."""

    def _all_to_all_bytes(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        self._messages.start_collective(name)
        pieces, most, own = np.split(data, np.cumsum(sizes)[:-1]), MAX_BYTES // self.size, self.rank
        others = [piece if rank != own else piece[:0] for rank, piece in enumerate(pieces)]
        largest = max(piece.size for piece in others)
        heads = [np.frombuffer(self._messages.make_header(piece, largest), np.uint8) for piece in others]
        done = most - HEADER_BYTES
        came = self._exchange_chunks([np.concatenate([head, piece[:done]]) for head, piece in zip(heads, others)], name)
        read = [self._messages.parse_header(rank, part[:HEADER_BYTES]) for rank, part in enumerate(came)]
        received = [[part[HEADER_BYTES:]] for part in came]
        filling = np.zeros(1, np.uint8)  # to itself
        for start in range(done, max(head.largest for head in read), most):
            parts = [piece[start : start + most] if rank != own else filling for rank, piece in enumerate(others)]
            for of_rank, part in zip(received, self._exchange_chunks(parts, name)):
                of_rank.append(part)
        messages = [of_rank[0] if len(of_rank) == 1 else np.concatenate(of_rank) for of_rank in received]
        for rank, message in enumerate(messages):
            if rank != own:
                self._messages.check_content(rank, message, read[rank])
        messages[own] = pieces[own]
        return np.concatenate(messages), [message.size for message in messages]

    def _exchange_chunks(self, parts: Sequence[Bytes], name: str) -> list[Bytes]:
        received, sizes = self._bounded_all_to_all(np.concatenate(parts), [part.size for part in parts], name)
        return np.split(received, np.cumsum(sizes)[:-1])
