"""crepe verify: a run trained again has the same bits, and what was altered is found."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace
from typing import Any, cast

import pytest

from crepe_dist import verify
from crepe_dist.native import library
from crepe_dist.runs.run_record import RunRecord
from tests.conftest import NGRAMS, QUICK, command, launch_prefix, run

SECONDS = 120


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run of two processes."""
    folder = tmp_path_factory.mktemp("verified")
    run([*launch_prefix(2), *command("train", "--data", data, "--run-dir", "run", *QUICK, *NGRAMS)], folder)
    return folder / "run"


def test_the_same_bits_and_others(trained, tmp_path):
    said = run(command("verify", trained), tmp_path, seconds=SECONDS)
    assert "again, on 2 processes" in said
    assert said.count("the same bits") == 2
    altered = tmp_path / "altered"
    shutil.copytree(trained, altered)
    first = next((altered / "checkpoints").glob("crepe_epoch_0_*.params"))
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    said = run(command("verify", altered), tmp_path, code=1, seconds=SECONDS)
    assert "epoch 0: other bits" in said
    assert "epoch 1: the same bits" in said
    assert "altered has other parameters from epoch 0 on" in said
    assert "nothing differs" in said


def test_a_run_that_is_not_finished(trained, tmp_path, complaint):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    assert "it is not finished" in complaint("verify", "run", cwd=tmp_path)


@pytest.mark.parametrize(
    ("computes", "device", "noted"),
    [
        ("float32, own kernels (generic)", "cpu(0)", []),
        ("float32, own kernels (of_the_future)", "cpu(0)", ["of_the_future, which this machine lacks"]),
        ("float16", "gpu(0)", ["trained on a GPU"]),
    ],
)
def test_it_takes_the_threads_and_kernels_of_the_run(computes, device, noted, monkeypatch):
    monkeypatch.setattr(library, "runnable", lambda: ["generic"])
    monkeypatch.setenv(library.SWITCH, "before")
    monkeypatch.setenv(verify.THREADS, "1")
    made = {"computes": computes, "device": device, "environment": {verify.THREADS: "7"}}
    notes = list(verify.pin(cast(RunRecord, cast(Any, SimpleNamespace(made=made)))))
    assert len(notes) == len(noted)
    assert all(part in note for part, note in zip(noted, notes))
    assert os.environ[verify.THREADS] == "7"
    assert os.environ[library.SWITCH] == ("generic" if "generic" in computes else "before")


def test_it_says_what_differs():
    def made(computes: str, **more: int) -> dict[str, Any]:
        return {"computes": f"float32, own kernels {computes}", "device": "cpu(0)", "environment": {"cores": 2, **more}}

    before = made("(avx2) (it was asked for)")
    assert list(verify.changes(before, made("(avx2)"))) == []
    changed = list(verify.changes(before, made("(avx512) (the processor has it)", new=1)))
    assert changed == ["kernels: avx2 then, avx512 now", "new: unknown then, 1 now"]
