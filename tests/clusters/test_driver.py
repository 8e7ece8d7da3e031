"""Tests of the elastic driver with simulated ranks, and of the process of a rank. They need no Ray."""

import itertools
import os
import signal
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from crepe_dist.clusters import ray as on_ray
from crepe_dist.distributed.signals import SignalHandler
from crepe_dist.elastic import driver, worker_group
from crepe_dist.elastic.cluster import Cluster, NodeLostError, Slot
from crepe_dist.elastic.driver import ElasticDriver
from crepe_dist.elastic.process import WorkerProcess
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.settings.config import parse
from crepe_dist.version import __version__
from tests.chaos import harness
from tests.conftest import needs_kernels

LOST, SILENT = object(), object()


class Pretended(Cluster):
    """Simulated cluster whose ranks end with the given exit codes.

    Args:
        starts: For each start, the exit code of each rank. ``None`` is a rank that runs until it is stopped. The node
            of a rank ``LOST`` is lost. A rank ``SILENT`` answers once and then no more.
        rooms: Numbers of free slots that the cluster reports, in the order of the driver's requests.
    """

    name = "Pretended"
    poll_seconds = 0.0

    def __init__(self, starts: Sequence[Sequence[Any]], rooms: Sequence[int] = (2,)) -> None:
        self._starts = iter(starts)
        self._rooms = itertools.chain(rooms, itertools.repeat(rooms[-1]))
        self.placed: list[int] = []
        self.started: list[tuple[Any, ...]] = []
        self.released = 0
        self._answered: set[int] = set()

    variables = on_ray.RayCluster.variables

    def free_slots(self) -> int:
        return next(self._rooms)

    def allocate(self, processes: int) -> list[Slot]:
        self.placed.append(processes)
        return [Slot(f"host{rank}", 3) for rank in range(processes)]

    def call(self, rank: int, method: str, *arguments: Any) -> Any:
        if method == "free_port":  # The first call of each start.
            self._codes = list(next(self._starts))
        if method == "start":
            self.started.append(arguments)
        if method == "stop" and self._codes[rank] is None:
            self._codes[rank] = ExitCode.STOPPED
        if method == "kill" and self._codes[rank] is not SILENT:
            self._codes[rank] = -signal.SIGKILL
        return rank, method

    def get_result(self, handle: Any) -> Any:
        rank, method = handle
        if self._codes[rank] is LOST:
            raise NodeLostError
        if self._codes[rank] is SILENT and method != "free_port":
            answered = rank in self._answered
            self._answered.add(rank)
            return None if answered else ([], None, False)
        return 4711 if method == "free_port" else ([], self._codes[rank], False)

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(worker_group, "PEER_EXIT_SECONDS", 0.2)
    monkeypatch.setattr(worker_group, "KILL_SECONDS", 0.1)
    monkeypatch.setattr(driver, "SHORT_GROUP_SECONDS", 0.0)
    monkeypatch.setattr(worker_group, "WATCHDOG_MARGIN_SECONDS", 0.1)

    def of(cluster: Cluster, restarts: int = 1) -> Any:
        with SignalHandler() as control, control.defer():
            ElasticDriver(cluster, ["-m", "crepe_dist.train"], 2, restarts, control, limit=0.2).run()

    return of


def test_all_done(train):
    ranks = Pretended([[0, 0]])
    train(ranks)
    assert ranks.released
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "host0", "MASTER_PORT": "4711"}
    for rank, (_, _, variables, _) in enumerate(ranks.started):
        assert variables.items() >= {"RANK": str(rank), **meeting}.items()
        assert variables["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", "3")


def test_each_start_has_a_secret_of_its_own_which_no_command_line_names(train, capfd, monkeypatch):
    monkeypatch.setenv("CREPE_DIST_SECRET", "that of the command")
    ranks = Pretended([[75, 75], [0, 0]])
    train(ranks)
    secrets = [variables["CREPE_DIST_SECRET"] for _, _, variables, _ in ranks.started]
    first, again, second, *_ = secrets
    assert first == again != second == secrets[3]
    assert len(first) == 64
    printed = "".join(capfd.readouterr())
    for secret in secrets:
        assert secret not in printed
        assert not any(secret in word for arguments, *_ in ranks.started for word in arguments)


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        *[([69, -9], 137), ([76, 76], 76), ([LOST, 69], 70), ([-11, None], 139), ([69, None], 137)],
    ],
)
def test_a_failure_restarts_all_once(train, capsys, ends, code):
    ranks = Pretended([ends, [0, 0]])
    train(ranks)
    assert ranks.placed == ([2, 2] if LOST in ends else [2])
    assert "restarting from the newest saved state; 0 restarts left" in capsys.readouterr().err
    with pytest.raises(UserError, match="rank") as failed:
        train(Pretended([ends, ends]))
    assert failed.value.code == code


