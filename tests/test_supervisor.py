"""The supervisor and its agents, with small scripts as workers that speak the control protocol."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from pathlib import Path

import pytest

from crepe_dist import supervise
from crepe_dist.distributed import peer_loss, processes
from crepe_dist.distributed.hosts import Host, allocate
from crepe_dist.errors import UserError
from crepe_dist.supervising import fleet, group, supervisor
from crepe_dist.supervising.console import Console
from crepe_dist.supervising.recovery import NOWHERE, BackOff
from crepe_dist.supervising.supervisor import Options, Supervisor

# What each worker script begins with; its first argument is a folder for what it has to tell the test.
PRELUDE = """
import json, os, signal, socket, sys, time
from pathlib import Path
rank, size, generation = (int(os.environ[n]) for n in ("HOROVOD_RANK", "HOROVOD_SIZE", "CREPE_DIST_GENERATION"))
folder = Path(sys.argv[1])
control = socket.socket(fileno=int(os.environ["CREPE_DIST_CONTROL_FD"]))
lines = control.makefile()
def send(**message): control.sendall(json.dumps(message).encode() + b"\\n")
def beat(step, limit=60): send(kind="beat", rank=rank, step=step, epoch=0, documents=0, phase="train", limit=limit)
def hear():
    line = lines.readline()
    return json.loads(line) if line else {"kind": "stop", "why": "the channel is closed"}
def stay():
    while hear()["kind"] != "stop":
        pass
    sys.exit(75)
def die(number=signal.SIGKILL): os.kill(os.getpid(), number)
def note(name, text=""): (folder / name).write_text(str(text))
def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.01)
    return (folder / name).read_text()
"""


def script(body: str, folder: Path) -> list[str]:
    return [sys.executable, "-S", "-c", PRELUDE + textwrap.dedent(body), str(folder)]


def left(marker: str) -> list[int]:
    """Processes whose environment has the marker."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def until(condition, what: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.01)


class Run:
    """A supervisor in a thread."""

    def __init__(self, command: list[str], options: Options, environment: dict[str, str], cwd: Path) -> None:
        self.stdout, self.stderr = io.StringIO(), io.StringIO()
        self.supervisor = Supervisor(command, options, environment, str(cwd), Console(self.stdout, self.stderr))
        self.code: int | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.code = self.supervisor.run()

    def end(self, seconds: float = 30) -> tuple[int | None, str]:
        """Exit code and what the supervisor said."""
        self.thread.join(seconds)
        assert not self.thread.is_alive(), self.stderr.getvalue()
        return self.code, self.stderr.getvalue()


@pytest.fixture
def marker():
    marker = f"CREPE_DIST_TEST={uuid.uuid4().hex}"
    yield marker
    end = time.monotonic() + 2
    while (alive := left(marker)) and time.monotonic() < end:
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
    runs = []

    def of(body: str, processes: int = 2, **options) -> Run:
        options.setdefault("hosts", (Host("localhost", processes),))
        chosen = Options(processes=processes, **{"grace": 5.0, **options})
        runs.append(Run(script(body, tmp_path), chosen, environment, tmp_path))
        return runs[-1]

    yield of
    for run in runs:
        for _ in range(2):  # the second kills
            run.supervisor.signal(signal.SIGINT)
        run.thread.join(20)
        assert not run.thread.is_alive()


