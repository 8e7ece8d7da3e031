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

from crepe_dist.distributed.messages import HEADER_BYTES, HEADER_CHECKSUM, HEADER_FIELDS
from crepe_dist.distributed.tcp_group import EAGER_BYTES, TcpProcessGroup
from crepe_dist.errors import ExitCode, PeerLostError, UserError


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
    made = both(lambda: TcpProcessGroup(0, {1: ends[0]}), lambda: TcpProcessGroup(1, {0: ends[1]}))
    yield made
    for each in made:
        each.close()


def test_a_process_that_ends_within_a_message(worlds):
    data = np.zeros(1 << 24, np.uint8)  # more than the connection holds, so rank 0 also waits in sending

    def end() -> None:
        worlds[1]._messages.start_collective("x")
        worlds[1]._send_all({0: worlds[1]._messages.make_header(data[:1])})
        worlds[1]._receive(0, 2 * EAGER_BYTES)
        worlds[1].close()

    assert isinstance(both(lambda: worlds[0]._all_to_all_bytes(data, [0, data.size], "x"), end)[0], PeerLostError)


def test_a_process_that_is_late_is_not_gone(worlds):
    data = np.zeros(1 << 24, np.uint8)
    worlds[0]._peers[1].setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000)  # milliseconds

    def late() -> Any:
        time.sleep(3)
        return worlds[1]._all_to_all_bytes(data, [data.size, 0], "x")

    ended = both(lambda: worlds[0]._all_to_all_bytes(data, [0, data.size], "x"), late)
    assert [sizes for _, sizes in ended] == [[0, data.size], [data.size, 0]]


def test_ranks_at_different_points_of_the_program(worlds):
    ended = both(lambda: worlds[0].all_gather_object(0, "a"), lambda: worlds[1].all_gather_object(0, "b"))
    assert list(map(str, ended)) == [
        f"rank {n} is at another point of the program than {x!r}" for n, x in ((1, "a"), (0, "b"))
    ]


def test_messages_have_a_number(worlds):
    """The same name is not enough: one rank has called it once more."""
    worlds[1]._messages.start_collective("x")
    ended = both(*(lambda world=world: world.all_gather_object(0, "x") for world in worlds))
    assert list(map(str, ended)) == [
        f"rank {1 - n} sent message {3 - n}, and rank {n} expects message {2 + n} ('x')" for n in (0, 1)
    ]


@pytest.mark.parametrize("size", [1, EAGER_BYTES, EAGER_BYTES + 1, 1 << 20])
@pytest.mark.parametrize("place", ["head", "first", "last"])
def test_a_damaged_message_is_told_with_both_ranks(worlds, monkeypatch, size, place):
    name = socket.gethostname()
    receive = worlds[0]._receive

    def damaging(peer: int, count: int) -> Any:
        data = receive(peer, count)
        if (place == "head") == (count == HEADER_BYTES):
            data[-1 if place == "last" else 0] ^= 4
        return data

    monkeypatch.setattr(worlds[0], "_receive", damaging)
    data = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    error, fine = both(
        lambda: worlds[0]._all_to_all_bytes(data[:0], [0, 0], "gradients"),
        lambda: worlds[1]._all_to_all_bytes(data, [size, 0], "gradients"),
    )
    assert isinstance(error, UserError)
    assert error.code == ExitCode.FAILURE
    assert str(error).startswith(
        f"error: message 2 (gradients) was damaged on its way from rank 1 (host {name}) to rank 0 (host {name})\n"
    )
    assert fine[1] == [0, 0]


def test_a_head_of_a_foreign_size_reserves_no_memory(worlds):
    fields = HEADER_FIELDS.pack(2, 1 << 50, 0, zlib.crc32(b"x"), 0)
    head = np.frombuffer(fields + HEADER_CHECKSUM.pack(zlib.crc32(fields)), np.uint8)
    worlds[0]._messages.start_collective("x")
    with pytest.raises(UserError, match="was damaged"):
        worlds[0]._messages.parse_header(1, head)
