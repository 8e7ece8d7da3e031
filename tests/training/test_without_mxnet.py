"""Training, prediction and the estimator without MXNet and Horovod."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.chaos import harness
from tests.conftest import command, needs_kernels, run
from tests.helpers.programs import program

# Folder of a sitecustomize.py that hides both packages.
FOLDER = Path(__file__).parents[1] / "helpers" / "without_mxnet"
MISSING = "needs MXNet, which is not installed\n  why: MXNet 1.9.1 needs Python 3.11"


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide MXNet and Horovod from the processes of a test."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER), *sys.path]))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """A run that was trained with both packages installed."""
    run_dir = tmp_path_factory.mktemp("installed") / "run"
    code, printed = harness.run(harness.command(run_dir, data), run_dir.parent)
    assert code == 0, printed
    return run_dir


@needs_kernels
def test_a_run_resumes_without_it_to_the_same_bits(data, trained, tmp_path, request):
    fault = {"kind": "SIGKILL", "rank": 0, "phase": "train", "step": 17, "once": str(tmp_path / "killed")}
    code, printed = harness.run(harness.command(tmp_path / "run", data), tmp_path, fault)
    assert code != 0, printed
    request.getfixturevalue("hidden")
    code, printed = harness.run(harness.command(tmp_path / "run", data), tmp_path)
    assert code == 0, printed
    assert "resuming from step" in printed
    assert "kernels change" not in printed
    harness.assert_same(tmp_path / "run", trained)


@needs_kernels
def test_it_trains_predicts_and_fits(data, trained, tmp_path, hidden):
    train = harness.command(tmp_path / "run", data, 1, module="crepe_dist.train")
    code, printed = harness.run(train, tmp_path)
    assert code == 0, printed
    harness.assert_same(tmp_path / "run", trained)
    printed = run(program("helpers/fit_and_predict.py", trained, "cpu"), tmp_path)
    (rankings,), labels, imported = json.loads(printed.splitlines()[-1])
    assert [max(ranking, key=ranking.get) for ranking in rankings] == ["first", "second", "third"] * 2
    assert labels == ["bad", "good", "bad", "good"]
    assert imported == []


def test_what_needs_it_says_so(data, tmp_path, hidden, monkeypatch):
    train = command("train", "--data", data, "--run-dir", tmp_path / "run")
    monkeypatch.setenv("CREPE_DIST_KERNELS", "none")
    assert "error: no kernels can compute this network on cpu(0)" in run(train, tmp_path, code=1)
    assert f"error: training without the native kernels {MISSING}" in run([*train, "--model=paper"], tmp_path, code=1)
    monkeypatch.delenv("CREPE_DIST_KERNELS")
    monkeypatch.setenv("HOROVOD_RANK", "0")
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    printed = run(train, tmp_path, code=1)
    assert "this is process 0 of 2 started by horovodrun, but Horovod for MXNet is not installed" in printed
    assert "do:  install it (`uv sync" in printed