def begin(folder: Path, environment: dict[str, str], body: str, first: str = "") -> subprocess.Popen[str]:
    """A supervisor of two workers in a process of its own; ``first``: what it does before."""
    main = f"""
import sys
from crepe_dist import supervise
from crepe_dist.distributed.hosts import Host
from crepe_dist.supervising.supervisor import Options
{first}
sys.exit(supervise.run(Options(2, (Host("localhost", 2),), grace=1.0), {script(body, folder)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", main], env=environment, cwd=folder, stderr=-1, text=True)
    until(lambda: len(list(folder.glob("up-*"))) >= 2, "both are up")
    return process


class TestEnds:
    """Meaning of the ends of workers."""

    def test_all_done(self, start, tmp_path):
        run = start("print('out', rank); print('[rank 9] own', file=sys.stderr); note(f'{rank} of {size}')", 3)
        code, said = run.end()
        assert code == 0
        assert sorted(run.stdout.getvalue().splitlines()) == ["[rank 1] out 1", "[rank 2] out 2", "out 0"]
        assert said.count("\n[rank 9] own") == 3
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0 of 3", "1 of 3", "2 of 3"]

    @pytest.mark.parametrize(("ends", "expected"), [("1", 1), ("2", 2), ("130", 130), ("69 if rank else 1", 1)])
    def test_no_restart(self, start, tmp_path, ends, expected):
        code, _ = start(f"note(f'{{generation}}-{{rank}}'); sys.exit({ends})").end()
        assert code == expected
        assert not list(tmp_path.glob("1-*"))

    @pytest.mark.parametrize(
        ("ends", "expected"),
        [("sys.exit(70)", 70), ("sys.exit(76)", 76), ("sys.exit(69)", 69), ("die(11)", 139), ("die()", 137)],
    )
    def test_restarts_until_the_budget_is_used_up(self, start, tmp_path, ends, expected):
        body = f"beat(generation)\nnote(f'{{generation}}-{{rank}}')\n{ends}"
        code, said = start(body, 1, max_restarts=2).end()
        assert code == expected
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0-0", "1-0", "2-0"]
        assert "1 of 2 restarts left" in said
        assert "0 of 2 restarts left" in said
        assert "giving up: rank 0" in said
        assert ("perhaps the machine ran out of memory (see dmesg)" in said) == (ends == "die()")

    def test_the_cause_is_who_ended_first_but_for_those_who_lost_a_peer(self, start):
        body = """
            if rank == 0: sys.exit(69)
            time.sleep(0.3)
            sys.exit(70)
        """
        code, said = start(body, max_restarts=0).end()
        assert code == 70
        assert "giving up: rank 1" in said

    def test_a_failure_is_followed_by_a_start_with_all(self, start, tmp_path):
        body = """
            beat(1)
            note(f"{generation}-{rank}", os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"])
            if generation: sys.exit(0)
            if rank == 1: die()
            wait_for("0-1"); time.sleep(0.2); sys.exit(69)
        """
        code, said = start(body).end()
        assert code == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0-0", "0-1", "1-0", "1-1"]
        assert (tmp_path / "1-0").read_text() == (tmp_path / "1-1").read_text() != (tmp_path / "0-0").read_text()
        assert "9 of 10 restarts left" in said

    def test_who_does_not_notice_that_a_peer_is_gone_is_killed_even_if_stopped(self, start, monkeypatch, tmp_path):
        monkeypatch.setattr(supervisor, "OWN_END_SECONDS", 0.2)
        body = """
            if generation: sys.exit(0)
            if rank == 0: die(signal.SIGSTOP)
            time.sleep(0.3)
            sys.exit(70)
        """
        code, said = start(body).end()
        assert code == 0
        assert "dmesg" not in said

    def test_a_preemption_is_free_and_the_others_may_save(self, start, monkeypatch, tmp_path):
        monkeypatch.setattr(supervisor, "OWN_END_SECONDS", 0.0)
        body = """
            if generation == 3: sys.exit(0)
            beat(generation)
            if rank == 1: sys.exit(75)
            time.sleep(0.3)
            note(f"{generation}-saved")
            sys.exit(75)
        """
        code, said = start(body, max_restarts=0).end()
        assert code == 0
        assert len(list(tmp_path.glob("*-saved"))) == 3
        assert said.count("preempted") == 3

    def test_a_worker_that_cannot_be_started(self, tmp_path, environment):
        run = Run(["/nowhere/python"], Options(max_restarts=0), environment, tmp_path)
        code, said = run.end()
        assert code == 127
        assert "cannot be started" in said

    def test_what_a_worker_started_goes_with_it(self, start):
        run = start("import subprocess\nsubprocess.Popen(['sleep', '1000'])\nif not generation: die()\n", 1)
        assert run.end()[0] == 0  # the fixture looks for what is left


class TestWatching:
    def test_a_worker_that_is_silent_writes_its_stacks_and_is_killed(self, start, monkeypatch):
        monkeypatch.setattr(group, "BEAT_MARGIN_SECONDS", 0.2)
        monkeypatch.setattr(supervisor, "DUMP_SECONDS", 0.5)
        body = """
            import faulthandler
            faulthandler.register(signal.SIGUSR1)
            beat(1, limit=0.2 if rank else 60)
            if generation: sys.exit(0)
            if rank == 1: die(signal.SIGSTOP)
            stay()
        """
        run = start(body, max_restarts=1)
        code, said = run.end()
        assert code == 0
        assert "rank 1" in said
        assert "has sent nothing" in said
        assert said.count("most recent call first") == 2
        assert "0 of 1 restarts left" in said

    def test_without_a_restart_left_the_code_says_that_it_hung(self, start, monkeypatch):
        monkeypatch.setattr(group, "FIRST_BEAT_SECONDS", 0.4)
        monkeypatch.setattr(supervisor, "DUMP_SECONDS", 0.1)
        assert start("stay()", 1, max_restarts=0).end()[0] == 76

    def test_a_process_that_a_peer_kills_to_end_a_hang_is_not_blamed_on_memory(self, start):
        body = """
            beat(1)
            if rank == 1: wait_for("told"); die()
            send(kind="hung", rank=rank)
            note("told")
            time.sleep(0.5)
            sys.exit(76)
        """
        code, said = start(body, max_restarts=0).end()
        assert code == 137
        assert "reports no progress" in said
        assert "was killed by signal 9 (SIGKILL), to end a hang" in said
        assert "dmesg" not in said

    def test_garbage_is_noted_and_harms_nobody(self, start):
        body = """
            control.sendall(b"\\xff\\xfe garbage\\n[1]\\n" + b"[" * 60000 + b"\\n" + b"x" * 200000 + b"\\n{}\\n")
            send(kind="beat", rank="a", step=[], epoch=None, limit=-1)
            send(kind="beat", limit=None, phase="start")
            send(kind="beat", limit=float("nan"), epoch=0, step=0)
            send(kind="beat", limit=1, epoch=0, step=float("inf"))
            send(kind="unheard-of"); send(kind="exit", code=3); send(kind="hung")
            sys.stdout.buffer.write(b"\\xff" * 20000 + b"\\n\\x1b[31m\\n" + b"the end")
        """
        run = start(body, 1)
        code, said = run.end()
        assert code == 0
        assert said.count("ignored") == 2  # the agent once, the supervisor once
        assert [len(line) for line in run.stdout.getvalue().splitlines()[:3]] == [8192, 8192, 3616]
        assert run.stdout.getvalue().endswith("the end\n")

    def test_much_output_arrives_whole(self, start):
        run = start("for n in range(50_000): print(n, 'x' * 50)", 1)
        assert run.end()[0] == 0
        assert [line.split()[0] for line in run.stdout.getvalue().splitlines()] == [str(n) for n in range(50_000)]

    def test_while_the_supervisor_itself_is_stopped_nobody_is_late(self, tmp_path, environment):
        body = """
            for step in range(10_000):
                beat(step, limit=0.1)
                time.sleep(0.02)
                note(f"up-{rank}")
                if (folder / "enough").exists(): sys.exit(0)
        """
        first = "from crepe_dist.supervising import group; group.BEAT_MARGIN_SECONDS = 1.0"
        process = begin(tmp_path, environment, body, first)
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(2)
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(1)
        (tmp_path / "enough").touch()
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "not heard" not in said

    def test_an_environment_that_fits_no_message(self, tmp_path, environment):
        environment["PYTHONPATH"] = "x" * 70_000
        with pytest.raises(UserError, match="too long"):
            Supervisor(["true"], Options(), environment, str(tmp_path)).run()


class TestStopping:
    @pytest.mark.parametrize(("number", "expected"), [("SIGTERM", 75), ("SIGHUP", 75), ("SIGINT", 130)])
    def test_a_signal_asks_all_to_stop(self, start, tmp_path, number, expected):
        body = """
            note(f"up-{rank}")
            message = hear()
            note(f"saved-{rank}", message["why"])
            sys.exit(75)
        """
        run = start(body)
        until(lambda: len(list(tmp_path.glob("up-*"))) == 2, "both are up")
        run.supervisor.signal(getattr(signal, number))
        code, said = run.end()
        assert code == expected
        assert (tmp_path / "saved-0").read_text() == (tmp_path / "saved-1").read_text() == number
        assert "generation 1" not in said

    @pytest.mark.parametrize(("restarts", "expected"), [(1, 75), (0, 70)])
    def test_a_signal_between_a_failure_and_its_restart(self, start, tmp_path, restarts, expected):
        body = """
            beat(1)
            if rank == 1: sys.exit(70)
            hear()
            sys.exit(69)
        """
        run = start(body, max_restarts=restarts)
        until(lambda: "ended with code 70" in run.stderr.getvalue(), "the supervisor knows of the failure")
        run.supervisor.signal(signal.SIGTERM)
        code, said = run.end()
        assert code == expected, said

    def test_after_the_grace_they_are_killed(self, start, tmp_path):
        run = start("note(f'up-{rank}'); time.sleep(1000)", grace=0.3)
        until(lambda: len(list(tmp_path.glob("up-*"))) == 2, "both are up")
        run.supervisor.signal(signal.SIGTERM)
        assert run.end()[0] == 137

    def test_a_second_interrupt_kills_at_once(self, start, tmp_path):
        run = start("note(f'up-{rank}'); time.sleep(1000)", grace=1000.0)
        until(lambda: len(list(tmp_path.glob("up-*"))) == 2, "both are up")
        run.supervisor.signal(signal.SIGINT)
        run.supervisor.signal(signal.SIGINT)
        assert run.end(10)[0] == 130

    def test_while_it_backs_off(self, start):
        run = start("sys.exit(70)", 1)
        until(lambda: "after 2 s" in run.stderr.getvalue(), "the third back-off")
        run.supervisor.signal(signal.SIGTERM)
        assert run.end(3)[0] == 75


class TestNoOrphans:
    """However it ends."""

    @pytest.mark.parametrize("agent_too", [False, True])
    def test_the_supervisor_is_killed(self, tmp_path, environment, marker, agent_too):
        suspended = "" if agent_too else "if rank: die(signal.SIGSTOP)"
        body = f"note(f'up-{{rank}}', os.getppid())\n{suspended}\nhear()\nnote('saved')"
        process = begin(tmp_path, environment, body)
        assert len(left(marker)) >= 4
        until(lambda: (tmp_path / "up-0").read_text(), "the pid is written")
        os.kill(process.pid, signal.SIGSTOP)
        if agent_too:
            os.kill(int((tmp_path / "up-0").read_text()), signal.SIGKILL)
        process.kill()
        process.communicate()
        until(lambda: not left(marker), "all have ended")
        assert agent_too or (tmp_path / "saved").exists()

    @pytest.mark.parametrize("ending", ["stay()", "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"])
    def test_the_agent_is_killed(self, tmp_path, start, ending):
        """Its workers end, by themselves or not, and a new agent starts new ones."""
        body = f"note(f'up-{{generation}}-{{rank}}', os.getppid())\nif generation: sys.exit(0)\n{ending}"
        run = start(body, grace=1.0)
        until(lambda: len(list(tmp_path.glob("up-0-*"))) == 2, "both are up")
        time.sleep(0.1)
        agents = {int(path.read_text()) for path in tmp_path.glob("up-0-*")}
        assert len(agents) == 1
        os.kill(agents.pop(), signal.SIGKILL)
        code, said = run.end()
        assert code == 0
        assert "the agent on localhost is gone" in said
        assert "9 of 10 restarts left" in said
        assert len(list(tmp_path.glob("up-1-*"))) == 2

    def test_the_agent_does_not_answer(self, tmp_path, start, monkeypatch):
        monkeypatch.setattr(group, "KILL_SECONDS", 0.3)
        monkeypatch.setattr(supervisor, "DUMP_SECONDS", 0.1)
        monkeypatch.setattr(group, "BEAT_MARGIN_SECONDS", 0.1)
        body = """
            if generation: sys.exit(0)
            note("agent", os.getppid())
            while True:
                beat(1, limit=0.5); time.sleep(0.05)
        """
        run = start(body, 1, grace=1.0)
        until(lambda: run.supervisor._group is not None and run.supervisor._group.position[1] == 1, "it beats")
        os.kill(int((tmp_path / "agent").read_text()), signal.SIGSTOP)
        code, said = run.end()
        assert code == 0
        assert "the agent on localhost is gone" in said


class TestEnvironment:
    SHOW = """
        note(f"{rank}", json.dumps(dict(os.environ)))
        cmdlines = b""
        for entry in Path("/proc").iterdir():
            try: cmdlines += (entry / "cmdline").read_bytes()
            except OSError: pass
        note(f"leak-{rank}", b"hush" b"hush-" in cmdlines)
    """

    @pytest.mark.parametrize("remote", [False, True])
    def test_what_is_not_on_the_list_reaches_nobody(self, tmp_path, environment, remote, rsh):
        secret = f"hush{'hush'}-{uuid.uuid4().hex}"
        environment.update(
            AWS_SECRET_ACCESS_KEY=secret,
            LD_PRELOAD="",
            HOROVOD_CYCLE_TIME="7",
            HOROVOD_RANK="17",
            HOROVOD_ELASTIC="1",
            CREPE_DIST_MINE="x",
            DNNL_MAX_CPU_ISA="AVX2",
            OMP_NUM_THREADS="1",
            LC_ALL="C.UTF-8",
            XDG_CACHE_HOME="/c",
            MY_OWN="no",
        )
        if remote:
            environment.update(NCCL_SOCKET_IFNAME="ib0")
        hosts = (Host("one", 1, False), Host("two", 1, False)) if remote else (Host("localhost", 2),)
        run = Run(script(self.SHOW, tmp_path), Options(2, hosts, remote=rsh.command), environment, tmp_path)
        assert run.end()[0] == 0
        for rank in range(2):
            assert (tmp_path / f"leak-{rank}").read_text() == "False"
            seen = json.loads((tmp_path / str(rank)).read_text())
            assert secret not in str(seen)
            assert not {"AWS_SECRET_ACCESS_KEY", "LD_PRELOAD", "MY_OWN", "HOROVOD_ELASTIC"} & set(seen)
            expected = {
                "HOROVOD_CYCLE_TIME": "7",
                "CREPE_DIST_MINE": "x",
                "DNNL_MAX_CPU_ISA": "AVX2",
                "OMP_NUM_THREADS": "1",
                "LC_ALL": "C.UTF-8",
                "PATH": environment["PATH"],
                "HOROVOD_RANK": str(rank),
                "HOROVOD_SIZE": "2",
                "HOROVOD_LOCAL_RANK": "0" if remote else str(rank),
                "HOROVOD_LOCAL_SIZE": "1" if remote else "2",
                "HOROVOD_CROSS_RANK": str(rank) if remote else "0",
                "HOROVOD_CROSS_SIZE": "2" if remote else "1",
                "HOROVOD_HOSTNAME": ("one", "two")[rank] if remote else "localhost",
                "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
                "HOROVOD_GLOO_IFACE": "lo",
                "NCCL_SOCKET_IFNAME": "ib0" if remote else "=lo",
                "HOROVOD_CONTROLLER": "gloo",
                "HOROVOD_CPU_OPERATIONS": "gloo",
                "CREPE_DIST_GENERATION": "0",
            }
            assert {name: seen.get(name) for name in expected} == expected


class Rsh:
    """Stands in for ssh: runs the command here, unless the host is said to be down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "rsh"
        self.path.write_text(f'#!/bin/sh\necho $$ >> "{folder}/$1.pids"\ntest -e "{folder}/$1.down" && exit 255\n')
        with self.path.open("a") as stream:
            stream.write('exec sh -c "$2"\n')
        self.path.chmod(0o755)
        self.command = (str(self.path),)

    def answer(self, host: str, script: str) -> None:
        """Set the script that a host runs before or instead of the command from now on."""
        text = self.path.read_text()
        self.path.write_text(text.replace("exec sh -c", f'if test "$1" = {host}; then {script}; fi\nexec sh -c', 1))

    def down(self, host: str) -> None:
        """The host goes, with all that runs on it (its agent kills its workers, as its input ends, after the grace)."""
        (self.folder / f"{host}.down").touch()

    def lose(self, host: str) -> None:
        self.down(host)
        os.kill(int((self.folder / f"{host}.pids").read_text().split()[-1]), signal.SIGKILL)

    def up(self, host: str) -> None:
        (self.folder / f"{host}.down").unlink()


@pytest.fixture
def rsh(tmp_path_factory):
    return Rsh(tmp_path_factory.mktemp("rsh"))


TWO = (Host("one", 1, False), Host("two", 1, False))


class TestHosts:
    def test_a_host_goes_and_comes_back(self, start, rsh, monkeypatch, tmp_path):
        monkeypatch.setattr(fleet, "RETRY_SECONDS", 0.3)
        monkeypatch.setattr(supervisor, "OWN_END_SECONDS", 0.2)
        body = """
            beat(generation)
            note(f"{generation}-{rank}", f"{size} {os.environ['HOROVOD_HOSTNAME']}")
            if generation == 2: sys.exit(0)
            stay()
        """
        run = start(body, hosts=TWO, remote=rsh.command)
        until(lambda: len(list(tmp_path.glob("0-*"))) == 2, "both are up")
        rsh.lose("two")
        until(lambda: (tmp_path / "1-0").exists(), "the rest goes on")
        assert (tmp_path / "1-0").read_text() == "1 one"
        rsh.up("two")
        code, said = run.end()
        assert code == 0
        assert [(tmp_path / f"2-{rank}").read_text() for rank in range(2)] == ["2 one", "2 two"]
        assert "the agent on two is gone" in said
        assert "two is back" in said
        assert said.count("9 of 10 restarts left") == 1
        assert "8 of 10" not in said

    def test_it_waits_for_enough_hosts(self, start, rsh, monkeypatch, tmp_path):
        monkeypatch.setattr(fleet, "RETRY_SECONDS", 0.2)
        rsh.down("two")
        run = start("note(f'{generation}-{rank}')", hosts=TWO, remote=rsh.command, min_processes=2)
        until(lambda: "no answer from two" in run.stderr.getvalue(), "it says so")
        time.sleep(0.5)
        assert not list(tmp_path.glob("0-*"))
        rsh.up("two")
        assert run.end()[0] == 0
        assert len(list(tmp_path.glob("0-*"))) == 2

    def test_a_host_that_does_not_say_hello_is_left_out(self, start, rsh, monkeypatch, tmp_path):
        monkeypatch.setattr(fleet, "HELLO_SECONDS", 0.8)
        rsh.path.write_text(rsh.path.read_text().replace("exec sh", 'test "$1" = two && exec sleep 1000\nexec sh'))
        run = start("note(f'{rank} of {size}')", hosts=TWO, remote=rsh.command)
        assert run.end()[0] == 0
        assert (tmp_path / "0 of 1").exists()

    def test_a_mistake_is_told_before_anything_starts(self, rsh, environment, tmp_path):
        rsh.answer("two", "echo 'user@two: Permission denied (publickey).' >&2; exit 255")
        said = io.StringIO()
        options, console = Options(2, TWO, remote=rsh.command), Console(io.StringIO(), said)
        with pytest.raises(UserError, match="two cannot be used") as error:
            Supervisor(["false"], options, environment, str(tmp_path), console).run()
        assert "ssh-copy-id two" in error.value.remedy
        assert "Permission denied" in error.value.why
        assert "generation" not in said.getvalue()

    def test_a_mistake_does_not_end_what_trains(self, start, rsh, monkeypatch, tmp_path):
        monkeypatch.setattr(fleet, "RETRY_SECONDS", 0.2)
        monkeypatch.setattr(supervisor, "OWN_END_SECONDS", 0.2)
        body = f"""
            note(f"{{generation}}-{{rank}}")
            pids = Path({str(rsh.folder / "two.pids")!r})
            while generation == 0 or len(pids.read_text().split()) < 4: time.sleep(0.02)
        """
        run = start(body, hosts=TWO, remote=rsh.command)
        until(lambda: len(list(tmp_path.glob("0-*"))) == 2, "both are up")
        rsh.answer("two", "echo 'Permission denied' >&2; exit 255")
        rsh.lose("two")
        rsh.up("two")
        code, said = run.end()
        assert code == 0, said
        assert (tmp_path / "1-0").exists()
        assert not (tmp_path / "1-1").exists()


def test_hosts_have_the_names_of_their_addresses():
    hosts = peer_loss.Hosts()
    hosts.remember({"10.1.1.1": socket.gethostname(), "10.1.1.2": "two"})
    assert hosts.others == ["two"]
    error = RuntimeError("[pair.cc:598] Connection closed by peer [10.1.1.2]:3456, [10.1.1.9]:1, [127.0.0.1]:17")
    assert hosts.behind(error) == ["10.1.1.9", "two (10.1.1.2)"]
    assert hosts.behind(RuntimeError("Timed out waiting 30000ms")) == []


class TestRules:
    def test_back_off(self):
        back_off = BackOff()
        positions = [NOWHERE, NOWHERE, NOWHERE, (0, 5), (0, 5), (0, 4), (1, 0)]
        assert [back_off.next(position) for position in positions] == [0, 1, 2, 0, 1, 2, 0]
        assert [back_off.next((1, 0)) for _ in range(2000)][-1] == 60

    def test_places(self):
        hosts = [Host("a", 2), Host("b", 3, False), Host("c", 1, False)]
        slots = allocate(hosts, 5)
        assert [(slot.host, slot.rank, slot.local_rank, slot.local_size) for slot in slots] == [
            ("a", 0, 0, 2),
            ("a", 1, 1, 2),
            ("b", 2, 0, 3),
            ("b", 3, 1, 3),
            ("b", 4, 2, 3),
        ]
        assert [(slot.cross_rank, slot.cross_size) for slot in slots] == [(0, 2), (0, 2), (1, 2), (1, 2), (0, 1)]

    def test_a_process_is_known_by_its_start(self):
        with subprocess.Popen(["sleep", "1000"]) as process:
            began = processes.start_time(process.pid)
            assert began is not None
            processes.kill(process.pid, began + 1)
            time.sleep(0.05)
            assert process.poll() is None
            processes.kill(process.pid, began)
            assert process.wait(10) == -signal.SIGKILL
            assert processes.start_time(process.pid) is None


class TestFlags:
    def test_the_rest_is_for_train(self):
        chosen, rest = supervise.options(
            ["--config", "x.yaml", "-np", "3", "--data", "d", "--training.epochs=3", "--fresh"]
        )
        assert (chosen.processes, chosen.hosts) == (3, (Host("localhost", 3),))
        assert rest == ["--config", "x.yaml", "--data", "d", "--training.epochs=3", "--fresh"]
        assert supervise.options([])[0] == Options()

    def test_hosts(self):
        chosen, _ = supervise.options(["-H", "localhost:2,me@far.example:4", "--interface", "lo", "--rsh", "ssh -p 22"])
        assert chosen.hosts == (Host("localhost", 2, True), Host("me@far.example", 4, False))
        assert (chosen.processes, chosen.remote, chosen.address) == (6, ("ssh", "-p", "22"), "127.0.0.1")

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ("-np 5 -H localhost:4", "5 processes, but the hosts have 4 slots"),
            ("-np 2 --min-np 3", "--min-np 3 is more than the 2 processes"),
            ("-H far:2", "no --interface is given"),
            ("-H far:2 --interface nope0", "--interface nope0: no IPv4 address"),
            ("-H -oProxyCommand=x:2", "expected one argument"),
            ("-H=-oProxyCommand=x:2", "is not host:slots"),
            ("-H localhost:x", "is not host:slots"),
            ("-H a:1,a:2 --interface lo", "a is given twice"),
            ("-H localhost:1,127.0.0.1:1", "127.0.0.1 is given twice"),
            ("--rsh ''", "--rsh cannot be used\n  why: the name is empty"),
        ],
    )
    def test_mistakes(self, complaint, tmp_path, flags, message):
        assert message in complaint("supervise", *shlex.split(flags), cwd=tmp_path)
