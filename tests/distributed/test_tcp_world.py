"""The world over TCP: ends of its connections, and ranks that have come apart."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from crepe_dist.distributed.tcp_world import TcpWorld
from crepe_dist.errors import PeerGone


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        caller = socket.create_connection(listener.getsockname())
        return caller, listener.accept()[0]


def both(*work: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(work)) as threads:
        return [future.exception(20) or future.result() for future in [threads.submit(each) for each in work]]


@pytest.fixture
def worlds():
    ends = pair()
    made = both(lambda: TcpWorld(0, {1: ends[0]}), lambda: TcpWorld(1, {0: ends[1]}))
    yield made
    for each in made:
        each.close()


def test_a_process_that_ends_within_a_message(worlds):
    zeroth, first = worlds
    data = np.zeros(1 << 22, np.uint8)  # more than the connection holds, so rank 0 also waits in sending
    ended = both(lambda: zeroth._swap(data, [0, data.size], "x"), first.close)
    assert isinstance(ended[0], PeerGone)


def test_ranks_at_different_points_of_the_program(worlds):
    ended = both(lambda: worlds[0].gather(0, "a"), lambda: worlds[1].gather(0, "b"))
    assert list(map(str, ended)) == [
        f"rank {n} is at another point of the program than {x!r}" for n, x in ((1, "a"), (0, "b"))
    ]
