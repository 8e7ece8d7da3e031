"""The packages of MXNet's GPU flavour, without a GPU: a stand-in for the driver, and empty libraries."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crepe_dist.cuda import driver
from crepe_dist.distributed import cuda
from tests.conftest import command
from tests.helpers.needs import needs
from tests.mxnet_gpu import packages

pytestmark = needs("g++")


@pytest.fixture
def site(tmp_path):
    return packages.install(tmp_path / "site")


def ended(arguments, cwd, environment):
    """(code, what it said) of a command."""
    done = subprocess.run(arguments, cwd=cwd, env=environment, stdout=-1, stderr=-1, text=True, timeout=200)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def run(code, environment, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, stdout=-1, text=True, timeout=200, check=True)
    return done.stdout.splitlines()


def test_the_libraries_of_the_packages_are_loaded_before_mxnet(site):
    code = """
from pathlib import Path
from crepe_dist.distributed.launch import import_mxnet
import_mxnet()
import os
print(os.environ["NVIDIA_TF32_OVERRIDE"])
lines = Path("/proc/self/maps").read_text().splitlines()
files = {line.split()[5] for line in lines if len(line.split()) == 6}
print(*sorted(path for path in files if "/nvidia/" in path or "libcuda.so" in path), sep="\\n")
"""
    wanted = [site / "nvidia" / part / "lib" / name for name, (_, part) in cuda.LIBRARIES.items()]
    environment = packages.environment(site)
    found = Path(environment["LD_LIBRARY_PATH"], driver.LIBRARY)
    assert run(code, environment) == ["0", *sorted(map(str, [*wanted, found]))]
    assert run(code, packages.environment()) == ["0", ""]  # the CPU flavour: none of it


def test_without_the_driver(site, tmp_path):
    environment = {**packages.environment(site), "LD_LIBRARY_PATH": ""}
    for arguments, message in (
        (("train", "--device=gpu"), "no GPU was found\n  why: no NVIDIA driver was found: libcuda.so.1: cannot"),
        (("train", "--model=paper", "--kernels=mxnet"), "MXNet's GPU flavour cannot be loaded: no NVIDIA driver"),
        (("doctor", "--quick"), "problem  MXNet         MXNet's GPU flavour cannot be loaded: no NVIDIA driver"),
    ):
        code, said = ended(command(*arguments), tmp_path, environment)
        assert code == 1
        assert message in said


def test_each_library_that_is_missing_is_named(site, tmp_path):
    (site / "nvidia" / "cudnn" / "lib" / "libcudnn.so.8").unlink()
    shutil.rmtree(site / "nvidia_cufft_cu11-1.9.1.dist-info")
    mxnet = command("train", "--device=gpu", "--model=paper")
    code, said = ended(mxnet, tmp_path, packages.environment(site))
    assert code == 1
    assert "without libcudnn.so.8 (package nvidia-cudnn-cu11), libcufft.so.10 (package nvidia-cufft-cu11)\n" in said
    assert "--group cu112" in said
    assert "driver" not in said
