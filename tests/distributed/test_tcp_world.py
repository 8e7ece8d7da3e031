"""The world over TCP: ends of its connections, and ranks that have come apart."""

from __future__ import annotations

import socket
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from crepe_dist.distributed.tcp_world import FIRST_BYTES, HEAD, TcpWorld
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
    data = np.zeros(1 << 24, np.uint8)  # more than the connection holds, so rank 0 also waits in sending

    def end() -> None:
        worlds[1]._send_all({0: HEAD.pack(zlib.crc32(b"x"), 1)})
        worlds[1]._receive(0, 2 * FIRST_BYTES)
        worlds[1].close()

    assert isinstance(both(lambda: worlds[0]._swap(data, [0, data.size], "x"), end)[0], PeerGone)


def test_a_process_that_is_late_is_not_gone(worlds):
    data = np.zeros(1 << 24, np.uint8)
    worlds[0]._peers[1].setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000)  # milliseconds

    def late() -> Any:
        time.sleep(3)
        return worlds[1]._swap(data, [data.size, 0], "x")

    ended = both(lambda: worlds[0]._swap(data, [0, data.size], "x"), late)
    assert [sizes for _, sizes in ended] == [[0, data.size], [data.size, 0]]


def test_ranks_at_different_points_of_the_program(worlds):
    ended = both(lambda: worlds[0].gather(0, "a"), lambda: worlds[1].gather(0, "b"))
    assert list(map(str, ended)) == [
        f"rank {n} is at another point of the program than {x!r}" for n, x in ((1, "a"), (0, "b"))
    ]
