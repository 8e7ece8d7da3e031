"""The processes that train together, behind one interface.

For a single process each collective is the identity, and neither MXNet nor Horovod is imported. Many processes use
Horovod (``horovod_world.py``). If several processes are launched but Horovod is missing or sees fewer, ``join`` raises
an error, so that N processes never silently train independently.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.distributed.collectives import Collectives
from crepe_dist.distributed.control import Stopped
from crepe_dist.distributed.device import Device
from crepe_dist.errors import UserError


class World(Collectives):
    """World of a single process, and base class of ``HorovodWorld``. As a context manager it ends collectives cleanly.

    Attributes:
        horovod: the module ``horovod.mxnet``; ``None`` for a single process.
    """

    horovod: Any = None

    def check_device(self, device: Device) -> None:
        """Check that MXNet's arrays on that device can be broadcast and summed; call before any of them exists.

        Raises:
            UserError: it is a GPU, and Horovod was built without CUDA. Horovod would crash.
        """

    def broadcast_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Replace the values of arrays, which have the same names on every rank, by rank 0's."""

    def all_to_all(
        self, array: npt.NDArray[Any], counts: Sequence[int], name: str
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
        """Send each rank its elements of an array along the first axis, and return those received.

        Every rank sends and receives at least one element, perhaps from itself: MXNet has no empty arrays.

        Args:
            counts: number of elements for each rank, in the order of the ranks and of the array.

        Returns:
            The received elements in the order of the ranks that sent them, and the number from each rank.
        """
        return array, np.array(counts, np.int32)

    def close(self) -> None:
        """Wait for all pending work, then leave the group."""

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, UserError) and error.on_all_ranks:
            if self.is_root:
                print(error, file=sys.stderr, flush=True)
            self.gather(0, "exit")  # a rank that left earlier could get the others killed before the message is printed
            self.close()
            raise SystemExit(error.code)
        if isinstance(error, Stopped) and error.on_all_ranks:
            self.gather(0, "exit")
            self.close()
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.close()
