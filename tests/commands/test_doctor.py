"""Tests of `crepe doctor`: a run on this machine, and its messages if something is missing or fails."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crepe_dist import cli
from crepe_dist.commands import doctor
from crepe_dist.commands.doctor import Check
from tests.conftest import command, needs_kernels


@needs_kernels
def test_this_machine_is_ready(tmp_path):
    folder, temporary = tmp_path / "work", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    told = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run(command("doctor"), cwd=folder, env=told, stdout=-1, text=True, timeout=200)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert not [line for line in lines if line.startswith("problem")]
    assert any(line.startswith("ok       1 process     train: 1 process, ") for line in lines)
    assert lines[-1].startswith("ready: one or more processes can train on the CPU")
    assert f"2 processes on 1 host ({socket.gethostname()}), cpu(0), gradients summed by shared memory" in done.stdout
    assert list(folder.iterdir()) == list(temporary.iterdir()) == []


def test_a_problem_is_named_in_the_last_line(monkeypatch, capsys):
    note, problem = Check("second", "less\x1b[31m", "note", "do this"), Check("third", "no", "problem", "that")
    monkeypatch.setattr(doctor, "run_checks", lambda _: iter([Check("first", "fine"), note, problem]))
    monkeypatch.setattr(doctor, "run_trial", lambda *_: pytest.fail("it tries"))
    monkeypatch.setattr(sys, "argv", ["doctor"])
    with pytest.raises(SystemExit, match="1"):
        cli.main("doctor")
    *_, shown, remedy, last = capsys.readouterr().out.splitlines()
    assert shown.split() == ["problem", "third", "no"]
    assert remedy.strip() == "do: that"
    assert last == "not ready: third: no. Do: that"


@pytest.mark.parametrize(("gpus", "wanted"), [(0, [(1, "auto"), (2, "cpu")]), (3, [(1, "auto"), (3, "gpu")])])
def test_what_is_tried(monkeypatch, printed_by, gpus, wanted):
    tried: list[tuple[int, str]] = []

    def well(*given: Any) -> Check:
        tried.append(given[:2])
        return Check("trial", "well")

    monkeypatch.setattr(
        doctor, "run_checks", lambda _: iter([Check(f"GPU {gpu}", "own kernels") for gpu in range(gpus)])
    )
    monkeypatch.setattr(doctor, "run_trial", well)
    printed_by("doctor")
    assert tried == wanted


def test_training_that_hangs(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "TIMEOUT_SECONDS", 0.2)
    (tmp_path / "data").mkdir()  # as if it were prepared
    assert "hangs" in doctor.run_trial(1, "cpu", tmp_path).message


@pytest.mark.parametrize(
    ("program", "gpus", "level", "what"),
    [
        ("import os; os.abort()", False, "problem", "cannot be imported: exit code -6"),
        ("raise OSError('libgomp.so.1')", False, "problem", "cannot be imported: OSError: libgomp.so.1"),
        ("import time; time.sleep(60)", False, "problem", "no answer within 1 s"),
        ("print('gloo')", False, "ok", "built with gloo"),
        ("print('mpi')", False, "problem", "without Gloo"),
        ("print('gloo cuda')", True, "note", "without NCCL"),
        ("print('gloo cuda nccl')", True, "ok", "built with"),
    ],
)
def test_what_horovod_was_built_with(monkeypatch, program, gpus, level, what):
    monkeypatch.setattr(doctor, "HOROVOD_PROBE", program)
    monkeypatch.setattr(doctor, "TIMEOUT_SECONDS", 1.0 if "sleep" in program else 60.0)
    monkeypatch.setattr(doctor, "find_spec", lambda name: True)
    monkeypatch.setattr(doctor.mxnet_cuda, "is_installed", lambda: gpus)
    found = doctor.check_horovod()
    assert found.level == level
    assert what in found.message
    assert bool(found.remedy) == (level != "ok")


def test_what_is_missing_or_full(tmp_path, monkeypatch):
    assert doctor.check_disk(tmp_path).level == "ok"
    unwritable = doctor.check_disk(Path("/proc"))
    assert unwritable.level == "problem"
    assert unwritable.message.startswith("/proc is not writable")
    monkeypatch.setattr(doctor, "RUN_BYTES", 1 << 60)
    assert "a run takes about" in doctor.check_disk(tmp_path).message
    monkeypatch.setattr(doctor.library, "find", lambda: (None, "no AVX2"))
    assert doctor.check_kernels().level == "problem"
