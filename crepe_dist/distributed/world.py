"""The processes that train together, behind one interface.

Many processes use Horovod. For a single process each collective is the identity, and Horovod is never imported. If
several processes are launched but Horovod is missing or sees fewer, ``join`` raises an error, so that N processes never
silently train independently.
"""

from __future__ import annotations

import json
import socket
import sys
from types import TracebackType
from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt
from mxnet import gluon

from crepe_dist import machine
from crepe_dist.distributed import horovod_build, horovod_internals, peer_loss
from crepe_dist.distributed.collectives import Collectives
from crepe_dist.distributed.control import Stopped
from crepe_dist.distributed.rendezvous import Meeting
from crepe_dist.errors import UserError

Parameters = dict[str, gluon.Parameter]  # by names that are the same on every rank


class World(Collectives):
    """World of a single process, and base class of ``HorovodWorld``. As a context manager it ends collectives cleanly.

    Attributes:
        horovod: the module ``horovod.mxnet``; ``None`` for a single process.
    """

    horovod: Any = None

    def check_device(self, device: mx.Context) -> None:
        """Check that arrays on that device can be broadcast and summed; call before any of them exists.

        Raises:
            UserError: it is a GPU, and Horovod was built without CUDA. Horovod would crash.
        """

    def broadcast_parameters(self, parameters: Parameters) -> None:
        """Copy rank 0's values of Gluon parameters to every rank.

        Args:
            parameters: parameters by structural names, because Gluon's contain a counter.
        """

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


class HorovodWorld(World):
    """World of many processes. Each collective has a name: unnamed ones pair up by a counter that may differ by rank.

    Args:
        met: the meeting, if our own rendezvous formed the group.
    """

    def __init__(self, horovod: Any, met: Meeting | None = None) -> None:
        super().__init__()
        self.horovod = horovod
        self._met = met
        before = peer_loss.sockets()
        with horovod_internals.aborting_nccl():
            self.horovod.init()
        self.rank = self.horovod.rank()
        self.size = self.horovod.size()
        self.local_rank = self.horovod.local_rank()
        self.local_size = self.horovod.local_size()
        opened = peer_loss.sockets() - before
        peer_loss.probe(opened)
        connections = {"host": socket.gethostname(), "addresses": peer_loss.addresses(opened)}
        ranks = self.gather(connections, "hosts")
        peer_loss.hosts.remember({address: rank["host"] for rank in ranks for address in rank["addresses"]})
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

    def check_device(self, device: mx.Context) -> None:
        if device.device_type == "gpu" and not self.horovod.cuda_built():
            raise horovod_build.without_cuda()

    def broadcast_parameters(self, parameters: Parameters) -> None:
        for parameter in parameters.values():
            self.check_device(parameter.list_ctx()[0])
        self.horovod.broadcast_parameters(parameters, root_rank=0, prefix="parameters.")

    def close(self) -> None:
        mx.nd.waitall()  # otherwise the last update may be lost, and MXNet complains at exit
        self.horovod.shutdown()
        if self._met is not None:
            self._met.leave()
