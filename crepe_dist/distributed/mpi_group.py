"""Process group of processes that ``mpiexec`` started, with mpi4py as the backend. It sends bytes and no pickles."""

from __future__ import annotations

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

# MPI_Finalize waits for all ranks. At the exit of a failed process, it would hang.
mpi4py.rc.finalize = False
from mpi4py import MPI  # noqa: E402

SPIN_SECONDS = 0.01  # Seconds that a wait polls without sleeping. A longer wait then leaves the core to others.
POLL_SECONDS = 0.001  # Seconds of sleep between two polls, after SPIN_SECONDS.


class MpiProcessGroup(ChunkedProcessGroup):
    """Process group of all processes of MPI. A waiting rank handles signals.

    Raises:
        PeerLostError: By each collective, if MPI reports a lost rank. Usually ``mpiexec`` ends the other processes
            earlier.
    """

    backend = "MPI"
    is_closed = True  # Whether the last process group of this process was closed, or there was none.

    def __init__(self) -> None:
        MpiProcessGroup.is_closed = False
        self._communicator = MPI.COMM_WORLD
        super().__init__(self._communicator.rank, self._communicator.size)

    def _bounded_all_to_all(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        received_sizes = np.empty(self.size, np.int64)
        self._wait(self._communicator.Ialltoall(np.array(sizes, np.int64), received_sizes))
        counts = received_sizes.tolist()
        received = np.empty(sum(counts), np.uint8)
        # All ranks have arrived, so no rank waits long. Each poll moves only a chunk of a large message, so do not
        # sleep between polls.
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
    """Finalize MPI. Without it, ``mpiexec`` treats the end of this process as a failure and ends the others."""
    if MpiProcessGroup.is_closed:
        MPI.Finalize()