@pytest.mark.parametrize("answered", [set(), {0}])
def test_a_rank_that_answers_no_more_or_never_is_lost(train, capsys, answered):
    ranks = Pretended([[SILENT, None], [0]], rooms=[2, 1])
    ranks._answered = answered
    train(ranks)
    assert ranks.placed == [2, 1]
    assert (
        "rank 0 on host0 has been suspended, or has not answered, for 0 s; all ranks are killed"
        in capsys.readouterr().err
    )


def test_a_preemption_costs_no_restart(train):
    ranks = Pretended([[75, 75], [75, 69], [0, 0]])
    train(ranks, restarts=0)
    assert len(ranks.started) == 6


@pytest.mark.parametrize(("ends", "code"), [([69, 1], 1), ([70, 1], 1), ([2, 2], 2), ([130, 69], 130)])
def test_a_mistake_or_an_interrupt_ends_the_run(train, ends, code):
    ranks = Pretended([ends])
    with pytest.raises(UserError) as failed:
        train(ranks)
    assert failed.value.code == code
    assert ranks.placed == [2]


def test_the_first_start_waits_for_all(train, monkeypatch):
    monkeypatch.setenv("CREPE_DIST_RENDEZVOUS_SECONDS", "1")
    with pytest.raises(UserError, match="the Pretended cluster has no slots for 2 processes"):
        train(Pretended([], rooms=[1]))


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--processes", "2"], "--processes without --on"),
        (["--max-restarts", "2"], "--max-restarts without --on"),
        (["--on", "ray"], "--on ray without --processes"),
        (["--on", "hadoop"], "invalid choice: 'hadoop'"),
    ],
)
def test_flags_that_do_not_fit_are_mistakes(words, what):
    with pytest.raises(UserError, match=what):
        parse(words)


class TestProcess:
    def start(self, folder: Path, flags: Sequence[str] = ("--version",), version: str = __version__) -> WorkerProcess:
        process = WorkerProcess()
        process.start(["-m", "crepe_dist.train", *flags], str(folder), {}, version)
        return process

    def end(self, process: WorkerProcess) -> tuple[str, int]:
        printed: list[str] = []
        code = None
        while code is None:
            lines, code, _ = process.poll()
            printed += [line for _, line in lines]
        return "\n".join(printed), code

    def test_its_output_and_its_code_arrive(self, tmp_path):
        assert self.end(self.start(tmp_path)) == (f"crepe_dist {__version__}", 0)

    @pytest.mark.parametrize(
        ("folder", "version", "message"),
        [
            ("nowhere", __version__, "error: no process can be started on "),
            (".", "0.0.9", f"has version {__version__}, and the command was given with version 0.0.9"),
        ],
    )
    def test_a_node_that_differs(self, tmp_path, folder, version, message):
        printed, code = self.end(self.start(tmp_path / folder, version=version))
        assert code == ExitCode.ERROR
        assert message in printed

    @needs_kernels
    def test_who_drops_it_stops_it(self, data, tmp_path):
        run = tmp_path / "run"
        process = self.start(tmp_path, ["--data", str(data), "--run-dir", str(run), "--epochs=4000"])
        harness.wait_for((run / "metrics.jsonl").exists)
        started = process._process
        assert started is not None
        del process
        assert started.wait(30) == ExitCode.STOPPED


def test_a_ray_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster\nThe rest helps nobody.")

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(is_initialized=lambda: False, init=refuse))
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    with pytest.raises(UserError, match="no Ray cluster answers") as caught:
        on_ray.connect()
    assert caught.value.why == "Failed to connect to Ray cluster"
    assert "`ray start --head`" in caught.value.remedy
