"""Process group over TCP: lost connections, damaged messages, and ranks at different collectives."""

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


def run_both(*functions: Callable[[], Any]) -> list[Any]:
    """Run functions in threads. Return the results or exceptions."""
    with ThreadPoolExecutor(len(functions)) as threads:
        futures = [threads.submit(function) for function in functions]
        return [future.exception(20) or future.result() for future in futures]


@pytest.fixture
def groups():
    ends = pair()
    pair_of_groups = run_both(lambda: TcpProcessGroup(0, {1: ends[0]}), lambda: TcpProcessGroup(1, {0: ends[1]}))
    yield pair_of_groups
    for group in pair_of_groups:
        group.close()


def test_a_process_that_ends_within_a_message(groups):
    data = np.zeros(1 << 24, np.uint8)  # More than the connection holds, so rank 0 also waits while it sends.

    def end() -> None:
        groups[1]._messages.start_collective("x")
        groups[1]._send_all({0: groups[1]._messages.make_header(data[:1])})
        groups[1]._receive(0, memoryview(bytearray(2 * EAGER_BYTES)))
        groups[1].close()

    assert isinstance(run_both(lambda: groups[0].exchange({1: data}, "x"), end)[0], PeerLostError)


def test_a_process_that_is_late_is_not_lost(groups):
    data = np.zeros(1 << 24, np.uint8)
    groups[0]._peers[1].setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000)  # Milliseconds.

    def late() -> Any:
        time.sleep(3)
        return groups[1].exchange({0: data}, "x")

    results = run_both(lambda: groups[0].exchange({1: data}, "x"), late)
    assert [sizes for _, sizes in results] == [[0, data.size], [data.size, 0]]


def test_ranks_at_different_points_of_the_program(groups):
    results = run_both(lambda: groups[0].all_gather_json(0, "a"), lambda: groups[1].all_gather_json(0, "b"))
    assert list(map(str, results)) == [
        f"rank {n} is at another point of the program than {x!r}" for n, x in ((1, "a"), (0, "b"))
    ]


def test_messages_have_a_number(groups):
    """A collective of the same name does not match if one rank has already called it."""
    groups[1]._messages.start_collective("x")
    results = run_both(*(lambda group=group: group.all_gather_json(0, "x") for group in groups))
    assert list(map(str, results)) == [
        f"rank {1 - n} sent message {3 - n}, and rank {n} expects message {2 + n} ('x')" for n in (0, 1)
    ]


@pytest.mark.parametrize("size", [1, EAGER_BYTES, EAGER_BYTES + 1, 1 << 20])
@pytest.mark.parametrize("place", ["header", "first", "last"])
def test_a_damaged_message_is_reported_with_both_ranks(groups, monkeypatch, size, place):
    name = socket.gethostname()
    receive = groups[0]._receive

    def receive_damaged(peer: int, buffer: memoryview) -> None:
        receive(peer, buffer)
        if (place == "header") == (len(buffer) == HEADER_BYTES):
            buffer[-1 if place == "last" else 0] ^= 4

    monkeypatch.setattr(groups[0], "_receive", receive_damaged)
    data = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    error, intact = run_both(
        lambda: groups[0].exchange({1: data[:0]}, "gradients"),
        lambda: groups[1].exchange({0: data}, "gradients"),
    )
    assert isinstance(error, UserError)
    assert error.code == ExitCode.FAILURE
    assert str(error).startswith(
        f"error: message 2 (gradients) was damaged on its way from rank 1 (host {name}) to rank 0 (host {name})\n"
    )
    assert intact[1] == [0, 0]


def test_a_header_with_a_wrong_size_reserves_no_memory(groups):
    fields = HEADER_FIELDS.pack(2, 1 << 50, 0, zlib.crc32(b"x"), 0)
    header = fields + HEADER_CHECKSUM.pack(zlib.crc32(fields))
    groups[0]._messages.start_collective("x")
    with pytest.raises(UserError, match="was damaged"):
        groups[0]._messages.parse_header(1, header)
