"""What the first user of a machine with GPUs reads: `crepe doctor` and `benchmarks/gpu.py`, on emulated GPUs."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from tests.chaos.harness import slow
from tests.conftest import QUICK, command, needs_kernels, prepare_with_capitals, run
from tests.helpers import cuda_emulator
from tests.helpers.needs import needs
from tests.multihost.network import needs_namespaces

pytestmark = needs("g++")
KIT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
FULL = 1 << 40


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, "none: CUDA_VISIBLE_DEVICES is empty"),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, "CUDA_VISIBLE_DEVICES=NoDevFiles names no GPU"),
        ({"CUDA_VISIBLE_DEVICES": "MIG-6d"}, "CUDA_VISIBLE_DEVICES=MIG-6d names no GPU"),
        ({"DRIVER_GPUS": 0}, "none: the driver finds no GPU"),
        ({"DRIVER_GPUS": 2, "EMULATOR_NCCL_VERSION": 0}, "NCCL not found"),
    ],
)
def test_the_doctor_says_why_there_is_no_gpu_or_library(told, shown, tmp_path):
    with cuda_emulator.for_processes(**told):
        assert shown in run(command("doctor"), tmp_path)


def test_a_gpu_of_the_scheduler_is_the_only_one(tmp_path):
    with cuda_emulator.for_processes(DRIVER_GPUS=4, CUDA_VISIBLE_DEVICES="2"):
        printed = run(command("doctor"), tmp_path)
    assert "GPU 0 " in printed
    assert "GPU 1 " not in printed


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ({"EMULATOR_FAILS": "cuModuleLoadData=222"}, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)"),
        ({"DRIVER_COMPUTE_MODE": 3}, "GPU 0 admits only one process at a time"),
        ({"DRIVER_VERSION": 11080}, "the NVIDIA driver is too old"),
    ],
)
def test_the_kit_ends_with_a_sentence(told, error, tmp_path, monkeypatch):
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))
    printed = run([sys.executable, str(KIT), "--emulator", "--only", "machine", "squares"], tmp_path, code=1)
    first, second = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert (first["outcome"], second["outcome"]) == ("FAILED", "not run")
    assert error in first["error"]
    assert "Traceback" not in printed
    assert error in (tmp_path / "gpu.md").read_text()


def test_a_gpu_full_of_other_processes_is_named_when_memory_runs_out():
    with cuda_emulator.for_processes(DRIVER_MEMORY=2 * FULL, DRIVER_TAKEN=FULL):
        words = [
            sys.executable,
            "-c",
            "from crepe_dist.cuda.gpu import Gpu\ntry: Gpu(0).allocate(2**41)\nexcept MemoryError as e: print(e)",
        ]
        printed = run(words, Path.cwd())
    assert f"{FULL:,} were used before this process began; nvidia-smi lists the processes" in printed


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_with_capitals(tmp_path_factory.mktemp("few"), train_rows=51, test_rows=9)


def train(data: Path, run_dir: Path, processes: int, code: int = 0, shared_memory: str = "", **told: object) -> str:
    """Train with the supervisor on emulated GPUs, and return the output.

    Args:
        shared_memory: Size of /dev/shm, as in a container.
    """
    supervise = command("supervise", "-np", processes, "--max-restarts=0", "--data", data, "--run-dir", run_dir)
    words = [*supervise, "--device=gpu", *QUICK, "--epochs=1"]
    if shared_memory:
        mount = f"mount -t tmpfs -o size={shared_memory} none /dev/shm && exec {shlex.join(map(str, words))}"
        words = ["unshare", "--mount", "sh", "-c", mount]
    with cuda_emulator.for_processes(**{"DRIVER_GPUS": processes, **told}):
        return run(words, run_dir.parent, code=code)


@needs_namespaces
@needs_kernels
@pytest.mark.parametrize("processes", [2, slow(4)])
def test_a_container_with_little_shared_memory(processes, data, tmp_path):
    printed = train(data, tmp_path / "enough", processes, shared_memory="1m")
    assert "gradients summed by NCCL" in printed
    assert "share memory" not in printed
    printed = train(data, tmp_path / "full", processes, shared_memory="4k")
    assert "gradients summed by NCCL" in printed
    assert "cannot share memory, so the others notice the end of one of them later" in printed
    assert "do:  make /dev/shm larger" in printed


def test_more_processes_than_gpus(data, tmp_path):
    printed = train(data, tmp_path / "run", 4, code=1, DRIVER_GPUS=2)
    assert "error: rank 2 (host " in printed
    assert "it sees 2 GPUs, used by rank 0 (host " in printed
    assert "do:  start at most one process per GPU" in printed
