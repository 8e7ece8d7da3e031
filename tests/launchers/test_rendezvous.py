"""Rendezvous of processes that know only rank and world size, and its errors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from crepe_dist.distributed import rendezvous
from crepe_dist.distributed.launch import Launch
from crepe_dist.distributed.rendezvous import Endpoint
from crepe_dist.errors import ExitCode, UserError
from tests.chaos import harness
from tests.multihost.network import Host, Network, needs_namespaces

ROOT = Path(__file__).parents[2]
# Says its place once all have met.
MEET = """
import json, os, sys
from crepe_dist import command
from crepe_dist.distributed.join import join
def main():
    with join() as world:
        place = [world.rank, world.size, world.local_rank, world.local_size]
        hosts = [peer.getpeername()[0] for _, peer in sorted(world._peers.items())]
        print(json.dumps([place, hosts, os.environ["OMP_NUM_THREADS"]]), flush=True)
        sys.stdin.read()
command.run(main)
"""


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        return int(taken.getsockname()[1])


class Ranks:
    """Processes as torchrun would start them."""

    def __init__(self, folder: Path, **common: object) -> None:
        self._folder = folder
        self._common = {"WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), **common}
        self.port = int(str(self._common["MASTER_PORT"] or 0))
        self.started: list[subprocess.Popen[str]] = []

    def is_open(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def start(self, rank: int, prefix: tuple[str, ...] = (), body: str = MEET, **more: object) -> None:
        given = {"CREPE_DIST_MEETING_SECONDS": 60, **self._common, "RANK": rank, **more}
        env = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", *given)}
        env.update({name: str(value) for name, value in given.items() if value is not None}, PYTHONPATH=str(ROOT))
        words = [*prefix, sys.executable, "-c", body]
        self.started.append(
            subprocess.Popen(words, cwd=self._folder, env=env, stdin=-1, stdout=-1, stderr=subprocess.STDOUT, text=True)
        )

    def places(self) -> list[Any]:
        """The place of each, once all have met; then they end."""
        lines = [process.stdout.readline() for process in self.started if process.stdout]
        self.end(0)
        return [json.loads(line) for line in lines]

    def end(self, code: int | None = None) -> str:
        """All that they say; checks their exit codes."""
        said = [process.communicate(timeout=100)[0] for process in self.started]
        codes = [process.returncode for process in self.started]
        assert code is None or codes == [code] * len(codes), (codes, said)
        assert "Traceback" not in "".join(said)
        return "".join(said)


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[type[Ranks]]:
    made: list[Ranks] = []

    class Made(Ranks):
        def __init__(self, **common: object) -> None:
            super().__init__(tmp_path, **common)
            made.append(self)

    yield Made
    for each in made:
        for process in each.started:
            process.kill()
            process.communicate()


def test_they_find_their_places_whatever_the_order_of_their_coming(ranks):
    group = ranks(WORLD_SIZE=3)
    for rank in (2, 0, 1):
        group.start(rank)
    second, zeroth, first = group.places()
    threads = str(max(1, len(os.sched_getaffinity(0)) // 3))
    for rank, place in enumerate((zeroth, first, second)):
        assert place == [[rank, 3, rank, 3], ["127.0.0.1"] * 2, threads]


def greet(port: int, message: bytes) -> socket.socket:
    caller = socket.create_connection(("127.0.0.1", port), timeout=10)
    caller.sendall(message)
    return caller


def message(**said: object) -> bytes:
    data = json.dumps(said).encode()
    return rendezvous.LENGTH.pack(len(data)) + data


def test_one_that_was_started_anew_takes_the_place_of_the_one_before(ranks):
    group = ranks(WORLD_SIZE=3)
    group.start(0)
    harness.wait_for(group.is_open)
    first = greet(group.port, message(rank=1, size=3, job=""))
    for size, error in ((3, b"two processes are rank 1"), (4, b"rank 0 is one of 3 processes, rank 1 one of 4")):
        assert error in greet(group.port, message(rank=1, size=size, job="")).recv(1000)
    first.close()
    group.start(1)
    group.start(2)
    assert [place[0] for place, *_ in group.places()] == [0, 1, 2]


def test_strangers_hold_up_nobody(ranks):
    group = ranks(CREPE_DIST_SUPERVISION="a secret")
    group.start(0)
    harness.wait_for(group.is_open)
    lies: list[Any] = [{"rank": 1, "size": 2, "job": "another"}, {"rank": "1"}, {"rank": True}, {"rank": 9}, {}]
    broken = [b"GET / HTTP/1.0\r\n\r\n", bytes(4), rendezvous.LENGTH.pack(4000) + b"[" * 4000]
    with ExitStack() as stack:
        for said in (*broken, *(message(**each) for each in lies)):
            stack.enter_context(closing(greet(group.port, said)))
        group.start(1)
        assert [place[0] for place, *_ in group.places()] == [0, 1]


def test_strangers_are_let_go(monkeypatch):
    monkeypatch.setattr(rendezvous, "FIRST_SECONDS", 0.2)
    listener = socket.create_server(("127.0.0.1", 0))
    port, arrivals = listener.getsockname()[1], rendezvous.arrivals(listener, range(1, 3))
    callers = [greet(port, said) for said in (b"", b"\5\0", message(rank=2))]  # silent, halting, known
    caller, said = next(filter(None, arrivals))
    assert said == {"rank": 2}
    assert [each.recv(1) for each in callers[:2]] == [b"", b""]
    for each in (*callers, caller):
        each.close()


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("MASTER_ADDR", "", "and MASTER_ADDR is not set"),
            ("MASTER_PORT", "65536", "a number from 1 to 65535"),
            ("CREPE_DIST_MEETING_SECONDS", "soon", "CREPE_DIST_MEETING_SECONDS is 'soon'"),
            ("RANK", "2", "this process is rank 2 of 2"),
        ],
    )
    def test_what_cannot_be(self, name, value, message, monkeypatch):
        environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), name: value}
        launch = Launch("torchrun", int(environment.get("RANK", "0")), 2)
        with pytest.raises(UserError) as caught:
            rendezvous.meet(launch, environment)
        assert message in str(caught.value)

    def test_a_port_that_is_taken(self, ranks):
        with closing(socket.create_server(("127.0.0.1", 0))) as other:
            group = ranks(MASTER_PORT=other.getsockname()[1])
            group.start(0)
            said = group.end(1)
        assert "error: rank 0 cannot listen at localhost:" in said
        assert "localhost: Address already in use" in said
        assert "MASTER_PORT to a port that is free" in said

    def test_one_that_never_comes_is_named_to_all(self, ranks):
        group = ranks(WORLD_SIZE=4, CREPE_DIST_MEETING_SECONDS=3)
        for rank in (0, 2):
            group.start(rank)
        said = group.end(ExitCode.PEER_GONE)
        assert said.count("error: 2 of 4 processes did not arrive within 3 s") == 1
        assert "rank 1, 3 of 4 did not arrive at " in said
        assert "which no other host can reach" in said


def test_one_host_needs_no_address():
    assert str(Endpoint.of(Launch("srun", 1, 4, 4), {})) == "127.0.0.1:29500"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[dict[str, Host]]:
    folder = tmp_path / "network"
    folder.mkdir()
    with Network(folder) as network:
        yield {host.name: host for host in network.hosts}


@needs_namespaces
class TestTwoHosts:
    """Each of them namespaces with a name of their own, joined by a switch; ``tests/multihost`` trains on them."""

    def test_a_host_that_knows_itself_as_loopback_alone(self, ranks, hosts, tmp_path):
        """Resolve the host's own name to loopback, as Debian does."""
        names = tmp_path / "names"
        names.write_text("127.0.0.1 localhost\n127.0.1.1 hosta\n10.207.31.2 hostb\n")
        hosts["hosta"].replace(Path("/etc/hosts"), names)
        group = ranks(WORLD_SIZE=4, MASTER_ADDR="hosta", MASTER_PORT=29500)
        for rank, host in enumerate(("hosta", "hosta", "hostb", "hosta")):
            group.start(rank, tuple(hosts[host].inside()))
        zeroth, first, second, third = group.places()
        assert zeroth[:2] == [[0, 4, 0, 3], ["127.0.0.1", "10.207.31.2", "127.0.0.1"]]
        assert first[:2] == [[1, 4, 1, 3], ["127.0.1.1", "10.207.31.2", "127.0.0.1"]]
        assert second[:2] == [[2, 4, 0, 1], ["10.207.31.1"] * 3]
        assert third[:2] == [[3, 4, 2, 3], ["127.0.1.1", "127.0.1.1", "10.207.31.2"]]
