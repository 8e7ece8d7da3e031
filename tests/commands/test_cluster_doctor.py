"""Tests of `crepe doctor` in the processes of a launcher."""

import os
import socket
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from crepe_dist.commands import cluster_doctor
from crepe_dist.errors import ExitCode
from tests.conftest import command, needs_kernels, run
from tests.helpers.needs import needs
from tests.helpers.programs import program

HOST = socket.gethostname()
RANK_1 = f"rank 1 (host {HOST})"


def run_ranks(kind: str, folder: Path, *flags: str) -> tuple[list[int], str]:
    """Run two ranks without a launcher. Return their exit codes, and their output."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    env = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = program("commands/doctor_worker.py", kind, *flags)
    processes = [
        subprocess.Popen(
            words, cwd=folder, env={**env, "RANK": str(rank)}, stdout=-1, stderr=subprocess.STDOUT, text=True
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=100)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [process.returncode for process in processes], "".join(printed)


@needs_kernels
@pytest.mark.parametrize("launcher", ["supervise", "horovodrun", pytest.param("mpiexec", marks=needs("mpirun"))])
def test_two_processes_are_ready(launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PRTE_MCA_rmaps_default_mapping_policy", "slot:oversubscribe")
    flags = ["--run-dir", "new/runs"]
    words = {
        "supervise": command("supervise", "-np", 2, "doctor", *flags),
        "horovodrun": command("doctor", *flags, processes=2),
        "mpiexec": ["mpirun", "-n", "2", *command("doctor", *flags)],
    }
    printed = run(words[launcher], tmp_path)
    assert printed.count("ready: 2 processes on 1 host can train together (not tried)") == 1, printed
    assert printed.count("run folder  clock") == 1
    assert f"0 and 1  {HOST}" in printed
    assert "all-to-all of 4.2 MB per process: " in printed
    assert "problem" not in printed
    assert [*tmp_path.iterdir()] == []


@needs_kernels
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("version", f'rank 1 (host {HOST}) has numpy = "0.5"'),
        ("folder", f"/elsewhere is not the same folder as on rank 0 [{RANK_1}]"),
        ("lock", f"has no effect on this host [{RANK_1}]"),
        ("disk", rf"disk: full\x1b[31m [{RANK_1}]"),
    ],
)
def test_a_rank_that_cannot_train_with_the_others_is_named(kind: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    codes, printed = run_ranks(kind, tmp_path)
    assert codes == [ExitCode.ERROR] * 2, printed
    last = printed.splitlines()[-1]
    assert last.startswith("not ready: ")
    assert reason in last
    # For a folder or a lock, a cell of the table has the same text.
    assert printed.count("problem  ") == (2 if kind in ("folder", "lock") else 1)
    assert [path.name for path in tmp_path.rglob("*")] == ["elsewhere"]


@needs_kernels
def test_clocks_that_differ_are_a_note(tmp_path: Path) -> None:
    codes, printed = run_ranks("clock", tmp_path, "--run-dir", ".")
    assert codes == [0, 0], printed
    assert f"note     clock         the clock is 90 s ahead of the clock of rank 0 [{RANK_1}]" in printed


def test_a_rank_that_hangs_is_named(tmp_path: Path) -> None:
    codes, printed = run_ranks("hang", tmp_path)
    assert codes == [ExitCode.HUNG, ExitCode.PEER_GONE], printed
    assert f"why: this rank waits for a message from rank 1 on {HOST} (pid " in printed
    assert "do:  check the host of that process" in printed


def test_a_mistake_in_the_flags_is_found_before_processes_start(tmp_path: Path) -> None:
    printed = run(command("supervise", "-np", 2, "doctor", "--quik"), tmp_path, code=None)
    assert "2 processes" not in printed


def report(cells: dict[str, str], times: dict[int, Sequence[Sequence[float]]]) -> dict[str, Any]:
    return {"cells": cells, "checks": [], "pairs": [*times.items()], "all_to_all": [[0.001], [0.004]]}


def test_slow_pairs_are_named_and_equal_ranks_share_a_row() -> None:
    """A try takes as long as the slower of its two ranks takes, and the fastest try counts."""
    fast, late, slow = [[0.009, 0.0002], [0.01, 0.01]], [[0, 0.0001], [0, 0.01]], [[0.0003] * 2, [0.05] * 2]
    cells = [
        {"kernels": name, "clock": f"{rank} ms", "latency": "–", "bandwidth": "–"}
        for rank, name in enumerate(["amx", "amx", "avx2"])
    ]
    reports = [
        report(cells[0], {1: fast, 2: fast}),
        report(cells[1], {0: late, 2: slow}),
        report(cells[2], {0: fast, 1: slow}),
    ]
    rows, checks = cluster_doctor.summarize(reports, ["a", "a", "b"])
    assert rows == [
        ["ranks", "host", "kernels", "clock", "latency", "bandwidth"],
        ["0 and 1", "a", "amx", "0 ms", "0.20 ms", "419.4 MB/s"],
        ["2", "b", "avx2", "2 ms", "0.25 ms", "139.8 MB/s"],
    ]
    assert [check.level for check in checks] == ["ok", "note"]
    assert checks[1].message == ("slow: a – b (0.30 ms, 83.9 MB/s); the median is 0.20 ms, 419.4 MB/s")


@pytest.mark.parametrize("count", range(1, 8))
def test_each_pair_of_ranks_meets_once(count: int) -> None:
    ranks = [*range(3, 3 + count)]
    met = [pair for partners in cluster_doctor.rounds(ranks) for pair in partners.items()]
    assert sorted(met) == [(first, second) for first in ranks for second in ranks if first != second]
