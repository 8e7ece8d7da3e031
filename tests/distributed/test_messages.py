"""Worlds with bounded collectives."""

from __future__ import annotations

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
    """World of threads whose collectives count what they carry."""

    lines: ClassVar[list[Any]] = []
    barrier = threading.Barrier(SIZE)
    sizes: ClassVar[list[int]] = []
    damaged = ""

    def _bounded_all_to_all(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        ThreadGroup.lines = ThreadGroup.lines if len(ThreadGroup.lines) == SIZE else [None] * SIZE
        self.barrier.wait(20)
        ThreadGroup.lines[self.rank] = np.split(data, np.cumsum(sizes)[:-1])
        self.barrier.wait(20)
        came = [line[self.rank] for line in ThreadGroup.lines]
        if name == self.damaged and self.rank == 0 and len(came[2]):
            came[2] = came[2] ^ np.uint8(1)
        self.barrier.wait(20)
        ThreadGroup.sizes += [sum(sizes), sum(map(len, came))]
        return np.concatenate(came), [len(each) for each in came]


def threads(work: Any) -> list[Any]:
    with ThreadPoolExecutor(SIZE) as pool:
        return [future.exception(30) or future.result() for future in [pool.submit(work, n) for n in range(SIZE)]]


@pytest.mark.parametrize("most", [SIZE * (HEADER_BYTES + 1), 200, 1000, 1 << 30])
def test_what_is_larger_than_a_collective_travels_in_pieces(monkeypatch, most):
    monkeypatch.setattr(chunked_messages, "MAX_BYTES", most)
    monkeypatch.setattr(ThreadGroup, "sizes", [])
    worlds = threads(lambda rank: ThreadGroup(rank, SIZE))
    lengths = [[5, 0, 300], [700, 10, 0], [0, 0, 3]]  # of each rank to each
    sent = [
        [np.arange(100 * n + m, 100 * n + m + k, dtype=np.int16) for m, k in enumerate(lengths[n])] for n in range(3)
    ]
    ended = threads(lambda n: worlds[n].all_to_all(np.concatenate(sent[n]), lengths[n], "x"))
    for rank, (received, counts) in enumerate(ended):
        assert counts.tolist() == [lengths[n][rank] for n in range(SIZE)]
        assert (received == np.concatenate([sent[n][rank] for n in range(SIZE)])).all()
    assert max(ThreadGroup.sizes) <= most
    big = np.arange(4000, dtype=np.int32)
    assert all((total == 3 * big).all() for total in threads(lambda n: worlds[n].all_reduce(big, "sum")))
    assert max(ThreadGroup.sizes) <= most


def test_a_damaged_piece_is_told(monkeypatch):
    worlds = threads(lambda rank: ThreadGroup(rank, SIZE))
    monkeypatch.setattr(ThreadGroup, "damaged", "x")
    ended = threads(lambda rank: worlds[rank].all_gather_object("value", "x"))
    assert isinstance(ended[0], UserError)
    assert "message 2 (x) was damaged on its way from rank 2 (host " in str(ended[0])
    assert ended[1] == ended[2] == ["value"] * 3
