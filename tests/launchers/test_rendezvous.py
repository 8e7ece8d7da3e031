"""Rendezvous of processes that know only rank and world size, and its errors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import requests

from crepe_dist.distributed import rendezvous
from crepe_dist.distributed.endpoint import PORTS, Endpoint
from crepe_dist.distributed.launch import Launch
from crepe_dist.errors import ExitCode, UserError
from tests.chaos import harness
from tests.multihost.network import Host, Network, needs_namespaces

ROOT = Path(__file__).parents[2]
# Says its place once all have met; without Horovod, which it is for.
MEET = """
import json, os, sys
from crepe_dist import command
from crepe_dist.distributed.join import detect, rendezvous, error_of_all
from crepe_dist.errors import UserError
def main():
    try:
        met = rendezvous.meet(detect())
    except UserError as error:
        raise error_of_all(detect().rank, error) if error.on_all_ranks else error
    print(json.dumps(dict(os.environ)), flush=True)
    sys.stdin.read()
    met.end()
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

    def places(self) -> list[dict[str, str]]:
        """The environment of each, once all have met; then they end."""
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
    for rank, place in enumerate((zeroth, first, second)):
        assert (place["HOROVOD_RANK"], place["HOROVOD_SIZE"]) == (str(rank), "3")
        assert (place["HOROVOD_LOCAL_RANK"], place["HOROVOD_LOCAL_SIZE"]) == (str(rank), "3")
        assert (place["HOROVOD_CROSS_RANK"], place["HOROVOD_CROSS_SIZE"]) == ("0", "1")
        assert (place["HOROVOD_GLOO_RENDEZVOUS_ADDR"], place["HOROVOD_GLOO_IFACE"]) == ("127.0.0.1", "lo")
        assert place["HOROVOD_GLOO_RENDEZVOUS_PORT"] == place["MASTER_PORT"]
        assert place["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 3))


def test_one_that_was_started_anew_takes_the_place_of_the_one_before(ranks):
    group = ranks(WORLD_SIZE=3)
    group.start(0)
    group.start(1)
    place = f"http://127.0.0.1:{group.port}/meeting/1"
    harness.wait_for(lambda: requests.get(place, timeout=5).ok if group.is_open() else False)
    gone = group.started.pop()
    gone.kill()
    gone.communicate()
    group.start(1)
    harness.wait_for(lambda: f'"pid": {group.started[-1].pid}' in requests.get(place, timeout=5).text)
    group.start(2)
    assert [found["HOROVOD_RANK"] for found in group.places()] == ["0", "1", "2"]


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("MASTER_PORT", "", "and MASTER_PORT is not set"),
            ("MASTER_PORT", "65536", "a number from 1 to 65535"),
            ("CREPE_DIST_MEETING_SECONDS", "soon", "CREPE_DIST_MEETING_SECONDS is 'soon'"),
            ("HOROVOD_GLOO_IFACE", "nowhere0", "HOROVOD_GLOO_IFACE nowhere0: no IPv4 address"),
            ("RANK", "2", "this process is rank 2 of 2"),
        ],
    )
    def test_what_cannot_be(self, name, value, message, monkeypatch):
        environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), name: value}
        launch = Launch("torchrun", int(environment.get("RANK", "0")), 2)
        monkeypatch.setattr(rendezvous, "LEAVE_SECONDS", 0.0)
        with pytest.raises(UserError) as caught:
            rendezvous.meet(launch, environment)
        assert message in str(caught.value)

    def test_a_port_that_is_taken(self, ranks):
        with closing(socket.create_server(("127.0.0.1", 0))) as other:
            group = ranks(MASTER_PORT=other.getsockname()[1])
            group.start(0)
            said = group.end(1)
        assert "error: rank 0 cannot listen at localhost:" in said
        assert "127.0.0.1: Address already in use" in said
        assert "choose another MASTER_PORT" in said

    def test_one_that_never_comes_is_named_to_all(self, ranks):
        group = ranks(WORLD_SIZE=4, CREPE_DIST_MEETING_SECONDS=3)
        for rank in (0, 2):
            group.start(rank)
        said = group.end(ExitCode.PEER_GONE)
        assert said.count("error: 2 of 4 processes did not arrive within 3 s") == 1
        assert "rank 1, 3 of 4 did not arrive; rank 0 waited for them" in said
        assert "which no other host can reach" in said

    def test_two_are_of_one_rank(self, ranks):
        group = ranks()
        for rank in (1, 1, 0):
            group.start(rank)
        harness.wait_for(lambda: any(process.poll() is not None for process in group.started))
        (loser,) = (process for process in group.started if process.poll() is not None)
        assert "error: two processes are rank 1" in loser.communicate()[0]


class TestPlaces:
    def test_cores_are_shared_among_those_who_may_use_them(self):
        def entry(host: str, *cores: int) -> dict[str, object]:
            return {"host": host, "cores": cores}

        assert rendezvous.shares([entry("a", *range(12))] * 6) == [2] * 6
        assert rendezvous.shares([entry("a", 0, 1), entry("a", 2, 3), entry("b", *range(8))]) == [2, 2, 8]
        assert rendezvous.shares([entry("a", 0)] * 3) == [1] * 3

    def test_one_host_needs_no_address_and_its_job_gives_a_port(self):
        job = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
        where = Endpoint.of(Launch("srun", 1, 4, 1, 4), job)
        assert where.host == "127.0.0.1"
        assert where.port in PORTS
        other = Endpoint.of(Launch("srun", 1, 4, 1, 4), {**job, "SLURM_STEP_ID": "1"})
        assert other.port != where.port


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
        """Resolve the host's own name to loopback, as Debian does; the interface decides the address."""
        names = tmp_path / "names"
        names.write_text("127.0.0.1 localhost\n127.0.1.1 hosta\n10.207.31.2 hostb\n")
        hosts["hosta"].replace(Path("/etc/hosts"), names)
        group = ranks(MASTER_ADDR="hosta", MASTER_PORT=29500, HOROVOD_GLOO_IFACE="eth0")
        for rank, host in enumerate(("hosta", "hostb")):
            group.start(rank, tuple(hosts[host].inside()))
        found = group.places()
        assert [place["HOROVOD_HOSTNAME"] for place in found] == ["hosta", "hostb"]
        assert [place["HOROVOD_CROSS_RANK"] for place in found] == ["0", "1"]
        assert {(place["HOROVOD_GLOO_IFACE"], place["NCCL_SOCKET_IFNAME"]) for place in found} == {("eth0", "=eth0")}
        assert {place["HOROVOD_GLOO_RENDEZVOUS_ADDR"] for place in found} == {"10.207.31.1"}
