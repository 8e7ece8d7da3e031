"""Under the supervisor: recovery, preemption, reasons and exit codes, ports, environment."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crepe_dist.distributed.watchdog import start_time
from crepe_dist.errors import ExitCode
from tests.chaos import harness
from tests.chaos.harness import slow
from tests.conftest import records
from tests.helpers.needs import needs

SUPERVISE = """
import sys
from crepe_dist import command, supervise
values, rest = supervise.parser().parse_known_args(sys.argv[1:])
command.run(lambda: supervise.run(values, ["-m", "tests.chaos.worker", *rest]))
"""


def supervise(run_dir: Path, data: Path, count: int, *more: str, flags: tuple[str, ...] = ()) -> list[str]:
    flags_of_train = harness.command(run_dir, data, 1, *more)[3:]
    return [sys.executable, "-c", SUPERVISE, "-np", str(count), *flags, *flags_of_train]


def fault(tmp_path: Path, kind: str, rank: int, step: int, phase: str = "train") -> dict[str, Any]:
    return {"kind": kind, "rank": rank, "phase": phase, "step": step, "once": str(tmp_path / "once")}


def descendants(pid: int) -> dict[int, list[str]]:
    """Processes started by this one, and by those, with their command lines."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = {}, [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            found[child] = words(child)
            waiting.append(child)
    return found


def words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def workers(pid: int) -> list[int]:
    return sorted(child for child, line in descendants(pid).items() if "tests.chaos.worker" in line)


@pytest.fixture
def supervised(data: Path, tmp_path: Path) -> Iterator[Any]:
    """Starts a supervisor; at the end no process that it started may be left."""
    started: list[subprocess.Popen[str]] = []

    def start(count: int, *more: str, plan: dict[str, Any] | None = None, flags: tuple[str, ...] = ()) -> Any:
        process = harness.start(supervise(tmp_path / "run", data, count, *more, flags=flags), tmp_path, plan)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("kind", "rank", "count", "phase", "step"),
    [
        ("SIGKILL", 1, 2, "train", 17),
        slow("SIGKILL", 2, 3, "evaluate", 13),
        slow("SIGKILL", 0, 2, "checkpoint", 26),
        slow("SIGSTOP", 1, 2, "train", 21),
    ],
)
def test_recovers_by_itself(supervised, tmp_path, unbroken, kind, rank, count, phase, step):
    plan = fault(tmp_path, kind, rank, step, phase)
    process = supervised(count, "--safety.watchdog-s=4", plan=plan)
    code, printed = harness.finish(process)
    assert code == 0, printed
    assert "restarting from the newest saved state; 9 restarts left" in printed
    assert "Traceback" not in printed
    harness.assert_same(tmp_path / "run", unbroken(count))
    assert len(records(tmp_path / "run", "epoch")) == 3, "an epoch counts once, when its checkpoint is there"


@pytest.mark.slow
def test_a_stop_while_it_restarts_loses_nothing_that_was_saved(supervised, tmp_path, unbroken):
    process = supervised(2, plan=fault(tmp_path, "SIGKILL", 1, 17))
    harness.wait_for(lambda: (tmp_path / "once").exists() or process.poll() is not None)
    time.sleep(1.5)
    process.terminate()
    code, printed = harness.finish(process)
    assert code in (ExitCode.STOPPED, ExitCode.DONE), printed
    assert harness.saved_step(tmp_path / "run") >= 13, printed
    code, printed = harness.finish(supervised(2))
    assert code == 0, printed
    harness.assert_same(tmp_path / "run", unbroken(2))


@pytest.mark.slow
def test_preempted_by_others_it_starts_again_and_that_costs_no_restart(supervised, tmp_path, unbroken):
    process = supervised(2, plan=fault(tmp_path, "SIGTERM", 1, 11), flags=("--max-restarts", "0"))
    code, printed = harness.finish(process)
    assert code == 0, printed
    assert "restarting from the newest saved state; 0 restarts left" in printed
    (resume,) = [
        json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines() if "resume" in line
    ]
    assert resume["step"] == 13, "a step was lost"  # the signal comes in step 12, after its wish
    harness.assert_same(tmp_path / "run", unbroken(2))


@pytest.mark.parametrize("phase", ["train", slow("evaluate"), slow("save")])
def test_asked_to_stop_it_passes_that_on(supervised, tmp_path, unbroken, phase):
    """The fault only marks the moment: SIGTERM goes to the supervisor."""
    plan = fault(tmp_path, "mark", 0, 13, phase)
    began = time.monotonic()
    process = supervised(2, plan=plan)
    harness.wait_for(lambda: (tmp_path / "once").exists() or process.poll() is not None)
    process.terminate()
    requested = time.monotonic()
    code, printed = harness.finish(process)
    assert code == ExitCode.STOPPED, printed
    assert time.monotonic() - requested < max(10, requested - began)
    assert "saved after step" in printed
    assert harness.saved_step(tmp_path / "run") == harness.steps(tmp_path / "run")[-1][0]
    code, printed = harness.finish(supervised(2))
    assert code == 0, printed
    harness.assert_same(tmp_path / "run", unbroken(2))


def test_killed_itself_it_leaves_no_orphan_and_nothing_is_lost(supervised, tmp_path, unbroken):
    process = supervised(2, "--epochs=3", plan=fault(tmp_path, "mark", 0, 6))
    harness.wait_for(lambda: (tmp_path / "once").exists() or process.poll() is not None)
    started = {pid: start_time(pid) or 0 for pid in descendants(process.pid)}
    process.kill()
    code, printed = harness.finish(process)
    assert code == -signal.SIGKILL
    harness.wait_for(lambda: not any(start_time(pid) == start for pid, start in started.items()), 40)
    assert harness.saved_step(tmp_path / "run") >= 6
    code, printed = harness.finish(supervised(2))
    assert code == 0, printed
    harness.assert_same(tmp_path / "run", unbroken(2))


@needs("ss")
def test_nothing_listens_but_on_loopback(supervised, tmp_path):
    process = supervised(2, "--epochs=400")
    harness.wait_for(lambda: harness.has_saved(tmp_path / "run") or process.poll() is not None)
    pids = {process.pid, *descendants(process.pid)}
    listening = subprocess.run(["ss", "-Hlnptu"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in listening.splitlines() if pids & set(map(int, re.findall(r"pid=(\d+)", line)))]
    process.terminate()
    code, printed = harness.finish(process)
    assert code == ExitCode.STOPPED, printed
    assert all(line.split()[4].startswith("127.0.0.1:") for line in lines), lines
