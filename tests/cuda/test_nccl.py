"""Sums over several GPUs by NCCL, on a stand-in for processes of one host."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np

from tests.helpers import cuda_emulator
from tests.helpers.needs import needs

pytestmark = needs("g++")
# A rank; rank 0 hands its id on in a file. Prints the sums' SHA-256, or that a peer is gone.
RANK = """
import hashlib, os, sys, time
from pathlib import Path
import numpy as np
from crepe_dist.cuda import gpu, nccl
from crepe_dist.errors import PeerGone
rank, size, folder, dies = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
device = gpu.Gpu(rank)

def share(own):
    if own is not None:
        (folder / "written").write_bytes(own)
        (folder / "written").rename(folder / "id")
    while not (folder / "id").exists():
        time.sleep(0.01)
    return (folder / "id").read_bytes()

def check():
    if "check" in dies and (folder / "gone").exists():
        raise PeerGone("a peer of this host is gone")

try:
    communicator = nccl.Communicator(device, rank, size, share, check)
    memory, array, whole = device.allocate(4 * 1000), np.empty(1000, np.int32), hashlib.sha256()
    random = np.random.default_rng(rank)
    for step in range(20):
        terms = random.integers(-(1 << 31), 1 << 31, 1000).astype(np.int32)
        memory.write(terms)
        if step == 10 and rank == 1 and "during" in dies:
            (folder / "gone").touch()
            os._exit(0)
        communicator.sum(memory, 1000)
        communicator.wait()
        memory.read(array)
        whole.update(array.tobytes())
    print(whole.hexdigest())
except PeerGone as error:
    print("gone:", error)
"""


def ranks(folder, size: int, dies: str = "", **told: object) -> list[str]:
    """Return what each of several processes prints."""
    environment = cuda_emulator.environment(DRIVER_GPUS=4, **told)
    commands = [[sys.executable, "-c", RANK, str(rank), str(size), str(folder), dies] for rank in range(size)]
    processes = [subprocess.Popen(each, env=environment, stdout=-1, stderr=-1, text=True) for each in commands]
    shown = [process.communicate(timeout=100) for process in processes]
    assert not [errors for _, errors in shown if "Traceback" in errors]
    return [output.strip() for output, _ in shown]


def test_every_rank_has_the_sums(tmp_path):
    randoms = [np.random.default_rng(rank) for rank in range(3)]
    expected = hashlib.sha256()
    for _ in range(20):
        terms = [random.integers(-(1 << 31), 1 << 31, 1000).astype(np.int32) for random in randoms]
        expected.update(np.sum(terms, axis=0, dtype=np.int32).tobytes())
    assert ranks(tmp_path, 3) == [expected.hexdigest()] * 3


def test_a_peer_that_is_gone_is_noticed(tmp_path):
    others = ranks(tmp_path, 3, "during")
    assert others[1] == ""
    for shown in (others[0], others[2]):
        assert shown.startswith("gone: NCCL: a sum over the GPUs failed: remote process exited or there was a network")


def test_a_peer_that_nccl_does_not_miss_is_noticed_by_the_check(tmp_path):
    others = ranks(tmp_path, 3, "during check", EMULATOR_NCCL_DEAF=1)
    assert others == ["gone: a peer of this host is gone", "", "gone: a peer of this host is gone"]
