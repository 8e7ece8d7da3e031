"""Process group of processes that ``mpiexec`` started, with mpi4py as the backend.

The group never sends pickled objects.
"""

import atexit
import math
import time
from collections.abc import Sequence
from typing import Any

import mpi4py
import numpy as np

from crepe_dist.distributed.chunked_messages import ChunkedProcessGroup
from crepe_dist.distributed.messages import Bytes
from crepe_dist.errors import PeerLostError

# By default, mpi4py calls MPI_Finalize at exit. MPI_Finalize waits for all ranks, so a failed process would hang.
mpi4py.rc.finalize = False
# MPI of one kind ends the process if the launcher of another kind has started it. So the kinds are compared first.
mpi4py.rc.initialize = False
from mpi4py import MPI  # noqa: E402

VENDOR = MPI.get_vendor()[0]  # Name of the MPI library that mpi4py has loaded, such as MPICH or Open MPI.

# Seconds during which a wait polls without sleeping. Afterwards, it sleeps between polls, so that other threads get the
# core.
SPIN_SECONDS = 0.01
POLL_SECONDS = 0.001  # Length of the sleep between two polls, in seconds.


class MpiProcessGroup(ChunkedProcessGroup):
    """Process group of all ranks of ``MPI.COMM_WORLD``. Python's signal handlers run while a rank waits.

    Every collective raises ``PeerLostError`` if MPI reports a lost rank. Usually ``mpiexec`` kills the other processes
    before that.
    """

    backend = "MPI"
    # False from the creation of a process group until its ``close``. It stays False if the process fails.
    is_closed = True

    def __init__(self) -> None:
        MpiProcessGroup.is_closed = False
        MPI.Init_thread()
        self._communicator = MPI.COMM_WORLD
        super().__init__(self._communicator.rank, self._communicator.size)

    def _bounded_all_to_all(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        received_sizes = np.empty(self.size, np.int64)
        self._wait(self._communicator.Ialltoall(np.array(sizes, np.int64), received_sizes))
        counts = received_sizes.tolist()
        received = np.empty(sum(counts), np.uint8)
        # All ranks have arrived, so the wait is short. MPI transfers only a chunk of a large message per poll, so a
        # sleep between polls would slow down the transfer.
        self._wait(self._communicator.Ialltoallv([data, list(sizes)], [received, counts]), math.inf)
        return received, counts

    def _wait(self, request: Any, spin_seconds: float = SPIN_SECONDS) -> None:
        start = time.monotonic()
        try:
            while not request.Test():
                time.sleep(0 if time.monotonic() - start < spin_seconds else POLL_SECONDS)
        except MPI.Exception as error:
            raise PeerLostError(str(error)) from error

    def close(self) -> None:
        self._wait(self._communicator.Ibarrier())
        MpiProcessGroup.is_closed = True


@atexit.register
def _finalize() -> None:
    """Finalize MPI if no process group is open.

    Without this call, ``mpiexec`` treats the exit of this process as a failure and kills the other processes.
    """
    if MpiProcessGroup.is_closed and MPI.Is_initialized():
        MPI.Finalize()
