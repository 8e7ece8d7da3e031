"""Hangs: the watchdog ends the run within its limit and records the stacks of every rank."""

import json
import os
import re
import signal
import time

import pytest

from crepe_dist.distributed.signals import SignalHandler
from crepe_dist.distributed.watchdog import Watchdog, process_start_time
from crepe_dist.errors import ExitCode
from tests.chaos import harness
from tests.chaos.harness import slow
from tests.conftest import needs_kernels

LIMIT = 4.0


@needs_kernels
@pytest.mark.parametrize(
    ("kind", "processes", "phase", "step"),
    [("SIGSTOP", 2, "train", 15), slow("late", 3, "train", 15)],
)
def test_one_of_many(trial, kind, processes, phase, step):
    fault = trial.fault(kind, step, 1, phase)
    began = time.monotonic()
    arguments = harness.command(trial.run_dir, trial.data, processes, f"--safety.watchdog-s={LIMIT}")
    process = harness.start(arguments, trial.folder, fault)
    harness.wait_for(lambda: trial.has_struck or process.poll() is not None)
    struck = time.monotonic()
    code, printed = harness.finish(process)
    # On a busy machine, the end takes long as well.
    assert time.monotonic() - struck < LIMIT + max(15, 3 * (struck - began))
    assert code != 0
    assert re.search(rf"error: no progress for \d+ s at step \d+ \({phase}\)", printed), printed
    if kind == "SIGSTOP":
        assert re.search(r"why: rank 1 on \S+ \(pid \d+\) is suspended \(SIGSTOP\)", printed), printed
    told = []  # Written by the first rank that notices the hang, and by others if they have time.
    for rank in range(processes):
        written = (trial.run_dir / "stacks" / f"rank_{rank}.txt").read_text()
        assert json.loads(written.splitlines()[0])["rank"] == rank
        assert 'File "' in written, f"no stack of rank {rank}"
        told += re.findall(r"no progress for \d+ s: (.*)", written)
    where = json.loads(told[0])
    assert where["phase"] == phase
    assert where["step"] >= step - 1
    assert where["host"]


@pytest.mark.slow
def test_a_process_that_was_stopped_and_continued_is_not_hung(trial):
    """As if the user pressed Ctrl-Z, and entered ``fg`` after more than the time limit."""
    arguments = harness.command(trial.run_dir, trial.data, 1, "--safety.watchdog-s=2", "--epochs=20")
    process = harness.start(arguments, trial.folder)
    harness.wait_for(lambda: harness.has_saved(trial.run_dir))
    process.send_signal(signal.SIGSTOP)
    time.sleep(8)
    process.send_signal(signal.SIGCONT)
    code, printed = harness.finish(process)
    assert code == 0, printed


@needs_kernels
def test_the_exit_code_of_a_hang(trial):
    """A single process waits for an event that never occurs."""
    code, printed = trial.run(1, "--safety.watchdog-s=2", fault=trial.fault("late", 5))
    assert code == ExitCode.HUNG, printed
    assert "worker.py" in (trial.run_dir / "stacks" / "rank_0.txt").read_text()


def test_the_rank_that_others_wait_for_is_named(tmp_path):
    with Watchdog(SignalHandler(), 100, 0) as watchdog:
        me = watchdog.identity()
        watchdog.open_stack_file(tmp_path / "stacks" / "rank_0.txt", [me, {**me, "host": "another", "pid": 5}])
        assert watchdog._cause().startswith("a process is suspended, a host or network is lost")
        watchdog.late_rank = lambda: 1
        assert watchdog._cause() == "this rank waits for a message from rank 1 on another (pid 5)"


def test_only_the_processes_that_were_named_are_ended(tmp_path):
    with Watchdog(SignalHandler(), 100, 0) as watchdog:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        me, began = watchdog.identity(), process_start_time(child) or 0
        other = {**me, "pid": child, "start": began}
        # A later process with the same id, and a process of another host, are not killed.
        for named in ({**other, "start": began + 1}, {**other, "host": "another"}, other):
            assert process_start_time(child) == began
            watchdog.open_stack_file(tmp_path / "stacks" / "rank_0.txt", [me, named])
            watchdog._signal_peers(signal.SIGKILL)
            time.sleep(0.1)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
