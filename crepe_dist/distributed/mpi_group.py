"""World of processes that ``mpiexec`` started, through mpi4py: MPI carries bytes, and nothing is pickled."""

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

mpi4py.rc.finalize = False  # it waits for all ranks, and would hang if this one alone fails
from mpi4py import MPI  # noqa: E402

SPIN_SECONDS = 0.01  # a longer wait for other ranks sleeps between its looks, and leaves the core to others
POLL_SECONDS = 0.001


class MpiProcessGroup(ChunkedProcessGroup):
    """World of all processes of MPI; a waiting rank handles signals.

    Raises:
        PeerGone: in each collective, if MPI reports that a rank is gone; usually ``mpiexec`` ends the others first.
    """

    backend = "MPI"
    is_closed = True  # the last one of this process

    def __init__(self) -> None:
        MpiProcessGroup.is_closed = False
        self._group = MPI.COMM_WORLD
        super().__init__(self._group.rank, self._group.size)

    def _bounded_all_to_all(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        incoming = np.empty(self.size, np.int64)
        self._wait(self._group.Ialltoall(np.array(sizes, np.int64), incoming))
        from_each = incoming.tolist()
        received = np.empty(sum(from_each), np.uint8)
        # All ranks are here, and MPI moves only a piece of a large message in each look.
        self._wait(self._group.Ialltoallv([data, list(sizes)], [received, from_each]), math.inf)
        return received, from_each

    def _wait(self, request: Any, spin: float = SPIN_SECONDS) -> None:
        began = time.monotonic()
        try:
            while not request.Test():
                time.sleep(0 if time.monotonic() - began < spin else POLL_SECONDS)
        except MPI.Exception as error:
            raise PeerLostError(str(error)) from error

    def close(self) -> None:
        self._wait(self._group.Ibarrier())
        MpiProcessGroup.is_closed = True


@atexit.register
def _finalize() -> None:
    """Leave MPI; without it, ``mpiexec`` takes the end of this process for a failure and ends the others."""
    if MpiProcessGroup.is_closed:
        MPI.Finalize()
