"""Under the supervisor: recovery, preemption, reasons and exit codes, ports, environment."""

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from crepe_dist.distributed.watchdog import process_start_time
from crepe_dist.errors import ExitCode
from tests.chaos import harness
from tests.chaos.harness import slow
from tests.conftest import needs_kernels, records
from tests.helpers.needs import needs


def descendants(pid: int) -> list[int]:
    """Return the ids of the child processes of a process, of their children, and so on."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # The process has ended in the meantime.
            for child in map(int, file.read_text().split()):
                found += [child, *descendants(child)]
    return found


@pytest.fixture
def supervised(trial: harness.Trial) -> Iterator[Any]:
    """Function that starts a supervisor. All supervisors are killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def start(count: int, *more: str, plan: dict[str, Any] | None = None, flags: tuple[str, ...] = ()) -> Any:
        arguments = harness.supervise(trial.run_dir, trial.data, count, *more, flags=flags)
        started.append(harness.start(arguments, trial.folder, plan))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def ends_as_unbroken(process, trial):
    code, printed = harness.finish(process)
    assert code == 0, printed
    harness.assert_same(trial.run_dir, trial.unbroken())
    return printed


@needs_kernels
@pytest.mark.parametrize(
    ("kind", "rank", "count", "phase", "step"),
    [
        ("SIGKILL", 1, 2, "train", 17),
        slow("SIGKILL", 0, 3, "checkpoint", 26),
        slow("SIGSTOP", 0, 1, "evaluate", 21),
        slow("SIGSTOP", 1, 2, "train", 21),
    ],
)
def test_recovers_by_itself(supervised, trial, kind, rank, count, phase, step):
    process = supervised(count, "--safety.watchdog-s=4", plan=trial.fault(kind, step, rank, phase))
    printed = ends_as_unbroken(process, trial)
    assert "restarting from the newest saved state; 9 restarts left" in printed
    assert "Traceback" not in printed
    assert len(records(trial.run_dir, "epoch")) == 3, "an epoch counts once, when its checkpoint is there"


@pytest.mark.slow
def test_preempted_by_others_it_starts_again_and_that_costs_no_restart(supervised, trial):
    process = supervised(2, plan=trial.fault("SIGTERM", 11, 1), flags=("--max-restarts", "0"))
    assert "restarting from the newest saved state; 0 restarts left" in ends_as_unbroken(process, trial)
    (resume,) = records(trial.run_dir, "resume")
    assert resume["step"] == 13, "a step was lost"  # the signal comes in step 12, after its wish


@needs_kernels
def test_killed_itself_it_leaves_no_orphan_and_nothing_is_lost(supervised, trial):
    process = supervised(2, plan=trial.fault("mark", 6))
    harness.wait_for(lambda: trial.has_struck or process.poll() is not None)
    started = {pid: process_start_time(pid) or 0 for pid in descendants(process.pid)}
    process.kill()
    assert harness.finish(process)[0] == -signal.SIGKILL
    harness.wait_for(lambda: not any(process_start_time(pid) == start for pid, start in started.items()))
    assert harness.saved_step(trial.run_dir) >= 6
    trial.resume()


@needs_kernels
@needs("ss")
def test_nothing_listens_but_on_loopback(supervised, trial):
    process = supervised(2, "--epochs=400")
    harness.wait_for(lambda: harness.has_saved(trial.run_dir) or process.poll() is not None)
    pids = {process.pid, *descendants(process.pid)}
    listening = subprocess.run(["ss", "-Hlnptu"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in listening.splitlines() if pids & set(map(int, re.findall(r"pid=(\d+)", line)))]
    process.terminate()
    code, printed = harness.finish(process)
    assert code == ExitCode.STOPPED, printed
    assert all(line.split()[4].startswith("127.0.0.1:") for line in lines), lines
