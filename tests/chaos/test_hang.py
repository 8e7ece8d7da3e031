"""Hangs: the watchdog ends the run within its limit and records the stacks of every rank."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time

import pytest

from crepe_dist.distributed import watchdog as module
from crepe_dist.distributed.control import Control
from crepe_dist.distributed.watchdog import Watchdog, start_time
from crepe_dist.errors import ExitCode
from tests.chaos import harness
from tests.chaos.harness import slow

LIMIT = 4.0


@pytest.mark.parametrize(
    ("kind", "processes", "phase", "step"),
    [("SIGSTOP", 2, "train", 15), slow("SIGSTOP", 3, "evaluate", 13), slow("late", 2, "train", 15)],
)
def test_one_of_many(trial, kind, processes, phase, step):
    fault = trial.fault(kind, step, 1, phase)
    began = time.monotonic()
    arguments = harness.command(trial.run_dir, trial.data, processes, f"--safety.watchdog-s={LIMIT}")
    process = harness.start(arguments, trial.folder, fault)
    harness.wait_for(lambda: trial.has_struck, 120)
    struck = time.monotonic()
    code, printed = harness.finish(process)
    # Where coming so far took long, so does the end; and where steps do, the watchdog waits for ten of them.
    assert time.monotonic() - struck < LIMIT + max(15, 3 * (struck - began))
    assert code != 0
    assert re.search(rf"error: no progress for \d+ s at step \d+ \({phase}\)", printed), printed
    told = []  # by the first to notice, and by others if it left them the time
    for rank in range(processes):
        written = (trial.run_dir / "stacks" / f"rank_{rank}.txt").read_text()
        assert json.loads(written.splitlines()[0])["rank"] == rank
        assert 'File "' in written, f"no stack of rank {rank}"
        told += re.findall(r"no progress for \d+ s: (.*)", written)
    where = json.loads(told[0])
    assert where["phase"] == phase
    assert where["step"] >= step - 1
    assert where["host"]
    trial.resume(processes)


@pytest.mark.slow
def test_a_process_that_was_stopped_and_continued_is_not_hung(trial):
    """Ctrl-Z, a while later fg."""
    arguments = harness.command(trial.run_dir, trial.data, 1, "--safety.watchdog-s=2", "--epochs=20")
    process = harness.start(arguments, trial.folder)
    harness.wait_for(lambda: harness.has_saved(trial.run_dir))
    process.send_signal(signal.SIGSTOP)
    time.sleep(8)
    process.send_signal(signal.SIGCONT)
    code, printed = harness.finish(process)
    assert code == 0, printed


def test_the_exit_code_of_a_hang(trial):
    """One process that waits for something that never comes."""
    code, printed = trial.run(1, "--safety.watchdog-s=2", fault=trial.fault("late", 5))
    assert code == ExitCode.HUNG, printed
    assert "worker.py" in (trial.run_dir / "stacks" / "rank_0.txt").read_text()


class TestWatchdog:
    @pytest.fixture
    def ended(self, monkeypatch):
        """Instead of ending the process."""
        event = threading.Event()
        monkeypatch.setattr(module, "TICK_SECONDS", 0.02)
        monkeypatch.setattr(Watchdog, "_end", lambda self, where, seconds: event.set())
        return event

    def test_progress_keeps_it_quiet(self, ended):
        with Watchdog(Control(), 0.3, 0) as watchdog:
            for _ in range(10):
                time.sleep(0.1)
                watchdog.beat()
            assert not ended.is_set()
            assert ended.wait(5)

    def test_slow_steps_are_learnt_but_not_the_first_which_compiles(self):
        watchdog = Watchdog(Control(), 0.5, 0)
        watchdog.beat("train")
        for seconds in (0.3, 0.1, 0.1, 0.1):
            assert watchdog.limit == 0.5, "one or two long steps are no rule"
            time.sleep(seconds)
            watchdog.beat("train")
        assert 1.0 <= watchdog.limit < 3.0

    @pytest.mark.parametrize(("stopped", "limit"), [(100, 0.5), (0, 5)])
    def test_no_limit_follows_from_a_stop_and_slow_steps_have_one(self, stopped, limit):
        watchdog = Watchdog(Control(), 0.5, 0)
        for _ in range(6):
            watchdog.beat("train")
            watchdog._since -= 100
            watchdog._looked -= stopped  # after SIGCONT, the thread has not looked for as long
        assert watchdog.limit == limit

    def test_who_trusts_others_waits_for_them(self, ended):
        with Watchdog(Control(), 0.1, 0) as watchdog:
            watchdog.before_long_wait()
            assert not ended.wait(0.5)
            watchdog.beat()
            assert ended.wait(5)

    def test_it_ends_the_process_also_if_it_cannot_write(self, tmp_path):
        """Standard error is closed, and so is the file of stacks."""
        body = (
            "import os, pathlib, time; from crepe_dist.distributed.control import Control; "
            "from crepe_dist.distributed.watchdog import Watchdog; watchdog = Watchdog(Control(), 0.1, 0); "
            f"watchdog.__enter__(); watchdog.write_to(pathlib.Path({str(tmp_path / 'stacks' / 'x')!r}), []); "
            "os.close(2); os.close(watchdog._stacks.fileno()); time.sleep(60)"
        )
        code, _ = harness.run([sys.executable, "-c", body], tmp_path)
        assert code == ExitCode.HUNG

    def test_only_the_processes_that_were_named_are_ended(self, tmp_path):
        with Watchdog(Control(), 100, 0) as watchdog:
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            me = watchdog.identity()
            child_start = start_time(child) or 0
            watchdog.write_to(tmp_path / "stacks" / "rank_0.txt", [me, {**me, "pid": child, "start": child_start + 1}])
            watchdog._signal_peers(signal.SIGKILL)  # the id was given to another process meanwhile
            time.sleep(0.2)
            assert start_time(child) == child_start
            other = {**me, "pid": child, "start": child_start, "host": "another"}
            watchdog.write_to(tmp_path / "stacks" / "rank_0.txt", [me, other])
            watchdog._signal_peers(signal.SIGKILL)
            time.sleep(0.2)
            assert start_time(child) == child_start
            watchdog.write_to(tmp_path / "stacks" / "rank_0.txt", [me, {**other, "host": me["host"]}])
            watchdog._signal_peers(signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WTERMSIG(status) == signal.SIGKILL
