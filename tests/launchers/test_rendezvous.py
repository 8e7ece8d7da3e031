"""Rendezvous of processes that know only rank and world size, and its errors."""

import errno
import itertools
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from crepe_dist.distributed import caller_listener, channel, endpoint, handshake, rendezvous
from crepe_dist.distributed.caller_listener import CallerListener
from crepe_dist.distributed.channel import (
    LENGTH_STRUCT,
    REQUEST_SECONDS,
    Channel,
    UnknownPeerError,
    WrongSecretError,
    receive_bytes,
)
from crepe_dist.distributed.endpoint import Endpoint
from crepe_dist.distributed.handshake import LocalProcess
from crepe_dist.distributed.launch import LauncherEnv
from crepe_dist.errors import ExitCode, UserError
from tests.chaos import harness
from tests.helpers.programs import program
from tests.multihost.network import SECOND_NET, Host, Network, needs_namespaces

ROOT = Path(__file__).parents[2]


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

    def start(self, rank: int, prefix: tuple[str, ...] = (), **more: object) -> None:
        given = {"CREPE_DIST_RENDEZVOUS_SECONDS": 60, **self._common, "RANK": rank, **more}
        env = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", *given)}
        env.update({name: str(value) for name, value in given.items() if value is not None}, PYTHONPATH=str(ROOT))
        words = [*prefix, *program("launchers/meet.py")]
        self.started.append(
            subprocess.Popen(words, cwd=self._folder, env=env, stdin=-1, stdout=-1, stderr=subprocess.STDOUT, text=True)
        )

    def places(self) -> list[Any]:
        """Return what each process prints after all have met, and end the processes. Omit notes of rank 0."""
        outputs = [process.stdout for process in self.started if process.stdout]
        lines = [next(line for line in output if not line.startswith("[rank 0]")) for output in outputs]
        self.end(0)
        return [json.loads(line) for line in lines]

    def end(self, code: int | None = None) -> str:
        """Return the output of all processes, and check their exit codes."""
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


def message(data: bytes) -> bytes:
    return LENGTH_STRUCT.pack(len(data)) + data


def greeting(rank: int, size: int = 2, protocol: bytes = handshake.PROTOCOL, listener: int = 0) -> bytes:
    return message(handshake.GREETING_STRUCT.pack(protocol, listener, rank, size, NONCE))


def place(port: int) -> str:
    return f"127.0.0.1:{port}"


