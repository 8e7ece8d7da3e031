"""MXNet's GPU flavour without a GPU: empty packages like its own, the emulator's driver, and contexts on the CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import crepe_dist
from crepe_dist.cuda import driver
from crepe_dist.distributed import mxnet_cuda
from crepe_dist.distributed.launch import has_mxnet
from tests.conftest import PAPER, QUICK, command, losses, run, train
from tests.helpers import cuda_emulator
from tests.helpers.needs import needs

pytestmark = [needs("g++", others=[] if has_mxnet() else ["MXNet"]), pytest.mark.usefixtures("one_thread")]
CONTEXTS = Path(__file__).with_name("site")
TRAIN = (*QUICK, *PAPER, "--kernels=mxnet", "--epochs=1", "--precision=float32", "--logging.report=true")
PRINT_LIBRARIES = Path(__file__).with_name("print_libraries.py")


@pytest.fixture
def site(tmp_path):
    """Make processes of a test find a GPU, and empty packages like those that `--group cu112` installs."""
    cuda_emulator.only_stand_ins("MXNet")
    folder = tmp_path / "packages"
    for package in (mxnet_cuda.GPU_PACKAGE, *(package for package, _ in mxnet_cuda.LIBRARIES.values())):
        facts = folder / f"{package.replace('-', '_')}-1.9.1.dist-info"
        facts.mkdir(parents=True)
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.9.1\n")
    for name, (_, part) in mxnet_cuda.LIBRARIES.items():
        path = folder / "nvidia" / part / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Compiled from standard input, so that the folder contains only the library.
        compiler = ["g++", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(path), "-x", "c++", "-"]
        subprocess.run(compiler, input="", text=True, check=True)
    with cuda_emulator.for_processes(CONTEXTS, folder):
        yield folder


@pytest.fixture
def gpus(request) -> None:
    """Use the GPUs of the machine if the tests run on real GPUs. Otherwise, use the stand-ins."""
    if not cuda_emulator.is_real():
        request.getfixturevalue("site")
    elif not mxnet_cuda.is_installed():
        pytest.skip("needs MXNet's GPU flavour: uv sync --group cu112")


def test_the_libraries_of_the_packages_are_loaded_before_mxnet(site, tmp_path):
    loads = [sys.executable, str(PRINT_LIBRARIES)]
    wanted = [site / "nvidia" / part / "lib" / name for name, (_, part) in mxnet_cuda.LIBRARIES.items()]
    found = [Path(os.environ["LD_LIBRARY_PATH"], driver.LIBRARY), *wanted]
    assert run(loads, tmp_path).splitlines() == ["0", *sorted(map(str, found))]
    with cuda_emulator.for_processes():
        assert run(loads, tmp_path).splitlines() == ["0", ""]  # The CPU build of MXNet loads none of these libraries.


def test_without_the_driver(site, tmp_path, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    for arguments, message in (
        (("train", "--device=gpu"), "no GPU was found\n  why: no NVIDIA driver was found: libcuda.so.1: cannot"),
        (("train", "--model=paper", "--kernels=mxnet"), "the GPU build of MXNet cannot be loaded: no NVIDIA driver"),
    ):
        assert message in run(command(*arguments), tmp_path, code=1)


def test_each_library_that_is_missing_is_named(site, tmp_path):
    (site / "nvidia" / "cudnn" / "lib" / "libcudnn.so.8").unlink()
    shutil.rmtree(site / "nvidia_cufft_cu11-1.9.1.dist-info")
    said = run(command("train", "--device=gpu", "--model=paper", "--kernels=mxnet"), tmp_path, code=1)
    assert "without libcudnn.so.8 (package nvidia-cudnn-cu11), libcufft.so.10 (package nvidia-cufft-cu11)\n" in said
    assert "--group cu112" in said
    assert "driver" not in said


def test_a_gpu_computes_what_the_cpu_computes(data, tmp_path, gpus, every_build):
    """The same operators compute on both devices. Only the code around them differs."""
    on_gpu = run(command("train", "--data", data, "--run-dir", "gpu", *TRAIN), tmp_path)
    assert "1 process, gpu(0)\n" in on_gpu
    assert "computes  in float32, MXNet's operators (--kernels is mxnet)\n" in on_gpu
    on_cpu = ("--run-dir", tmp_path / "cpu", "--device=cpu", "--logging.report=false")
    assert "1 process, cpu(0), OMP_NUM_THREADS=" in train("--data", data, *TRAIN, *on_cpu)
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), abs=1e-4)
    assert json.loads((tmp_path / "gpu" / "result.json").read_text())["provenance"]["device"] == "gpu(0)"
    assert "1 process on gpu(0)" in (tmp_path / "gpu" / "report.html").read_text()
    found = json.loads(run(command("predict", "gpu", "--text=quiet zig", "--format=jsonl", "--device=gpu"), tmp_path))
    (expected,) = crepe_dist.load(tmp_path / "gpu", device="cpu").predict(["quiet zig"])
    assert found["probability"] == pytest.approx(expected.probability, rel=1e-3)
