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
def test_one_of_many(data, tmp_path, unbroken, kind, processes, phase, step):
    run_dir = tmp_path / "run"
    arguments = harness.command(run_dir, data, processes, f"--safety.watchdog-s={LIMIT}")
    fault = {"kind": kind, "rank": 1, "phase": phase, "step": step, "once": str(tmp_path / "once")}
    began = time.monotonic()
    process = harness.start(arguments, tmp_path, fault)
    harness.wait_for(lambda: (tmp_path / "once").exists(), 120)
    struck = time.monotonic()
    code, printed = harness.finish(process)
    # Where coming so far took long, so does the end; and where steps do, the watchdog waits for ten of them.
    assert time.monotonic() - struck < LIMIT + max(15, 3 * (struck - began))
    assert code != 0
    assert re.search(rf"error: no progress for \d+ s at step \d+ \({phase}\)", printed), printed
    told = []  # by the first to notice, and by others if it left them the time
    for rank in range(processes):
        written = (run_dir / "stacks" / f"rank_{rank}.txt").read_text()
        assert json.loads(written.splitlines()[0])["rank"] == rank
        assert 'File "' in written, f"no stack of rank {rank}"
        told += re.findall(r"no progress for \d+ s: (.*)", written)
    where = json.loads(told[0])
    assert where["phase"] == phase
    assert where["step"] >= step - 1
    # The last batch of an epoch, before its scoring, has one document: only one rank has a row of it.
    assert len(where["rows"]) <= 64
    assert where["rows"] or phase == "evaluate"
    assert where["host"]
    code, printed = harness.run(harness.command(run_dir, data, processes), tmp_path)
    assert code == 0, printed
    harness.assert_same(run_dir, unbroken(processes))


@pytest.mark.slow
def test_a_process_that_was_stopped_and_continued_is_not_hung(data, tmp_path):
    """Ctrl-Z, a while later fg."""
    run_dir = tmp_path / "run"
    arguments = harness.command(run_dir, data, 1, "--safety.watchdog-s=2", "--epochs=20")
    process = harness.start(arguments, tmp_path)
    harness.wait_for(lambda: harness.has_saved(run_dir))
    process.send_signal(signal.SIGSTOP)
    time.sleep(8)
    process.send_signal(signal.SIGCONT)
    code, printed = harness.finish(process)
    assert code == 0, printed


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
        time.sleep(0.3)
        watchdog.beat("train")
        assert watchdog.limit == 0.5
        for _ in range(3):
            assert watchdog.limit == 0.5, "one or two long steps are no rule"
            time.sleep(0.1)
            watchdog.beat("train")
        assert 1.0 <= watchdog.limit < 3.0

    def test_it_is_not_learnt_what_passed_while_the_process_was_stopped(self):
        watchdog = Watchdog(Control(), 0.5, 0)
        for _ in range(6):
            watchdog.beat("train")
            watchdog._since -= 100  # as after SIGCONT, before the thread has looked again
            watchdog._looked -= 100
        assert watchdog.limit == 0.5

    def test_however_slow_steps_were_there_is_a_limit(self):
        watchdog = Watchdog(Control(), 0.5, 0)
        for _ in range(6):
            watchdog.beat("train")
            watchdog._since -= 100
        assert watchdog.limit == 5

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


def test_the_exit_code_of_a_hang(data, tmp_path):
    """One process that waits for something that never comes."""
    arguments = harness.command(tmp_path / "run", data, 1, "--safety.watchdog-s=2")
    fault = {"kind": "late", "rank": 0, "phase": "train", "step": 5, "once": str(tmp_path / "once")}
    code, printed = harness.run(arguments, tmp_path, fault)
    assert code == ExitCode.HUNG, printed
    assert "worker.py" in (tmp_path / "run" / "stacks" / "rank_0.txt").read_text()