def listening(size: int) -> tuple[int, CallerListener]:
    """Listen like rank 0. Return the port and the callers."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    return listener.getsockname()[1], CallerListener(
        listener, LocalProcess(0, size, b""), range(1, size), rendezvous.REPORT_SCHEMA
    )


def report(at: int, rank: int, size: int, secret: bytes = b"", **said: object) -> Channel:
    """Report to rank 0 like a process, with ``said`` in place of the usual values."""
    caller = socket.create_connection(("127.0.0.1", at), timeout=10)
    opened = handshake.greet(caller, LocalProcess(rank, size, secret), 0, 10)
    opened.send({"place": place(1), **said})
    return opened


def hear(opened: Channel) -> dict[str, Any]:
    return opened.receive(endpoint.VERDICT_SCHEMA)


def test_one_that_was_started_anew_takes_the_place_of_the_one_before(ranks):
    group = ranks(WORLD_SIZE=3)
    group.start(0)
    harness.wait_for(group.is_open)
    first = report(group.port, 1, 3)
    # Before the first answer, rank 0 has time to read the report above.
    for size, error in ((4, "rank 0 is one of 3 processes, rank 1 one of 4"), (3, "two processes are rank 1")):
        assert error in hear(report(group.port, 1, size))["error"]
    first.peer.close()
    group.start(1)
    group.start(2)
    assert [place[0] for place, *_ in group.places()] == [0, 1, 2]


NONCE = bytes(handshake.NONCE_BYTES)
FORGED = [
    b"GET / HTTP/1.0\r\n\r\n",
    bytes(4),
    message(b"[" * 4000),
    LENGTH_STRUCT.pack(2**32 - 1),
    message(b""),
    greeting(9),
    greeting(0),
    greeting(1, protocol=b"crepe_dist 1"),
    greeting(1, listener=1),
    message(greeting(1)[LENGTH_STRUCT.size : -1]),
    message(greeting(1)[LENGTH_STRUCT.size :] + b"0"),
    greeting(1) + bytes(4),  # An empty report.
    greeting(1) + message(json.dumps({"place": place(1)}).encode()),  # A report without a MAC.
    greeting(1) + message(bytes(40)),
    greeting(1, size=0) + message(bytes(40)),
]


def test_strangers_hold_up_nobody(ranks):
    group = ranks(CREPE_DIST_SECRET=SECRET)
    group.start(0)
    harness.wait_for(group.is_open)
    with ExitStack() as stack:
        for said in FORGED:
            stack.enter_context(closing(greet(group.port, said)))
        group.start(1)
        assert [place[0] for place, *_ in group.places()] == [0, 1]


PLACES: list[object] = [
    None, 0, [], True, "", "127.0.0.1", place(0), place(2**16), "x" * 300, ":1", "localhost:1", "256.0.0.1:1", "::1:1",
    "1.2.3:1", "127.0.0.1:one",
]  # fmt: skip
REPORTS: list[dict[str, object]] = [*({"place": value} for value in PLACES), {"more": 0}]


@pytest.mark.parametrize("said", REPORTS)
def test_a_malformed_report_is_a_stranger_s(said):
    port, callers = listening(2)
    arrivals = iter(callers)
    with ThreadPoolExecutor(1) as thread:
        known = thread.submit(report, port, 1, 2, **said)
        while not known.done():
            assert next(arrivals) is None
    assert list(itertools.islice(arrivals, 3)) == [None] * 3
    with pytest.raises((UnknownPeerError, ConnectionError)):
        hear(known.result())
    known.result().peer.close()


def test_strangers_are_let_go(monkeypatch):
    monkeypatch.setattr(channel, "receive_bytes", lambda peer, most, _=0.0: receive_bytes(peer, most, 0.2))
    port, callers = listening(3)
    arrivals = iter(callers)
    # The first sends nothing, the second stops within a message.
    strangers = [greet(port, said) for said in (b"", b"\5\0")]
    with ThreadPoolExecutor(1) as thread:
        known = thread.submit(report, port, 2, 3)
        arrival = next(filter(None, arrivals))
        assert (arrival.rank, arrival.message) == (2, {"place": place(1)})
    due = time.monotonic() + 1
    while time.monotonic() < due:
        next(arrivals)
    assert [each.recv(1) for each in strangers] == [b"", b""]
    for each in (*strangers, known.result().peer, arrival.channel.peer):
        each.close()


def test_many_silent_strangers_neither_delay_a_process_nor_fill_the_memory(monkeypatch):
    monkeypatch.setattr(caller_listener, "MAX_UNKNOWN_CALLERS", 5)
    port, callers = listening(2)
    arrivals = iter(callers)
    strangers = [greet(port, b"\5\0") for _ in range(40)]
    began = time.monotonic()
    with ThreadPoolExecutor(1) as thread:
        known = thread.submit(report, port, 1, 2)
        arrival = next(filter(None, arrivals))
    assert time.monotonic() - began < REQUEST_SECONDS
    assert len(callers._pending) <= 6
    for each in (*strangers, known.result().peer, arrival.channel.peer):
        each.close()


SECRET = "0123456789abcdef"


class TestSecrets:
    def test_all_have_the_same_secret(self, ranks):
        group = ranks(WORLD_SIZE=3, CREPE_DIST_SECRET=SECRET)
        for rank in (2, 0, 1):
            group.start(rank)
        assert [place[0] for place, *_ in group.places()] == [2, 0, 1]

    @pytest.mark.parametrize("first", ["another secret value", None])
    def test_one_with_another_secret_is_told_and_the_others_are_not_held_up(self, ranks, first):
        group = ranks(CREPE_DIST_SECRET=SECRET)
        group.start(0)
        group.start(1, CREPE_DIST_SECRET=first)
        said = group.started[1].communicate(timeout=60)[0]
        assert group.started.pop().returncode == 1
        assert f"error: rank 0 at localhost:{group.port} refused this process, rank 1 on " in said
        here = "is not set here" if first is None else "is set to another value there, or not"
        assert f"CREPE_DIST_SECRET {here}" in said
        assert "set the same CREPE_DIST_SECRET for all processes of the job" in said
        assert SECRET not in said
        group.start(1)
        assert [place[0] for place, *_ in group.places()] == [0, 1]

    def test_a_rank_0_that_is_none_stops_nobody(self):
        """A forged rank 0 answers without the secret. The caller refuses the answer."""
        with closing(socket.create_server(("127.0.0.1", 0))) as listener, ThreadPoolExecutor(1) as thread:
            port = listener.getsockname()[1]
            caller = socket.create_connection(("127.0.0.1", port))
            peer, _ = listener.accept()
            greeted = thread.submit(handshake.greet, caller, LocalProcess(1, 2, SECRET.encode()), 0, 10)
            peer.sendall(message(NONCE))
            made: Channel = greeted.result()
            made.send({})
            forged = Channel(peer, b"", is_caller=False)
            forged.send(endpoint.make_verdict())
            with pytest.raises(WrongSecretError, match="does not prove"):
                hear(made)
            for each in (caller, peer):
                each.close()

    def test_messages_are_neither_sent_back_nor_repeated(self):
        ends = socket.socketpair()
        first, second = (Channel(end, b"key", is_caller) for end, is_caller in zip(ends, (True, False)))
        first.send({})
        data = ends[1].recv(1000, socket.MSG_PEEK)
        assert second.receive({}, 1) == {}
        ends[0].sendall(data)
        with pytest.raises(WrongSecretError):
            second.receive({}, 1)
        ends[1].sendall(data)
        with pytest.raises(WrongSecretError):
            first.receive({}, 1)
        for end in ends:
            end.close()

    def test_the_key_depends_on_all_that_was_said(self):
        keys, choices = set(), ((0, 1), (4, 5), (0, 1), (NONCE, b"1"), (b"a", b"b"))
        for rank, size, listener, nonce, secret in itertools.product(*choices):
            ends = socket.socketpair()
            ends[1].sendall(message(nonce))
            with ends[0], ends[1], pytest.MonkeyPatch.context() as patch:
                patch.setattr(handshake.secrets, "token_bytes", lambda _: NONCE)
                keys.add(handshake.greet(ends[0], LocalProcess(rank, size, secret), listener, 10)._key)
        assert len(keys) == 32

    @pytest.mark.parametrize(("value", "secret"), [("", b""), (" \n", b""), (f" {SECRET}\n", SECRET.encode())])
    def test_it_is_read_from_the_environment(self, value, secret):
        assert handshake.read_secret({"CREPE_DIST_SECRET": value}) == secret

    def test_a_short_one_is_refused(self):
        with pytest.raises(UserError, match="CREPE_DIST_SECRET has 5 characters"):
            handshake.read_secret({"CREPE_DIST_SECRET": "short"})


@pytest.fixture
def called(monkeypatch):
    """Function that returns the callers of a rank 0 whose ``accept`` fails with an error."""

    def fail(number: int) -> Any:
        port, callers = listening(2)
        stack.enter_context(closing(greet(port, b"")))

        def accept(_: object) -> Any:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(socket.socket, "accept", accept)
        return iter(callers)

    with ExitStack() as stack:
        yield fail


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS])
def test_no_descriptor_left_is_not_taken_for_nobody_called(called, number):
    with pytest.raises(UserError, match="cannot open a connection") as caught:
        list(itertools.islice(called(number), 3))
    assert ("ulimit -n 65536" in str(caught.value)) == (number != errno.ENOBUFS)


def test_a_caller_that_has_gone_is_nobody(called):
    assert list(itertools.islice(called(errno.ECONNABORTED), 3)) == [None] * 3


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("MASTER_ADDR", "", "and MASTER_ADDR is not set"),
            ("MASTER_PORT", "65536", "a number from 1 to 65535"),
            ("MASTER_PORT", "0.5", "a number from 1 to 65535"),
            ("MASTER_PORT", "8080.5", "a number from 1 to 65535"),
            ("CREPE_DIST_RENDEZVOUS_SECONDS", "soon", "CREPE_DIST_RENDEZVOUS_SECONDS is 'soon'"),
            ("RANK", "2", "this process is rank 2 of 2"),
        ],
    )
    def test_what_cannot_be(self, name, value, message, monkeypatch):
        environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), name: value}
        launch = LauncherEnv("torchrun", int(environment.get("RANK", "0")), 2)
        with pytest.raises(UserError) as caught:
            rendezvous.rendezvous(launch, environment)
        assert message in str(caught.value)

    def test_a_port_that_is_taken(self, ranks):
        with closing(socket.create_server(("127.0.0.1", 0))) as other:
            group = ranks(MASTER_PORT=other.getsockname()[1])
            group.start(0)
            said = group.end(1)
        assert "error: rank 0 cannot listen at localhost:" in said
        assert "localhost: Address already in use" in said
        assert "MASTER_PORT to a port that is free" in said

    def test_the_address_of_another_host(self, ranks):
        group = ranks(MASTER_ADDR="192.0.2.1", CREPE_DIST_RENDEZVOUS_SECONDS=1)
        group.start(0)
        assert f"192.0.2.1 is not an address of {socket.gethostname()}, where rank 0 was started" in group.end(1)

    def test_one_that_never_comes_is_named_to_all(self, ranks):
        group = ranks(WORLD_SIZE=4, CREPE_DIST_RENDEZVOUS_SECONDS=3)
        for rank in (0, 2):
            group.start(rank)
        said = group.end(ExitCode.PEER_GONE)
        assert said.count("error: 2 of 4 processes did not arrive within 3 s") == 1
        assert "rank 1, 3 of 4 did not arrive at " in said
        assert "which no other host can reach" in said


def test_one_host_needs_no_address():
    assert str(Endpoint.from_environment(LauncherEnv("srun", 1, 4, 4), {})) == "127.0.0.1:29500"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[dict[str, Host]]:
    folder = tmp_path / "network"
    folder.mkdir()
    with Network(folder) as network:
        yield {host.name: host for host in network.hosts}


@needs_namespaces
class TestTwoHosts:
    """Hosts simulated by network namespaces that a switch connects. ``tests/multihost`` trains on such hosts."""

    def test_a_host_that_knows_itself_as_loopback_alone(self, ranks, hosts, tmp_path):
        """Resolve the host's own name to loopback, as Debian does."""
        names = tmp_path / "names"
        names.write_text("127.0.0.1 localhost\n127.0.1.1 hosta\n10.207.31.2 hostb\n")
        hosts["hosta"].replace(Path("/etc/hosts"), names)
        group = ranks(WORLD_SIZE=4, MASTER_ADDR="hosta", MASTER_PORT=29500, CREPE_DIST_SECRET=SECRET)
        for rank, host in enumerate(("hosta", "hosta", "hostb", "hosta")):
            group.start(rank, tuple(hosts[host].inside()))
        zeroth, first, second, third = group.places()
        assert zeroth[:2] == [[0, 4, 0, 3], ["127.0.0.1", "10.207.31.2", "127.0.0.1"]]
        assert first[:2] == [[1, 4, 1, 3], ["127.0.1.1", "10.207.31.2", "127.0.0.1"]]
        assert second[:2] == [[2, 4, 0, 1], ["10.207.31.1"] * 3]
        assert third[:2] == [[3, 4, 2, 3], ["127.0.1.1", "127.0.1.1", "10.207.31.2"]]

    @pytest.mark.parametrize("named", [("eth1", "eth1"), (f"{SECOND_NET}.0/24", "eth1")])
    def test_connections_use_the_named_network_and_the_rendezvous_another(self, ranks, hosts, named):
        group = ranks(WORLD_SIZE=3, MASTER_ADDR="hosta", MASTER_PORT=29500, CREPE_DIST_SECRET=SECRET)
        for number, (host, network) in enumerate(zip(hosts.values(), named), 1):
            host.plug("eth1", f"second{number}", f"{SECOND_NET}.{number}")
            group.start(number - 1, tuple(host.inside()), CREPE_DIST_SOCKET_IFNAME=network)
        group.start(2, tuple(hosts["hosta"].inside()), CREPE_DIST_SOCKET_IFNAME="eth1")
        first, second = f"{SECOND_NET}.1", f"{SECOND_NET}.2"
        assert [addresses for _, addresses, _ in group.places()] == [[second, first], [first, first], [first, second]]

    @pytest.mark.parametrize(
        ("network", "what"),
        [
            ("ib0", "hosta has no such interface or subnet"),
            ("10.9.0.0/16", "hosta has no such interface or subnet"),
            ("10.9.0.0/99", "hosta has no such interface or subnet"),
            ("eth1", "hosta has no IPv4 address there that other hosts can reach"),
            ("lo", "hosta has no IPv4 address there that other hosts can reach"),
        ],
    )
    def test_a_network_that_this_host_does_not_have(self, ranks, hosts, network, what):
        hosts["hosta"].plug("eth1", "second1")
        group = ranks(MASTER_ADDR="hosta", MASTER_PORT=29500, CREPE_DIST_SOCKET_IFNAME=network)
        group.start(0, tuple(hosts["hosta"].inside()))
        printed = group.end(1)
        assert f"error: CREPE_DIST_SOCKET_IFNAME is '{network}', but {what}\n" in printed
        assert "its interfaces are eth0 (10.207.31.1)\n" in printed
