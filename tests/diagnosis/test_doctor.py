"""The doctor: a real run on this machine, what it reports if something is missing or fails, and no leftovers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crepe_dist import cli, doctor, machine
from crepe_dist.diagnosis import checks
from crepe_dist.diagnosis.checks import Check
from crepe_dist.distributed.launch import horovodrun
from crepe_dist.errors import UserError
from tests.conftest import command


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
    assert lines[-1].startswith(f"ready: for one process{' or several' * (horovodrun() is not None)}, on the CPU")
    assert ("2 processes, cpu(0), gradients summed by" in done.stdout) == (horovodrun() is not None)
    assert list(folder.iterdir()) == list(temporary.iterdir()) == []


def run(monkeypatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["doctor", *flags])
    try:
        cli.main("doctor")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_problem_is_named_in_the_last_line(monkeypatch, capsys):
    note, problem = Check("second", "less\x1b[31m", "note", "do this"), Check("third", "no", "problem", "that")
    monkeypatch.setattr(doctor, "checks", lambda: iter([Check("first", "fine"), note, problem]))
    monkeypatch.setattr(doctor, "trial", lambda *_: pytest.fail("it tries"))
    assert run(monkeypatch) == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok       first         fine",
        "note     second        less\\x1b[31m",
        f"{'':22} do: do this",
        "problem  third         no",
        f"{'':22} do: that",
        "not ready: third: no. Do: that",
    ]


@pytest.mark.parametrize(
    ("gpus", "has_horovod", "wanted"),
    [(0, True, [(1, "auto"), (2, "cpu")]), (3, True, [(1, "auto"), (3, "gpu")]), (1, False, [(1, "auto")])],
)
def test_what_is_tried(monkeypatch, capsys, gpus, has_horovod, wanted):
    tried: list[tuple[int, str]] = []

    def well(*given: Any) -> str:
        tried.append(given)
        return "well"

    monkeypatch.setattr(doctor, "checks", lambda: iter([Check(f"GPU {gpu}", "own kernels") for gpu in range(gpus)]))
    monkeypatch.setattr(doctor, "trial", well)
    monkeypatch.setattr(doctor.horovod_internals, "is_installed", lambda: has_horovod)
    assert run(monkeypatch) == 0
    assert tried == wanted
    assert ("GPU" in capsys.readouterr().out.splitlines()[-1]) == bool(gpus)


def test_training_that_hangs(monkeypatch):
    monkeypatch.setattr(checks, "TRIAL_SECONDS", 0.2)
    with pytest.raises(UserError, match="hangs"):
        checks.trial(1, "cpu")


def test_a_library_that_crashes_or_does_not_answer(monkeypatch):
    monkeypatch.setattr(checks, "has_mxnet", lambda: True)
    monkeypatch.setattr(checks, "IMPORT", "import os; os.abort(); ")
    assert next(checks.builds())[1:] == ("cannot be imported: exit code -6", "problem", checks.INSTALL)
    monkeypatch.setattr(checks, "IMPORT", "raise OSError('libgomp.so.1')\n")
    assert next(checks.builds()).shows == "cannot be imported: OSError: libgomp.so.1"
    monkeypatch.setattr(checks, "IMPORT", "import time; time.sleep(60); ")
    monkeypatch.setattr(checks, "SECONDS", 0.5)
    assert next(checks.builds()).shows == "cannot be imported: no answer within 0.5 s"


@pytest.mark.parametrize(
    ("gpus", "built", "level", "what"),
    [
        (False, "gloo", "ok", "built with gloo"),
        (False, "mpi", "problem", "without Gloo"),
        (True, "gloo", "note", "without CUDA"),
        (True, "gloo cuda", "note", "without NCCL"),
        (True, "gloo cuda nccl", "ok", "built with"),
    ],
)
def test_what_horovod_was_built_with(monkeypatch, gpus, built, level, what):
    monkeypatch.setattr(checks, "_build", lambda name: (built.split(), ""))
    monkeypatch.setattr(checks.horovod_internals, "is_installed", lambda: True)
    monkeypatch.setattr(checks.cuda, "is_installed", lambda: gpus)
    *_, horovod = checks.builds()
    assert horovod.level == level
    assert what in horovod.shows
    assert bool(horovod.remedy) == (level != "ok")


def test_what_is_missing_or_full(tmp_path, monkeypatch):
    assert checks.disk(tmp_path).level == checks.shared_memory(tmp_path).level == "ok"
    assert checks.disk(Path("/proc")).level == "problem"
    assert checks.shared_memory(tmp_path / "none").level == "note"
    monkeypatch.setattr(checks, "RUN_BYTES", 1 << 60)
    assert "a run takes about" in checks.disk(tmp_path).shows
    monkeypatch.setattr(machine, "available_memory", lambda: 10**8)
    assert checks.memory().level == "note"
    monkeypatch.setattr(checks.library, "find", lambda: (None, "no AVX2"))
    assert checks.kernels().level == "problem"
