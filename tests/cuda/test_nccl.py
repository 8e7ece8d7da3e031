"""Sums over several GPUs by NCCL, on a stand-in for processes of one host."""

import hashlib
import subprocess

import numpy as np
import pytest

from crepe_dist import extras
from crepe_dist.cuda import driver, nccl
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.parallel import cuda_optimizer
from tests.chaos.harness import slow
from tests.helpers import cuda_emulator
from tests.helpers.needs import needs
from tests.helpers.programs import program

NO_NCCL = f"NCCL is not installed: {extras.install_command('gpus')}"
pytestmark = [needs("g++"), pytest.mark.skipif(cuda_emulator.is_real() and not nccl.version(), reason=NO_NCCL)]
GONE = "gone: a peer of this host is gone"


def ranks(folder, size: int, faults: str = "", **told: object) -> list[str]:
    """Return what each of several processes prints."""
    environment = cuda_emulator.environment(DRIVER_GPUS=size, **told)
    commands = [program("cuda/nccl_worker.py", rank, size, folder, faults) for rank in range(size)]
    processes = [subprocess.Popen(each, env=environment, stdout=-1, stderr=-1, text=True) for each in commands]
    shown = [process.communicate() for process in processes]
    assert not [errors for _, errors in shown if "Traceback" in errors]
    return [output.strip() for output, _ in shown]


@pytest.mark.parametrize("size", [slow(1), 2, slow(4), slow(8)])
def test_every_rank_has_the_sums(size, tmp_path):
    """Sums of int32 wrap around."""
    randoms = [np.random.default_rng(rank) for rank in range(size)]
    expected = hashlib.sha256()
    for _ in range(20):
        terms = [random.integers(-(1 << 31), 1 << 31, 1000).astype(np.int32) for random in randoms]
        expected.update(np.sum(terms, axis=0, dtype=np.int32).tobytes())
    assert ranks(tmp_path, size) == [expected.hexdigest()] * size


def test_a_peer_that_is_gone_is_noticed(tmp_path):
    cuda_emulator.only_stand_ins("to hear of a peer of the same host")
    others = ranks(tmp_path, 2, "during")
    assert others[0].startswith("gone: NCCL: a sum over the GPUs failed: remote process exited or there was a network")
    assert others[1] == ""


@pytest.mark.parametrize("code", [0, 700, 220, -1], ids=["hangs", "illegal address", "NVLink", "NCCL"])
def test_a_peer_that_nccl_does_not_miss_is_noticed_by_the_check(code, tmp_path):
    """Also if its end shows first as an error of the own GPU, the check knows of it late, and NCCL never ends."""
    told = {} if cuda_emulator.is_real() and code == 0 else {"EMULATOR_NCCL_DEAF": code, "EMULATOR_NCCL_STUCK": 1}
    found, other = ranks(tmp_path, 2, "during check", **told)
    assert found == GONE or (cuda_emulator.is_real() and found.startswith("gone: NCCL"))  # which may hear of it first
    assert other == ""


def test_an_error_of_the_gpu_is_its_own_if_all_peers_are_there(tmp_path):
    (shown,) = ranks(tmp_path, 1, "check", EMULATOR_FAILS="cuStreamQuery=719")
    assert "GPU 0 (GPU of a test) cannot be used: cuStreamQuery: CUDA_ERROR_LAUNCH_FAILED (719)" in shown


@pytest.mark.parametrize(
    ("told", "remedy"),
    [
        ({"EMULATOR_FAILS": "cuStreamQuery=217"}, "set NCCL_P2P_DISABLE=1, so that NCCL copies through main memory"),
        ({"EMULATOR_NCCL_FAILS": 1}, "GPUs that cannot access each other's memory NCCL_P2P_DISABLE=1"),
        ({"EMULATOR_NCCL_FAILS": 2}, "a container may need --shm-size 1g"),
    ],
    ids=["no peer access", "NCCL without peer access", "no shared memory"],
)
def test_errors_of_connections_between_gpus_have_a_remedy(told, remedy, tmp_path):
    shown = ranks(tmp_path, 2, **told)
    assert all(remedy in text for text in shown), shown


def test_a_finalizer_does_not_wait_for_a_kernel_that_hangs(tmp_path):
    assert ranks(tmp_path, 2, "stalls") == ["went on", ""]


def test_nccl_has_a_time_limit_for_its_start(tmp_path):
    first, second = ranks(tmp_path, 2, "never starts", EMULATOR_NCCL_DEAF=0)
    assert first.startswith("error: NCCL did not start within 3 s\n  why: the network between")
    assert second == ""


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ((22602, "this machine, bus 2"), ""),
        ((0, "this machine, bus 2"), "rank 1 has no NCCL 2.14 or later"),
        ((22803, "this machine, bus 2"), "the ranks have versions 22602 and 22803 of NCCL"),
        ((22602, "this machine, bus 1"), "NCCL cannot use several MIG slices of one GPU"),
    ],
    ids=["two GPUs", "no NCCL", "another NCCL", "slices"],
)
def test_what_nccl_cannot_sum_is_summed_by_the_hosts(other, why, monkeypatch):
    monkeypatch.setattr(nccl, "version", lambda: 22602)
    monkeypatch.setattr(driver, "gpu_location", lambda gpu: "this machine, bus 1")
    world = ProcessGroup()
    world.size = 2
    monkeypatch.setattr(world, "all_gather_json", lambda value, name: [value, other])
    assert cuda_optimizer._nccl_unavailable_reason(world, 0) == why
