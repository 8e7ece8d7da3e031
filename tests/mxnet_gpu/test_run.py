"""Runs on a GPU that is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import crepe_dist
from crepe_dist.distributed import cuda
from tests.conftest import PAPER, QUICK, command, losses, run, train
from tests.helpers import cuda_emulator
from tests.helpers.needs import needs
from tests.mxnet_gpu import packages

pytestmark = needs("g++")
SITE = Path(__file__).with_name("site")
TRAIN = (*QUICK, *PAPER, "--epochs=1", "--precision=float32", "--logging.report=true")


@pytest.fixture(scope="module", autouse=True)
def gpus(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[None]:
    """Give the processes of this module two GPUs: a driver, and the packages of MXNet's GPU flavour."""
    if cuda_emulator.is_real() and cuda.is_installed():
        yield
        return
    told = packages.environment(SITE, packages.install(tmp_path_factory.mktemp("site")), DRIVER_GPUS=2)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setenv(name, value)
        yield


def test_a_gpu_computes_what_the_cpu_computes(data, tmp_path):
    """The operators are the same on both; only what surrounds them differs."""
    on_gpu = run(command("train", "--data", data, "--run-dir", "gpu", *TRAIN), tmp_path)
    assert "1 process, gpu(0)\n" in on_gpu
    assert "computes  in float32, MXNet's operators (our own kernels compute this network on" in on_gpu
    on_cpu = ("--device=cpu", "--kernels=mxnet", "--logging.report=false")
    assert "1 process, cpu(0), OMP_NUM_THREADS=" in train(
        "--data", data, "--run-dir", tmp_path / "cpu", *TRAIN, *on_cpu
    )
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), abs=1e-4)
    assert json.loads((tmp_path / "gpu" / "result.json").read_text())["provenance"]["device"] == "gpu(0)"
    assert "1 process on gpu(0)" in (tmp_path / "gpu" / "report.html").read_text()
    found = json.loads(run(command("predict", "gpu", "--text=quiet zig", "--format=jsonl", "--device=gpu"), tmp_path))
    (expected,) = crepe_dist.load(tmp_path / "gpu", device="cpu").predict(["quiet zig"])
    assert found["probability"] == pytest.approx(expected.probability, rel=1e-3)
