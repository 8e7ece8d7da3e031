"""Commands with our own kernels on emulated GPUs: the same flags, files and answers as on a CPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import crepe_dist
from crepe_dist.distributed.device import Device
from crepe_dist.model.backend import Backend, choose_backend
from crepe_dist.settings.options import ModelOptions
from tests.chaos import harness
from tests.chaos.harness import slow
from tests.conftest import QUICK, command, run, train
from tests.helpers import cuda_emulator
from tests.helpers.engines import initial, small_shape
from tests.helpers.needs import needs
from tests.training.test_without_mxnet import FOLDER

pytestmark = needs("g++")
TRAIN = (*QUICK, "--epochs=1", "--logging.report=true")
PREDICTS = """
import json, sys
import crepe_dist
texts = [f"{'a fine day' if row % 2 else 'awful weather'}, number {row}" for row in range(40)]
settings = {"model.buckets": 4096, "model.embeddings": 1024, "model.width": 16}
estimator = crepe_dist.CrepeClassifier(epochs=4, learning_rate=0.01, settings=settings, device="gpu")
estimator.fit(texts, ["bad", "good"] * 20)
answers = [crepe_dist.load(sys.argv[1], device=name).predict(["quaqua", "zig zig"] * 3) for name in ("gpu", "cpu")]
rankings = [[dict(answer.ranking) for answer in each] for each in answers]
print(json.dumps([rankings, list(estimator.predict(texts[:4])), [name for name in ("mxnet",) if name in sys.modules]]))
"""


@pytest.fixture(scope="module", autouse=True)
def gpus() -> Iterator[None]:
    """Give the processes of this module a GPU, and neither MXNet nor Horovod."""
    with cuda_emulator.for_processes(FOLDER):
        yield


@pytest.fixture(scope="module")
def on_gpu() -> Backend:
    """What computes on that GPU."""
    with cuda_emulator.used():
        return choose_backend(ModelOptions(), Device("gpu", 0), small_shape("crepe"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory, gpus) -> tuple[Path, str]:
    """A run on a GPU, and what it printed."""
    folder = tmp_path_factory.mktemp("gpu")
    return folder / "run", run(command("train", "--data", data, "--run-dir", "run", "--device=gpu", *TRAIN), folder)


def test_training_needs_no_mxnet(trained, on_gpu):
    folder, printed = trained
    assert "1 process, gpu(0)\n" in printed
    assert f"computes  in {on_gpu}\n" in printed
    (checkpoint,) = (folder / "checkpoints").glob("*.params")
    computed = json.loads(checkpoint.with_suffix(".json").read_text())["computed"]
    assert computed == {**on_gpu.result(), "device": "gpu(0)"}
    assert str(on_gpu) in (folder / "report.html").read_text()
    assert "epoch 1: the same bits" in run(command("verify", folder), folder.parent)


@pytest.mark.parametrize(
    ("network", "precision", "most"),
    [("crepe", "auto", 0.1), slow("crepe", "float32", 1e-3), slow("ngrams", "auto", 1e-3)],
)
def test_an_epoch_ends_near_the_cpus(network, precision, most, data, trained, tmp_path):
    """``most``: largest difference of a parameter, beside how far it moved."""
    flags, folder = ["--data", data, *TRAIN, f"--model={network}", f"--precision={precision}"], trained[0]
    if (network, precision) != ("crepe", "auto"):
        folder = tmp_path / "gpu"
        run(command("train", "--device=gpu", *flags, "--run-dir", folder), tmp_path)
    train(*flags, "--device=cpu", "--precision=float32", "--run-dir", tmp_path / "cpu")
    start = initial(crepe_dist.load(tmp_path / "cpu", device="cpu").engine.shape).values
    got, expected = harness.result(folder), harness.result(tmp_path / "cpu")
    for name, array in expected.items():
        assert np.linalg.norm(got[name] - array) <= most * np.linalg.norm(array - start[name]), name


def test_answers_are_those_of_the_cpu(data, trained, tmp_path):
    rankings, labels, imported = json.loads(run([sys.executable, "-c", PREDICTS, str(trained[0])], tmp_path))
    on_gpu, on_cpu = rankings
    assert len(on_gpu) == 6
    assert all(one == pytest.approx(other, abs=0.01) for one, other in zip(on_gpu, on_cpu))
    assert labels == ["bad", "good", "bad", "good"]
    assert imported == []
    tables = [
        run(command("evaluate", trained[0], "--data", data, "--device", device), tmp_path) for device in ("gpu", "cpu")
    ]
    assert tables[0].splitlines()[:4] == tables[1].splitlines()[:4]


def test_a_run_moves_from_a_gpu_to_the_cpu(data, tmp_path, on_gpu):
    fault = {"kind": "SIGKILL", "rank": 0, "phase": "train", "step": 17, "once": str(tmp_path / "once")}
    arguments = harness.command(tmp_path / "run", data, 1, "--epochs=2")
    code, printed = harness.run([*arguments, "--device=gpu"], tmp_path, fault)
    assert code != 0, printed
    code, printed = harness.run([*arguments, "--device=cpu"], tmp_path)
    assert code == 0, printed
    assert f"the kernels change from {on_gpu.build} to " in printed


def test_a_gpu_that_is_too_small(data, tmp_path):
    arguments = command("train", "--data", data, "--run-dir", tmp_path / "run", "--device=gpu", *QUICK)
    with cuda_emulator.for_processes(DRIVER_MEMORY=4 << 20):
        assert "error: out of memory with " in run(arguments, tmp_path, code=1)


def test_a_gpu_that_is_not_used_is_told_at_the_start_and_the_end(data, tmp_path):
    arguments = command("train", "--data", data, "--run-dir", tmp_path / "run", *QUICK, "--epochs=1")
    with cuda_emulator.for_processes(DRIVER_VERSION=11080):
        printed = run(arguments, tmp_path)
    first, second = printed.split("warning: GPU of a test is not used, the CPU computes: ")[1:]
    assert "epoch 1 of 1" in first
    assert second in first
