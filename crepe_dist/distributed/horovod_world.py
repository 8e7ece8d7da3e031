"""World of processes that ``horovodrun`` started, through Horovod for MXNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mxnet as mx
import numpy as np

from crepe_dist.distributed.world import Bytes, World
from crepe_dist.mxnet_internals import view


class HorovodWorld(World):
    """World over Horovod, in which collectives without a name pair up by a counter that may differ by rank."""

    carrier = "Horovod"

    def __init__(self, horovod: Any) -> None:
        self.horovod = horovod
        horovod.init()
        super().__init__(horovod.rank(), horovod.size())

    def _swap(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        sizes, own = list(sizes), self.rank
        if is_empty := not sizes[own]:  # MXNet has no empty arrays, so each rank sends itself a byte
            data, sizes[own] = np.insert(data, sum(sizes[:own]), 0), 1
        # On the memory of `data`, which MXNet makes read-only: hence a view.
        array = mx.nd.from_numpy(data[:], zero_copy=True)
        received, from_each = self.horovod.alltoall(array, splits=sizes, name=name)
        received.wait_to_read()
        found, counts = view(received), from_each.asnumpy().tolist()
        if is_empty:
            found, counts[own] = np.delete(found, sum(counts[:own])), 0
        return found, counts

    def close(self) -> None:
        mx.nd.waitall()  # otherwise the last update may be lost, and MXNet complains at exit
        self.horovod.shutdown()
