"""Runs and calls on GPUs that are none."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.chaos import harness
from tests.conftest import PAPER, command, losses, run
from tests.gpu import stand_in
from tests.gpu.machine import environment

ON_MXNET = "float32, MXNet's operators (our own kernels compute this network on CPUs only)"


@pytest.fixture(scope="module", autouse=True)
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the processes of this module two GPUs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(tmp_path_factory.mktemp("machine"), gpus=2).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """The folder of the runs of one process, and the answers of ``tests.gpu.scenarios``."""
    folder = tmp_path_factory.mktemp("one")
    run([sys.executable, "-m", "tests.gpu.scenarios", str(data), str(folder)], folder)
    return folder, json.loads((folder / "answers.json").read_text())


def ended(one, name, code=0):
    found, printed = one[1]["runs"][name]
    assert found == code, printed
    return printed


def test_a_gpu_computes_what_the_cpu_computes(one):
    """The operators are the same on both; only what surrounds them differs."""
    printed = ended(one, "gpu")
    assert "1 process, gpu(0)\n" in printed
    assert "computes  in float32, MXNet's operators (our own kernels compute this network on" in printed
    assert "1 process, cpu(0), OMP_NUM_THREADS=" in ended(one, "cpu")
    assert losses(one[0] / "gpu") == pytest.approx(losses(one[0] / "cpu"), abs=1e-6)
    on_gpu, on_cpu = one[1]["predictions"]
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)


def test_the_summary_of_a_run_names_the_gpu(one):
    assert json.loads((one[0] / "gpu" / "result.json").read_text())["provenance"]["device"] == "gpu(0)"
    assert "1 process on gpu(0)" in (one[0] / "gpu" / "report.html").read_text()


@pytest.mark.slow
def test_two_gpus_killed_and_resumed_equal_unbroken(data, tmp_path):
    """Two processes on two GPUs, with Adam and dropout."""
    broken, unbroken = (
        harness.command(tmp_path / name, data, 2, "--epochs=2", *PAPER) for name in ("broken", "unbroken")
    )
    code, printed = harness.run(unbroken, tmp_path)
    assert code == 0, printed
    assert "2 processes, gpu(0), gradients summed by Horovod" in printed
    assert f"computes  in {ON_MXNET}\n" in printed
    fault = {"kind": "SIGKILL", "rank": 1, "phase": "train", "step": 20, "once": str(tmp_path / "once")}
    code, printed = harness.run(broken, tmp_path, fault)
    assert code != 0
    assert 0 < harness.saved_step(tmp_path / "broken") <= 20
    code, printed = harness.run(broken, tmp_path)
    assert code == 0, printed
    assert "resuming from step" in printed
    harness.assert_same(tmp_path / "broken", tmp_path / "unbroken")


def test_a_batch_that_does_not_fit_is_named(one):
    printed = ended(one, "too large", code=1)
    assert "out of memory with --batch-size 50, which is 50 documents for this process" in printed
    assert stand_in.OUT_OF_MEMORY in printed
    assert "try --batch-size 25" in printed


def test_horovod_sums_on_gpus_if_it_was_built_with_cuda(one):
    found = one[1]["horovod"]
    assert found["gpu"] == pytest.approx(found["cpu"], abs=1e-2)
    assert found["without CUDA"].startswith("Horovod was built without CUDA")


def test_an_old_driver_is_refused(one):
    assert one[1]["old driver"] == "the NVIDIA driver is too old: it is for CUDA 10.2"


@pytest.fixture(scope="module")
def doctor(tmp_path_factory):
    """What the doctor prints."""
    return run(command("doctor"), tmp_path_factory.mktemp("doctor"))


@pytest.mark.slow
def test_the_doctor_tries_the_gpus(doctor):
    for line in (
        "GPU 1         GPU of a test, compute capability 8.6; not used: libnvrtc.so.12",
        "ok       2 processes   train: 2 processes, cpu(0)",
        "note     Horovod       built without NCCL",
        "ready: for one process or several, on the CPU and 2 GPUs",
    ):
        assert line in doctor


def test_the_advice_to_build_horovod_is_that_for_gpus(one):
    printed = ended(one, "without Horovod", code=1)
    assert "but Horovod for MXNet is not installed" in printed
    assert "HOROVOD_GPU_OPERATIONS=NCCL" in printed
