"""Training with PyPI's GPU wheel of MXNet, on a stand-in for CUDA: what it calls, and that it gets through a run.

    uv run --group dev pytest tests/cuda/cuda_wheel -m slow

The numbers that it computes are meaningless, as no kernel does anything.
"""

from __future__ import annotations

import subprocess

import pytest

from tests.conftest import command
from tests.cuda.cuda_wheel import stand_in
from tests.helpers.needs import which

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EPOCHS = 2
MOST_FUSED = 40  # kernels that MXNet fuses
PAPER = ["--model", "paper", "--size", "tiny"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if which("gcc") is None or which("uv") is None:
        pytest.skip("needs gcc and uv")
    return stand_in.unpack(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def libraries(site, tmp_path_factory):
    return stand_in.build(tmp_path_factory.mktemp("libraries"), site)


def run(arguments, cwd, environment):
    done = subprocess.run(
        arguments, cwd=cwd, env=environment, stdout=-1, stderr=-2, text=True, timeout=300, check=False
    )
    return done.returncode, done.stdout


def test_a_run_gets_through(site, libraries, data, tmp_path):
    counted = tmp_path / "counts"
    environment = stand_in.environment(libraries, site, COUNTS=counted)
    common = ["--device", "gpu", "--kernels", "mxnet", "--epochs", EPOCHS]
    given = ["--data", data, "--run-dir", tmp_path / "run", *common, *PAPER]
    code, said = run(command("train", *given), tmp_path, environment)
    assert code == 0, said
    assert "1 process, gpu(0)" in said
    assert f"epoch {EPOCHS} of {EPOCHS}" in said
    assert list((tmp_path / "run" / "checkpoints").glob("*.params"))
    calls = stand_in.counts(counted)
    assert not [name for name in calls if name.startswith("cudnnDropout")]  # it ignores MXNet's seed
    assert not [name for name in calls if name.startswith("cudnnFind")]  # the fastest may be another one next time
    assert calls["PTX"] < MOST_FUSED  # NVRTC takes half a second for each
    assert "no PTX" not in calls
    # The algorithm that adds in a fixed order.
    assert calls["cudnnConvolutionForward"] > calls["cudnnConvolutionBackwardFilter 1"] > 0
    assert "cudnnConvolutionBackwardFilter 0" not in calls
    assert any(name.startswith("kernel ") for name in calls)


def test_the_doctor_knows_the_gpus_of_the_wheel(site, libraries, data, tmp_path):
    environment = stand_in.environment(libraries, site, DRIVER_CAPABILITY="9.0")
    said = run(command("doctor", "--quick"), tmp_path, environment)[1]
    assert "ok       MXNet         built with oneDNN, CUDA, cuDNN" in said
    assert "note     GPU 0 " in said
    code, said = run(command("train", "--data", data, "--device", "gpu", *PAPER), tmp_path, environment)
    assert code == 1
    assert "it has no code for compute capability 9.0" in said
