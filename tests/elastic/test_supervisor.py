"""Tests of the elastic driver with processes of this host. ``worker.py`` replaces the training."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from crepe_dist import invocation
from crepe_dist.distributed.job_end import explain_horovodrun_exit
from crepe_dist.train import Supervise
from tests.chaos import harness
from tests.helpers.programs import program

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture
def marker():
    marker = f"CREPE_DIST_TEST={uuid.uuid4().hex}"
    yield marker
    end = time.monotonic() + 2
    while (alive := harness.processes(marker, "environ")) and time.monotonic() < end:
        time.sleep(0.02)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    assert not alive, "the test left processes behind"


@pytest.fixture
def environment(marker):
    name, _, value = marker.partition("=")
    return {**os.environ, name: value}


@pytest.fixture
def start(tmp_path, environment):
    """Function that starts a supervisor whose processes run an action of ``worker.py``."""

    def of(action: str, processes: int = 2, *flags: str) -> subprocess.Popen[str]:
        worker = ["-S", str(WORKER), action, str(tmp_path)]
        options = ["-np", str(processes), "--grace", "5", *flags]
        return subprocess.Popen(
            program("elastic/supervise.py", *options, *worker),
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return of


@pytest.fixture
def run(start):
    """Exit code and output of a supervisor that ends by itself."""

    def of(action: str, processes: int = 2, *flags: str) -> tuple[int, str, str]:
        process = start(action, processes, *flags)
        stdout, stderr = process.communicate(timeout=60)
        return process.returncode, stdout, stderr

    return of


def starts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("start-*"))


class TestEnds:
    """Meaning of the ends of processes."""

    def test_all_done(self, run, tmp_path):
        code, stdout, stderr = run("print_to_both_streams", 3)
        assert code == 0
        assert sorted(stdout.splitlines()) == ["[rank 1] out 1", "[rank 2] out 2", "out 0"]
        assert stderr.count("\n[rank 9] own") == 3
        assert starts(tmp_path) == ["start-0-0", "start-0-1", "start-0-2"]

    def test_who_does_not_notice_that_a_peer_is_gone_is_killed_even_if_stopped(self, run):
        code, _, stderr = run("suspend_or_fail_once")
        assert code == 0
        killed, failed = "rank 0 on 127.0.0.1 was killed by signal 9 (Killed)", "rank 1 on 127.0.0.1 ended with code 70"
        assert f"{killed}, because it did not exit within 0.5 s after {failed} (a failure that may pass)\n" in stderr

    def test_the_cause_is_named_and_not_the_rank_that_waits_for_it(self, run):
        code, _, stderr = run("mistake_of_one")
        assert code == 1
        cause = "rank 1 on 127.0.0.1 ended with code 1 (an error that a user can fix)"
        assert (
            f"rank 0 on 127.0.0.1 was killed by signal 9 (Killed), because it did not exit within 0.5 s after {cause}\n"
            in stderr
        )
        assert f"error: {cause}\n" in stderr

    def test_memory_is_blamed_only_for_a_kill_without_another_cause(self, run):
        killed = "rank 1 on 127.0.0.1 was killed by signal 9 (Killed)"
        code, _, stderr = run("hang_until_a_watchdog_kills")
        assert code == 0
        assert f"{killed}, by the watchdog of rank 0" in stderr
        assert "memory" not in stderr

    def test_a_kill_by_the_system_may_be_for_lack_of_memory(self, run):
        code, _, stderr = run("kill_itself_once")
        assert code == 0
        killed = r"rank 1 on 127.0.0.1 was killed by signal 9 \(Killed\)"
        assert re.search(rf"[-\d]+ [:\d]+ supervise: {killed}; perhaps the machine ran out of memory", stderr), stderr

    @pytest.mark.parametrize("processes", [1, 2])
    def test_a_start_whose_ranks_are_all_stopped_is_killed(self, run, tmp_path, processes):
        code, _, stderr = run("suspend_once", processes)
        assert code == 0, stderr
        assert len(re.findall(r"rank \d on 127.0.0.1 has been suspended, .*; all ranks are killed", stderr)) == 1
        assert "rank 0 on 127.0.0.1 ended with code 76 (no progress)" in stderr
        assert len(starts(tmp_path)) == 2 * processes

    def test_a_rank_may_be_stopped_while_the_supervisor_is(self, start, tmp_path):
        """Ctrl-Z for longer than the limit, and later fg."""
        process = start("wait_for_the_end", 1)
        harness.wait_for(lambda: (tmp_path / "up").exists() and (tmp_path / "up").read_text())
        rank = int((tmp_path / "up").read_text())
        for pid in (process.pid, rank):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(4)
        for pid in (process.pid, rank):
            os.kill(pid, signal.SIGCONT)
        (tmp_path / "end").touch()
        _, stderr = process.communicate(timeout=20)
        assert process.returncode == 0, stderr
        assert len(starts(tmp_path)) == 1, stderr

    def test_output_that_is_no_text_or_long_or_much(self, run):
        code, stdout, _ = run("print_bytes_and_lines", 1)
        assert code == 0
        lines = stdout.splitlines()
        assert [len(line) for line in lines[:3]] == [8192, 8192, 3616]
        assert [line.split()[0] for line in lines[3:]] == [str(n) for n in range(50_000)]


class TestStopping:
    @pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
    def test_a_signal_asks_all_to_stop(self, start, tmp_path, number, expected):
        process = start("stop_on_request")
        harness.wait_for(lambda: len(list(tmp_path.glob("up-*"))) == 2)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=20)
        assert process.returncode == expected, stderr
        assert len(starts(tmp_path)) == 2

    def test_between_a_failure_and_its_restart(self, start):
        process = start("fail", 1)
        assert process.stderr is not None
        while "after 2 s" not in (line := process.stderr.readline()):
            assert line
        process.terminate()
        _, stderr = process.communicate(timeout=20)
        assert process.returncode == 75, stderr

    def test_after_the_grace_they_are_killed(self, start, tmp_path):
        process = start("ignore_requests", 2, "--grace", "0.3")
        harness.wait_for(lambda: len(list(tmp_path.glob("up-*"))) == 2)
        process.terminate()
        process.communicate(timeout=20)
        assert process.returncode == 137

    def test_a_second_interrupt_kills_at_once(self, start, tmp_path):
        process = start("note_requests", 1, "--grace", "1000")
        harness.wait_for((tmp_path / "up-0").exists)
        process.send_signal(signal.SIGINT)
        harness.wait_for((tmp_path / "asked").exists)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130


def test_a_command_of_another_launcher_is_not_taken_for_the_place(run, tmp_path, monkeypatch, environment):
    environment.update(HOROVOD_RANK="17", HOROVOD_SIZE="20", OMPI_COMM_WORLD_RANK="3", HOROVOD_CYCLE_TIME="7")
    assert run("note_launcher_variables")[0] == 0
    assert (tmp_path / "seen-0").read_text() == "['HOROVOD_CYCLE_TIME']"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (137, "error: rank 1 was killed by signal 9"),
        (255, "error: rank 1 could not be reached by ssh"),
        (76, "error: rank 1 ended with exit code 76"),
        (75, "stopped on request, and saved"),
        (1, "error: rank 1 could not continue; its message above"),
    ],
)
def test_a_failed_job_of_horovodrun_is_explained(code, said):
    """In the last lines, which our build of Horovod takes from here instead of a traceback."""
    failed = RuntimeError(f"The first process to do so was:\nProcess name: 1\nExit code: {code}\n")
    job = ["/usr/bin/horovodrun", "-np", "2", "python", "-m", "crepe_dist.train", "--fresh", "--data", "my data"]
    lines = explain_horovodrun_exit(failed, job).splitlines()
    assert lines[0].startswith(said)
    assert (lines[-1].strip() == "horovodrun -np 2 python -m crepe_dist.train --data 'my data'") == (code != 1)


def test_the_processes_print_commands_as_the_user_types_them(monkeypatch, tmp_path):
    monkeypatch.setenv(invocation.PROGRAM_ENV, "")  # monkeypatch then removes what the supervisor sets.
    monkeypatch.delenv(invocation.PROGRAM_ENV)
    monkeypatch.setattr(sys, "argv", ["/env/bin/crepe", "supervise"])
    note = tmp_path / "note"
    code = f"from crepe_dist import invocation; open({str(note)!r}, 'w').write(invocation.program_name('predict'))"
    Supervise(processes=1, worker=["-c", code]).run()
    assert note.read_text() == "crepe predict"
