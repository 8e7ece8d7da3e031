"""The processes that train together, behind one interface.

Many processes use Horovod. For a single process each collective is the identity, and Horovod is never imported. If
several processes are launched but Horovod is missing or sees fewer, ``join`` raises an error: N processes never train
independently without saying so.
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
from mxnet.optimizer import Optimizer

from crepe_dist import machine
from crepe_dist.distributed import horovod_build, horovod_internals, peer_loss
from crepe_dist.distributed.collectives import Collectives
from crepe_dist.distributed.control import Stopped
from crepe_dist.distributed.gradients import HorovodTrainer, Trainer
from crepe_dist.distributed.rendezvous import Meeting
from crepe_dist.distributed.shared_memory import NOTE, SharedGradients, SharedMemoryTrainer, share
from crepe_dist.distributed.table import HostExchange, Table
from crepe_dist.distributed.whole_sums import WholeSums
from crepe_dist.errors import UserError
from crepe_dist.mxnet_internals import scale_gradients, trainer_parameters

Parameters = dict[str, gluon.Parameter]  # by names that are the same on every rank


class World(Collectives):
    """A single process, and the base class of many; a context manager that ends collective work cleanly."""

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

    def trainer(self, parameters: Parameters, optimizer: Optimizer, sums: WholeSums | None = None) -> Trainer:
        """Make a Gluon ``Trainer`` whose gradients are summed over the ranks.

        Args:
            sums: quanta of the gradients and parameters to train row by row, if the engine leaves whole numbers.
        """
        tables = [Table(each, optimizer) for each in (sums.sparse if sums else ())]
        return Trainer(gluon.Trainer(parameters, optimizer, kvstore=None), tables, sums)

    def start_timeline(self, path: str) -> None:
        """Record Horovod's collectives from now on, on rank 0, for chrome://tracing; every rank calls it.

        It does nothing unless ``join`` was told. If the launcher asked for a timeline, that one continues instead.
        """

    def stop_timeline(self) -> None:
        """End the timeline of ``start_timeline``."""

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
    """Many processes. Every collective has a name: unnamed ones pair up by a counter that may differ by rank.

    Args:
        horovod: the module ``horovod.mxnet``.
        met: place of this process, if our own rendezvous formed the group.
        timeline: ``start_timeline`` will be called.
    """

    def __init__(self, horovod: Any, met: Meeting | None = None, timeline: bool = False) -> None:
        super().__init__()
        self._hvd = horovod
        self._met = met
        self._shared: SharedGradients | None = None
        self._can_start_timeline = timeline and horovod_internals.allow_timeline()
        before = peer_loss.sockets()
        with horovod_internals.aborting_nccl():
            self._hvd.init()
        self.rank = self._hvd.rank()
        self.size = self._hvd.size()
        self.local_rank = self._hvd.local_rank()
        self.local_size = self._hvd.local_size()
        opened = peer_loss.sockets() - before
        peer_loss.probe(opened)
        mine = {"host": socket.gethostname(), "addresses": peer_loss.addresses(opened)}
        ranks = self.gather(mine, "hosts")
        peer_loss.hosts.remember({address: each["host"] for each in ranks for address in each["addresses"]})
        if met is not None:
            self.gather(0, "met")
            met.end()

    def __enter__(self) -> World:
        try:
            # With different code, ranks would diverge or wait for different collectives.
            self.agree("installed packages", machine.group_versions, same=lambda found: found)
        except UserError as error:
            self.__exit__(UserError, error, None)
            raise
        return self

    def sum(self, array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        if self._shared is not None and array.nbytes <= NOTE:
            return self._shared.sum_note(array)
        reduced = self._hvd.allreduce(mx.nd.array(array, dtype=array.dtype), average=False, name=name)
        return np.asarray(reduced.asnumpy())

    def gather(self, value: Any, name: str) -> list[Any]:
        # JSON in bytes: Horovod's own object collectives unpickle what arrives.
        data = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
        sizes = self._hvd.allgather(mx.nd.array([len(data)], dtype="int64"), name=f"{name}.sizes").asnumpy()
        joined = self._hvd.allgather(mx.nd.array(data, dtype="uint8"), name=f"{name}.data").asnumpy().tobytes()
        ends = np.cumsum(sizes).tolist()
        return [json.loads(joined[end - length : end]) for end, length in zip(ends, sizes.tolist())]

    def check_device(self, device: mx.Context) -> None:
        if device.device_type == "gpu" and not self._hvd.cuda_built():
            raise horovod_build.without_cuda()

    def broadcast_parameters(self, parameters: Parameters) -> None:
        for parameter in parameters.values():
            self.check_device(parameter.list_ctx()[0])
        self._hvd.broadcast_parameters(parameters, root_rank=0, prefix="parameters.")

    def trainer(self, parameters: Parameters, optimizer: Optimizer, sums: WholeSums | None = None) -> Trainer:
        # One group fixes the order of additions, which otherwise depends on timing, and avoids a race in MXNet's
        # handling of a failed collective. On a GPU three groups: the gradients of the dense layers, four fifths of the
        # bytes and the first to be ready, travel while those of the convolutions are computed.
        on_cpu = all(each.list_ctx()[0].device_type == "cpu" for each in parameters.values())
        trainer = self._hvd.DistributedTrainer(parameters, optimizer, num_groups=1 if on_cpu else 3)
        if horovod_internals.sum_not_average(trainer):
            scale_gradients(trainer, 1 / self.size)
        shared = share(self, self._hvd, trainer_parameters(trainer), optimizer, sums) if on_cpu else None
        self._shared = shared if shared is not None and shared.on_one_host else None
        if shared is not None:
            return SharedMemoryTrainer(trainer, shared)
        apart = [[rank] for rank in range(self.size)]
        sparse = sums.sparse if sums else []
        tables = [Table(each, optimizer, exchange=HostExchange(self._hvd, self, apart, each)) for each in sparse]
        return HorovodTrainer(trainer, self, tables, sums)

    def start_timeline(self, path: str) -> None:
        if self.is_root and self._can_start_timeline:
            self._hvd.start_timeline(path)

    def stop_timeline(self) -> None:
        if self.is_root and self._can_start_timeline:
            self._hvd.stop_timeline()

    def close(self) -> None:
        mx.nd.waitall()  # otherwise the last update may be lost, and MXNet complains at exit
        self._hvd.shutdown()
        if self._met is not None:
            self._met.leave()
