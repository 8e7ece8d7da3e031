"""World of many processes, through Horovod for MXNet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt

from crepe_dist import machine
from crepe_dist.distributed.rendezvous import Meeting
from crepe_dist.distributed.world import World
from crepe_dist.errors import UserError
from crepe_dist.mxnet_internals import view


class HorovodWorld(World):
    """World of many processes. Each collective has a name: unnamed ones pair up by a counter that may differ by rank.

    Args:
        met: the meeting, if our own rendezvous formed the group.
    """

    def __init__(self, horovod: Any, met: Meeting | None = None) -> None:
        super().__init__()
        self.horovod = horovod
        self._met = met
        self.horovod.init()
        self.rank = self.horovod.rank()
        self.size = self.horovod.size()
        self.local_rank = self.horovod.local_rank()
        self.local_size = self.horovod.local_size()
        if met is not None:
            self.gather(0, "met")
            met.end()

    def __enter__(self) -> World:
        try:
            # With different code, ranks would diverge or wait for different collectives.
            self.agree("installed packages", machine.group_versions, same=lambda versions: versions)
        except UserError as error:
            self.__exit__(UserError, error, None)
            raise
        return self

    def sum(self, array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        reduced = self.horovod.allreduce(mx.nd.array(array, dtype=array.dtype), average=False, name=name)
        return np.asarray(reduced.asnumpy())

    def gather(self, value: Any, name: str) -> list[Any]:
        # JSON in bytes: Horovod's own object collectives unpickle what arrives.
        data = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
        sizes = self.horovod.allgather(mx.nd.array([len(data)], dtype="int64"), name=f"{name}.sizes").asnumpy()
        joined = self.horovod.allgather(mx.nd.array(data, dtype="uint8"), name=f"{name}.data").asnumpy().tobytes()
        ends = np.cumsum(sizes).tolist()
        return [json.loads(joined[end - length : end]) for end, length in zip(ends, sizes.tolist())]

    def broadcast_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        for name, array in sorted(arrays.items()):
            self.horovod.broadcast_(_shared(array), root_rank=0, name=f"arrays.{name}")
        mx.nd.waitall()

    def all_to_all(
        self, array: npt.NDArray[Any], counts: Sequence[int], name: str
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
        received, from_each = self.horovod.alltoall(_shared(array), splits=list(counts), name=name)
        received.wait_to_read()
        return view(received), from_each.asnumpy()

    def close(self) -> None:
        mx.nd.waitall()  # otherwise the last update may be lost, and MXNet complains at exit
        self.horovod.shutdown()
        if self._met is not None:
            self._met.leave()


def _shared(array: npt.NDArray[Any]) -> mx.nd.NDArray:
    """Return an MXNet array on the memory of a NumPy array, which must stay unchanged until the collective is done."""
    return mx.nd.from_numpy(array[:], zero_copy=True)  # it makes the view that it is given read-only
