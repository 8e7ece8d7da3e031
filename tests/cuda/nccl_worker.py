"""Program of ``test_nccl.py``: one rank of a sum over several GPUs: ``python nccl_worker.py RANK SIZE FOLDER FAULTS``.

The program prints the SHA-256 of the sums, or the error that the rank met. Rank 0 passes the communicator's name to
the others in a file.
"""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from crepe_dist.cuda import gpu, nccl
from crepe_dist.errors import PeerLostError, UserError


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def communicate(rank: int, size: int, folder: Path, faults: str) -> None:
    device = gpu.Gpu(rank)
    gone, name = folder / "gone", folder / "name"

    def check() -> None:
        if "check" in faults and gone.exists() and time.time() > gone.stat().st_mtime + 1:
            raise PeerLostError("a peer of this host is gone")

    if rank == 0:
        (folder / "written").write_text(nccl.unique_id())
        (folder / "written").rename(name)
    wait_for(name)
    if rank == 1 and "never starts" in faults:
        return
    seconds = 3 if "never starts" in faults else 1000  # A busy machine may take long.
    communicator = nccl.Communicator(device, rank, size, name.read_text(), check, seconds)
    memory, array, digest = device.allocate(4 * 1000), np.empty(1000, np.int32), hashlib.sha256()
    random = np.random.default_rng(rank)
    for step in range(20):
        memory.write(random.integers(-(1 << 31), 1 << 31, 1000).astype(np.int32))
        if step == 10 and rank == 1 and "during" in faults:
            gone.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 10 and rank == 1 and "stalls" in faults:
            wait_for(gone)
            os._exit(0)
        communicator.all_reduce(memory, 1000)
        if step == 10 and "stalls" in faults:
            del memory, device, communicator._gpu  # The kernel of the sum still waits for rank 1.
            print("went on", flush=True)
            gone.touch()
            os._exit(0)
        communicator.wait()
        memory.read(array)
        digest.update(array.tobytes())
    print(digest.hexdigest())


if __name__ == "__main__":
    gpu.HANG_SECONDS = nccl.HANG_SECONDS = 0.2
    try:
        communicate(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    except PeerLostError as error:
        print("gone:", error)
    except UserError as error:
        print(error)
