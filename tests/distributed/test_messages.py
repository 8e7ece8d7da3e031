"""Process groups with collectives of limited size."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest

from crepe_dist.distributed import chunked_messages
from crepe_dist.distributed.chunked_messages import ChunkedProcessGroup
from crepe_dist.distributed.messages import HEADER_BYTES, Bytes
from crepe_dist.errors import UserError

SIZE = 3


class ThreadGroup(ChunkedProcessGroup):
    """Process group of threads that records the sizes of its collectives."""

    sent: ClassVar[list[Any]] = []  # Messages to each rank, by sender.
    barrier = threading.Barrier(SIZE)
    sizes: ClassVar[list[int]] = []
    damaged = ""

    def _bounded_all_to_all(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        ThreadGroup.sent = ThreadGroup.sent if len(ThreadGroup.sent) == SIZE else [None] * SIZE
        self.barrier.wait(20)
        ThreadGroup.sent[self.rank] = np.split(data, np.cumsum(sizes)[:-1])
        self.barrier.wait(20)
        received = [messages[self.rank] for messages in ThreadGroup.sent]
        if name == self.damaged and self.rank == 0 and len(received[2]):
            received[2] = received[2] ^ np.uint8(1)
        self.barrier.wait(20)
        ThreadGroup.sizes += [sum(sizes), sum(map(len, received))]
        return np.concatenate(received), list(map(len, received))


def run_in_threads(function: Any) -> list[Any]:
    """Call a function of the rank in one thread per rank. Return the results or exceptions."""
    with ThreadPoolExecutor(SIZE) as pool:
        return [
            future.exception(30) or future.result() for future in [pool.submit(function, rank) for rank in range(SIZE)]
        ]


@pytest.mark.parametrize("max_bytes", [SIZE * (HEADER_BYTES + 1), 200, 1000, 1 << 30])
def test_large_messages_are_sent_in_chunks(monkeypatch, max_bytes):
    monkeypatch.setattr(chunked_messages, "MAX_BYTES", max_bytes)
    monkeypatch.setattr(ThreadGroup, "sizes", [])
    groups = run_in_threads(lambda rank: ThreadGroup(rank, SIZE))
    lengths = [[5, 0, 300], [700, 10, 0], [0, 0, 3]]  # From each rank to each rank.
    sent = [
        [np.arange(100 * n + m, 100 * n + m + k, dtype=np.int16) for m, k in enumerate(lengths[n])] for n in range(3)
    ]
    results = run_in_threads(lambda n: groups[n].all_to_all(np.concatenate(sent[n]), lengths[n], "x"))
    for rank, (received, counts) in enumerate(results):
        assert counts.tolist() == [lengths[n][rank] for n in range(SIZE)]
        assert (received == np.concatenate([sent[n][rank] for n in range(SIZE)])).all()
    assert max(ThreadGroup.sizes) <= max_bytes
    big = np.arange(4000, dtype=np.int32)
    assert all((total == 3 * big).all() for total in run_in_threads(lambda n: groups[n].all_reduce(big, "sum")))
    assert max(ThreadGroup.sizes) <= max_bytes


def test_a_damaged_chunk_is_reported(monkeypatch):
    groups = run_in_threads(lambda rank: ThreadGroup(rank, SIZE))
    monkeypatch.setattr(ThreadGroup, "damaged", "x")
    results = run_in_threads(lambda rank: groups[rank].all_gather_json("value", "x"))
    assert isinstance(results[0], UserError)
    assert "message 2 (x) was damaged on its way from rank 2 (host " in str(results[0])
    assert results[1] == results[2] == ["value"] * 3
