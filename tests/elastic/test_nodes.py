"""Tests of supervisors of several nodes on loopback. ``worker.py`` replaces the training."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crepe_dist.distributed.handshake import SECRET_ENV, LocalProcess
from crepe_dist.elastic.nodes import derive_secret
from crepe_dist.errors import ExitCode
from tests.chaos import harness
from tests.conftest import command, needs_kernels, run
from tests.helpers.programs import program
from tests.launchers.test_rendezvous import free_port

WORKER = Path(__file__).with_name("worker.py")


class Nodes:
    """Supervisors of the nodes of a job, which all run on this host. Each writes its output to a file."""

    def __init__(self, folder: Path, number: int, processes: int) -> None:
        self.folder, self.number, self._processes = folder, number, processes
        self.supervisors: dict[int, subprocess.Popen[bytes]] = {}
        self._port = free_port()

    def start(self, action: str, *ranks: int, flags: tuple[str, ...] = (), **variables: object) -> None:
        environment = {"CREPE_DIST_SECRET": "a secret of the nodes", "CREPE_DIST_RENDEZVOUS_SECONDS": "60"}
        environment["LIMIT"] = "60"  # On a busy machine, a node may take seconds to answer.
        environment.update({name: str(value) for name, value in variables.items()})
        options = ["-np", self._processes, "--nnodes", self.number, "--master-addr", "127.0.0.1", "--master-port"]
        options += [self._port, "--grace", "5", *flags]
        for rank in ranks or range(self.number):
            with (self.folder / f"node-{rank}").open("ab") as stream:
                self.supervisors[rank] = subprocess.Popen(
                    program(
                        "elastic/supervise.py",
                        *(*options, "--node-rank", rank, "-S", WORKER, action, self.folder),
                    ),
                    cwd=self.folder,
                    env={**os.environ, **environment},
                    stdout=stream,
                    stderr=stream,
                )

    def printed(self, rank: int = 0) -> str:
        return (self.folder / f"node-{rank}").read_text(errors="replace")

    def codes(self) -> list[int]:
        return [process.wait(60) for _, process in sorted(self.supervisors.items())]

    def wait_for_starts(self, number: int) -> None:
        harness.wait_for(lambda: len(list(self.folder.glob("up-*"))) == number)

    def wait_for_ranks(self, number: int) -> None:
        harness.wait_for(lambda: len(self.pids()) == number)

    def pids(self) -> dict[int, int]:
        """Process id of each rank that waits for the end of the test, by rank."""
        texts = {int(path.name[3:]): path.read_text() for path in self.folder.glob("up-*")}
        return {rank: int(text) for rank, text in texts.items() if text and Path(f"/proc/{text}").exists()}


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Any]:
    made: list[Nodes] = []

    def make(number: int, processes: int) -> Nodes:
        made.append(Nodes(tmp_path, number, processes))
        return made[-1]

    yield make
    for each in made:
        for process in each.supervisors.values():
            process.kill()
            process.wait()


def test_8_nodes_of_8_processes_restart_together_after_kills_at_both_levels(nodes, tmp_path):
    job = nodes(8, 8)
    job.start("stop_on_request")
    job.wait_for_ranks(64)
    first = job.pids()
    os.kill(first[37], signal.SIGKILL)
    harness.wait_for(lambda: len(job.pids()) == 64 and not set(first.values()) & set(job.pids().values()))
    assert "rank 37 on " in job.printed()
    second = job.pids()
    job.supervisors[5].kill()
    job.supervisors[5].wait()
    job.start("stop_on_request", 5)
    harness.wait_for(lambda: len(job.pids()) == 64 and not set(second.values()) & set(job.pids().values()))
    job.supervisors[0].terminate()
    assert job.codes() == [ExitCode.STOPPED] * 8
    assert not job.pids()


def test_a_node_that_does_not_return_is_left_out_until_it_returns(nodes):
    job = nodes(2, 2)
    job.start("stop_on_request", flags=("--node-timeout", "1"))
    job.wait_for_ranks(4)
    job.supervisors[1].kill()
    job.supervisors[1].wait()
    harness.wait_for(lambda: "2 processes (2 on 127.0.0.1)" in job.printed())
    job.wait_for_ranks(2)
    job.start("stop_on_request", 1)
    job.wait_for_ranks(4)
    assert "a node was lost or has returned" in job.printed()
    changes = r"supervise: node 1 on \S+ has ((?:dis)?connected)$"
    expected = ["connected", "disconnected", "connected"]
    harness.wait_for(lambda: re.findall(changes, job.printed(), re.MULTILINE) == expected)
    job.supervisors[0].terminate()
    assert job.codes() == [ExitCode.STOPPED] * 2


def test_the_supervisor_of_node_0_may_be_replaced(nodes):
    job = nodes(2, 1)
    job.start("stop_on_request")
    job.wait_for_ranks(2)
    first = job.pids()
    job.supervisors[0].kill()
    job.supervisors[0].wait()
    harness.wait_for(lambda: not job.pids())
    job.start("stop_on_request", 0)
    harness.wait_for(lambda: len(job.pids()) == 2 and not set(first.values()) & set(job.pids().values()))
    assert "lost node 0" in job.printed(1)
    job.supervisors[0].terminate()
    assert job.codes() == [ExitCode.STOPPED] * 2


def test_a_node_that_has_lost_node_0_can_be_stopped(nodes):
    """Also by a signal that arrives while it waits for its ranks."""
    job = nodes(2, 1)
    job.start("stop_on_request", 0)
    job.start("ignore_requests", 1)
    job.wait_for_starts(2)
    job.supervisors[0].kill()
    harness.wait_for(lambda: "lost node 0" in job.printed(1))
    job.supervisors[1].terminate()
    assert job.supervisors[1].wait(20) == ExitCode.STOPPED


def test_a_node_that_is_asked_to_stop_leaves_and_the_others_wait_for_it(nodes):
    job = nodes(2, 1)
    job.start("stop_on_request", flags=("--max-restarts", "0"))
    job.wait_for_ranks(2)
    job.supervisors[1].terminate()
    assert job.supervisors[1].wait(60) == ExitCode.STOPPED
    job.start("stop_on_request", 1)
    job.wait_for_ranks(2)
    job.supervisors[0].terminate()
    assert job.codes() == [ExitCode.STOPPED] * 2


def test_a_suspended_supervisor_is_replaced_by_its_return(nodes):
    job = nodes(2, 1)
    job.start("stop_on_request", flags=("--node-timeout", "60"), LIMIT=3)
    job.wait_for_ranks(2)
    first = job.pids()
    job.supervisors[1].send_signal(signal.SIGSTOP)
    harness.wait_for(lambda: re.search(r"node 1 on \S+ has disconnected", job.printed()))
    assert re.search(r"rank 1 on .* was lost with its node", job.printed())
    assert job.printed().count("2 processes (") == 1, "it was started on a suspended node"
    job.supervisors[1].send_signal(signal.SIGCONT)
    harness.wait_for(lambda: len(job.pids()) == 2 and not set(first.values()) & set(job.pids().values()))
    assert job.printed().count("2 processes (") == 2
    job.supervisors[0].terminate()
    assert job.codes() == [ExitCode.STOPPED] * 2


@pytest.mark.parametrize(("action", "code"), [("fail", 70), ("mistake", 1)])
def test_the_code_of_a_failed_job_is_that_of_all_nodes(nodes, action, code):
    job = nodes(2, 1)
    job.start(action, flags=("--max-restarts", "0"))
    assert job.codes() == [code, code]
    assert f"node 0 has ended the job with exit code {code}" in job.printed(1)


def test_a_node_with_another_secret_does_not_take_part(nodes):
    job = nodes(2, 1)
    job.start("stop_on_request", 0, CREPE_DIST_RENDEZVOUS_SECONDS=2)
    job.start("stop_on_request", 1, CREPE_DIST_SECRET="b secret of the nodes")
    assert job.codes() == [ExitCode.PEER_GONE, 1]
    assert "node 1 did not connect to node 0 at 127.0.0.1" in job.printed()
    assert "install the same crepe_dist and set the same CREPE_DIST_SECRET on all nodes" in job.printed()
    assert "has a different CREPE_DIST_SECRET and was refused" in job.printed()
    assert "refused this process, node 1 on " in job.printed(1)


def test_nodes_that_differ_are_refused(nodes):
    job = nodes(2, 1)
    job.start("stop_on_request", 0)
    job.start("stop_on_request", 1, flags=("-np", "2"))
    assert job.supervisors[1].wait(60) == 1
    assert "node 1 is one of 2 nodes with 2 processes each" in job.printed(1)
    job.start("stop_on_request", 1, flags=("--nnodes", "3"))
    assert job.supervisors[1].wait(60) == 1
    assert "node 1 is one of 3 nodes with 1 processes each" in job.printed(1)
    refused = (
        r"supervise: node 1 on \S+ was refused: node 1 is one of 3 nodes with 1 processes each, but node 0 is one of 2"
    )
    assert re.search(refused, job.printed())


def test_the_secret_of_the_ranks_is_derived_and_not_sent():
    """A listener knows the token, but not the secret."""
    derived = {
        derive_secret({SECRET_ENV: "token", "RANK": "1"}, LocalProcess(rank, 2, secret, "node"))[SECRET_ENV]
        for rank in (0, 1)
        for secret in (b"a secret of the nodes", b"b secret of the nodes")
    }
    assert len(derived) == 2
    assert "token" not in derived


@needs_kernels
def test_a_broken_node_is_named_and_ends_the_job_without_restarts(data, tmp_path, monkeypatch):
    for name, value in {"CREPE_DIST_SECRET": "a secret of the nodes", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    flags = ("--master-addr", "127.0.0.1", "--nnodes", 2, "--node-rank")
    processes = []
    for rank in range(2):
        folder = tmp_path / str(rank)
        folder.mkdir()
        if rank == 0:
            (folder / "data").symlink_to(data)
        words = command("supervise", *flags, rank, "--data", "data", "--run-dir", tmp_path / "run")
        processes.append(harness.start(words, folder))
    (code, printed), (other_code, _) = map(harness.finish, processes)
    assert code == other_code == ExitCode.HOST_ERROR, printed
    assert printed.count("error: data is not a prepared data set [only on rank 1 (host ") == 1
    assert "error: every rank ended with code 78 (an error on some hosts only)\n" in printed


def test_all_lines_of_another_node_arrive_however_many(nodes):
    job = nodes(2, 1)
    job.start("print_bytes_and_lines")
    assert job.codes() == [0, 0]
    lines = job.printed().splitlines()
    numbers = [line.split()[2] for line in lines if line.endswith("x" * 50) and line.startswith("[rank 1]")]
    assert numbers == list(map(str, range(50_000)))
    assert sum(line.count("\ufffd") for line in lines) == 2 * 20_000


@pytest.mark.parametrize(
    ("variables", "flags", "message"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, (), "this is node 1 of 2, and MASTER_ADDR is not set"),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (), "this is node 1 of 2, and MASTER_ADDR is not set"),
        ({"PET_NNODES": "3", "PET_NODE_RANK": "2"}, (), "this is node 2 of 3, and MASTER_ADDR is not set"),
        ({"JOB_COMPLETION_INDEX": "1"}, ("--nnodes", "4"), "this is node 1 of 4, and MASTER_ADDR is not set"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, ("--node-rank", "2"), "its rank is not a number below 2"),
        ({}, ("--nnodes", "2"), "this is one of 2 nodes, and its rank is not a number below 2"),
    ],
)
def test_the_rank_and_the_number_of_nodes(tmp_path, data, monkeypatch, variables, flags, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    printed = run(command("supervise", "-np", 2, *flags, "--data", data), tmp_path, code=1)
    assert message in printed
    assert "for a job on this host only, --nnodes 1" in printed
