"""MXNet's GPU flavour without a GPU: tests with a fake driver and fake libraries."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

import pytest

from crepe_dist.cuda import driver as nvidia
from crepe_dist.distributed import cuda
from tests.conftest import command
from tests.helpers import cuda_driver

LATER = (
    "choose another GPU with CUDA_VISIBLE_DEVICES, or train without it: --device cpu; "
    "for Hopper there is another MXNet: docs/install.md"
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return cuda_driver.driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def site(tmp_path):
    return cuda_driver.packages(tmp_path / "site")


def ended(arguments, cwd, environment):
    """(code, what it said) of a command."""
    done = subprocess.run(arguments, cwd=cwd, env=environment, stdout=-1, stderr=-1, text=True, timeout=200)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def run(code, environment, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, stdout=-1, text=True, timeout=200, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((3, 7), False), ((5, 0), True), ((7, 5), True), ((8, 9), True), ((9, 0), False), ((12, 0), False),
    ],
)  # fmt: skip
def test_what_the_flavour_has_code_for(capability, runs):
    assert cuda.has_code_for(capability) == runs
    error = cuda.refusal(1, "Some GPU", capability)
    assert (error is None) == runs
    if error:
        assert error.what.startswith("MXNet cannot compute on GPU 1 (Some GPU)")
        assert error.what.endswith(f"compute capability {capability[0]}.{capability[1]}")
        assert "compiled for 5.0, 6.0, 7.0, 8.0, 8.6" in error.why
        assert error.remedy == LATER


PICK = """
from crepe_dist.distributed.launch import Launch, import_mxnet
import_mxnet(Launch())
import mxnet as mx
from crepe_dist.cuda import driver
from crepe_dist.distributed import device
mx.context.num_gpus = driver.count
try:
    device.check_mxnet(device.Device("gpu"))
    print("computes")
except device.UserError as error:
    print(error.what)
"""


SAYS_TF32 = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void say(void) { puts(getenv("NVIDIA_TF32_OVERRIDE")); fflush(stdout); }
"""


def test_float32_is_no_tf32_when_cublas_is_loaded(driver, site):
    cuda_driver.library(site / "nvidia" / "cublas" / "lib" / "libcublas.so.11", SAYS_TF32)
    code = "from crepe_dist.distributed.launch import Launch, import_mxnet; import_mxnet(Launch())"
    assert run(code, cuda_driver.environment(driver, site)) == ["0"]


@pytest.mark.parametrize(
    ("wheel", "answer"),
    [
        ("PyPI's", "MXNet cannot compute on GPU 0 (GPU of a test): it has no code for compute capability 9.0"),
        ("own", "computes"),
    ],
)
def test_the_list_of_gpus_is_that_of_one_wheel(driver, tmp_path, wheel, answer):
    """A build of one's own, and NVIDIA's container, may have code for Hopper."""
    sha256 = {"sha256": "A" * 43} if wheel == "own" else {}
    site = cuda_driver.packages(tmp_path / "site", **sha256)
    assert run(PICK, cuda_driver.environment(driver, site, DRIVER_CAPABILITY="9.0")) == [answer]


def test_the_libraries_of_the_packages_are_loaded_before_mxnet(driver, site):
    code = """
from pathlib import Path
from crepe_dist.distributed.launch import Launch, import_mxnet
import_mxnet(Launch())
lines = Path("/proc/self/maps").read_text().splitlines()
files = {line.split()[5] for line in lines if len(line.split()) == 6}
print(*sorted(path for path in files if "/nvidia/" in path or "libcuda.so" in path), sep="\\n")
"""
    wanted = [site / "nvidia" / part / "lib" / name for name, (_, part) in cuda.LIBRARIES.items()]
    loaded = run(code, cuda_driver.environment(driver, site))
    assert loaded == sorted(map(str, [*wanted, driver / nvidia.LIBRARY]))
    assert run(code, cuda_driver.environment(driver)) == [""]  # the CPU flavour: none of it


def test_without_the_driver(site, tmp_path):
    environment = cuda_driver.environment(None, site)
    missing = "MXNet's GPU flavour cannot be loaded without the NVIDIA driver's libcuda.so.1"
    remedy = "install the NVIDIA driver 450.80.02 or later"
    code, said = ended(command("train", "--device=gpu"), tmp_path, environment)
    assert (code, "error: no GPU was found\n  why: no NVIDIA driver was found: libcuda.so.1: cannot" in said) == (
        1,
        True,
    )
    code, said = ended(command("train", "--model=paper", "--kernels=mxnet"), tmp_path, environment)
    assert code == 1
    assert f"\nerror: {missing}" in f"\n{said}"
    assert f"  do:  {remedy}" in said
    code, said = ended(command("doctor", "--quick"), tmp_path, environment)
    assert code == 1
    assert f"problem  MXNet         {missing}\n" in said
    assert f" do: {remedy}" in said


def test_each_library_that_is_missing_is_named(driver, site, tmp_path):
    (site / "nvidia" / "cudnn" / "lib" / "libcudnn.so.8").unlink()
    shutil.rmtree(site / "nvidia_nccl_cu11-1.9.1.dist-info")
    mxnet = command("train", "--device=gpu", "--model=paper")
    code, said = ended(mxnet, tmp_path, cuda_driver.environment(driver, site))
    assert code == 1
    assert "without libcudnn.so.8 (package nvidia-cudnn-cu11), libnccl.so.2 (package nvidia-nccl-cu11)\n" in said
    assert "--group cu112" in said
    assert "driver" not in said


def test_arrays_on_gpus_need_a_horovod_with_cuda():
    from crepe_dist.distributed.horovod_world import HorovodWorld

    class Horovod:
        def cuda_built(self):
            return False

    world: Any = HorovodWorld.__new__(HorovodWorld)
    world.horovod = Horovod()
    world.check_device("cpu")
    with pytest.raises(cuda.UserError, match="Horovod was built without CUDA") as raised:
        world.check_device("gpu")
    assert raised.value.on_all_ranks
