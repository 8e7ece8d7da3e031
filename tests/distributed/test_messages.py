"""Worlds with bounded collectives."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest

from crepe_dist.distributed import chunked_messages
from crepe_dist.distributed.chunked_messages import PiecewiseWorld
from crepe_dist.distributed.messages import HEAD_BYTES, Bytes
from crepe_dist.errors import UserError

SIZE = 3


class Bounded(PiecewiseWorld):
    """World of threads whose collectives count what they carry."""

    lines: ClassVar[list[Any]] = []
    barrier = threading.Barrier(SIZE)
    sizes: ClassVar[list[int]] = []
    damaged = ""

    def _carry(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        Bounded.lines = Bounded.lines if len(Bounded.lines) == SIZE else [None] * SIZE
        self.barrier.wait(20)
        Bounded.lines[self.rank] = np.split(data, np.cumsum(sizes)[:-1])
        self.barrier.wait(20)
        came = [line[self.rank] for line in Bounded.lines]
        if name == self.damaged and self.rank == 0 and len(came[2]):
            came[2] = came[2] ^ np.uint8(1)
        self.barrier.wait(20)
        Bounded.sizes += [sum(sizes), sum(map(len, came))]
        return np.concatenate(came), [len(each) for each in came]


def threads(work: Any) -> list[Any]:
    with ThreadPoolExecutor(SIZE) as pool:
        return [future.exception(30) or future.result() for future in [pool.submit(work, n) for n in range(SIZE)]]


@pytest.mark.parametrize("most", [SIZE * (HEAD_BYTES + 1), 200, 1000, 1 << 30])
def test_what_is_larger_than_a_collective_travels_in_pieces(monkeypatch, most):
    monkeypatch.setattr(chunked_messages, "MAX_BYTES", most)
    monkeypatch.setattr(Bounded, "sizes", [])
    worlds = threads(lambda rank: Bounded(rank, SIZE))
    lengths = [[5, 0, 300], [700, 10, 0], [0, 0, 3]]  # of each rank to each
    sent = [
        [np.arange(100 * n + m, 100 * n + m + k, dtype=np.int16) for m, k in enumerate(lengths[n])] for n in range(3)
    ]
    ended = threads(lambda n: worlds[n].all_to_all(np.concatenate(sent[n]), lengths[n], "x"))
    for rank, (received, counts) in enumerate(ended):
        assert counts.tolist() == [lengths[n][rank] for n in range(SIZE)]
        assert (received == np.concatenate([sent[n][rank] for n in range(SIZE)])).all()
    assert max(Bounded.sizes) <= most
    big = np.arange(4000, dtype=np.int32)
    assert all((total == 3 * big).all() for total in threads(lambda n: worlds[n].all_reduce(big, "sum")))
    assert max(Bounded.sizes) <= most


def test_a_damaged_piece_is_told(monkeypatch):
    worlds = threads(lambda rank: Bounded(rank, SIZE))
    monkeypatch.setattr(Bounded, "damaged", "x")
    ended = threads(lambda rank: worlds[rank].all_gather_object("value", "x"))
    assert isinstance(ended[0], UserError)
    assert "message 2 (x) was damaged on its way from rank 2 (host " in str(ended[0])
    assert ended[1] == ended[2] == ["value"] * 3
