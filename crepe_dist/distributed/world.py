"""The processes that train together, behind one interface with three cases in each call.

Many processes: Horovod. One process: the identity, and Horovod is never imported. Launched as many but Horovod is
missing or sees fewer: an error with the remedy, never N silent independent runs.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Callable, TypeVar

import numpy as np

from crepe_dist import machine
from crepe_dist.distributed import cuda, horovod_build, peer_loss, rendezvous
from crepe_dist.distributed.control import ELASTIC, GENERATION, Control, Stopped
from crepe_dist.distributed.device import has_gpu_driver
from crepe_dist.distributed.gradients import Exchange, HorovodExchange, SharedExchange
from crepe_dist.distributed.hosts import interface_address
from crepe_dist.distributed.launch import Launch, detect, import_mxnet, limit_threads
from crepe_dist.distributed.rendezvous import Meeting
from crepe_dist.distributed.shared_memory import NOTE, SharedGradients, share
from crepe_dist.errors import PeerGone, UserError

T = TypeVar("T")
HEARTBEAT_SECONDS = 10.0


class World:
    """One process; also the interface of many. A context manager: leaving it ends the collective work cleanly.

    Attributes:
        beat: called while this rank waits for rank 0, or works alone as rank 0: a sign of life.
        trust: called before this rank waits for others that may take any time, and give signs of life themselves.
        generation: how often the group was formed anew.
    """

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1
    generation = 0

    def __init__(self) -> None:
        self.beat: Callable[[], None] = lambda: None
        self.trust: Callable[[], None] = lambda: None

    @property
    def is_elastic(self) -> bool:
        """Whether survivors go on in another group when one of this group is gone."""
        return False

    def regroup(self, control: Control) -> None:
        """Leaves the group, which may be broken, and joins the next one that the supervisor forms."""
        raise PeerGone("only a supervisor with --elastic forms another group")

    @property
    def is_root(self) -> bool:
        return self.rank == 0

    def sum(self, array: np.ndarray, name: str) -> np.ndarray:
        """Element-wise sum over the ranks; the same shape and dtype (float32, float64, int32, int64) on every rank."""
        return array

    def gather(self, value: Any, name: str) -> list[Any]:
        """The JSON value of every rank, in the order of ranks, on every rank."""
        return [value]

    def broadcast(self, value: Any, name: str) -> Any:
        """Rank 0's JSON value on every rank."""
        return self.gather(value if self.is_root else None, name)[0]

    def broadcast_parameters(self, parameters: Any) -> None:
        """Makes rank 0's values of Gluon parameters those of every rank.

        Args:
            parameters: by names that are the same on every rank; Gluon's own count the networks of a process.
        """

    def broadcast_arrays(self, arrays: dict[str, np.ndarray], root: int) -> dict[str, np.ndarray]:
        """The named arrays of rank ``root`` on every rank."""
        return arrays

    def trainer(self, parameters: Any, optimizer: str, settings: dict[str, Any]) -> tuple[Any, Exchange]:
        """A Gluon ``Trainer`` and what sums its gradients over the ranks; see ``crepe_dist.training.step``."""
        from mxnet import gluon

        trainer = gluon.Trainer(parameters, optimizer, settings, kvstore=None)
        return trainer, Exchange(trainer)

    def start_timeline(self, path: str) -> None:
        """Has Horovod write what its collectives do from now on, on rank 0, for chrome://tracing; every rank calls it.

        Where the launcher was given a timeline of its own, that one goes on instead.
        """

    def stop_timeline(self) -> None:
        """Ends what ``start_timeline`` began."""

    def close(self) -> None:
        """Waits for all that was asked for, then leaves the group."""

    def agree(self, subject: str, work: Callable[[], T], same: Callable[[T], Any] | None = None) -> T:
        """Runs ``work`` on every rank and returns its result if it succeeded everywhere.

        Args:
            subject: what the ranks must agree on, for the message.
            work: may raise ``UserError``.
            same: JSON value of the result that must be equal on every rank.

        Raises:
            UserError: on every rank alike, if ``work`` failed on one of them or the values differ.
        """
        result: list[T] = []
        report: dict[str, Any] = {"host": socket.gethostname(), "error": None, "same": None}
        try:
            result.append(work())
            report["same"] = same(result[0]) if same else None
        except UserError as error:
            report["error"] = [error.what, error.why, error.remedy]
        reports = self.gather(report, f"agree.{subject}")
        failed = [rank for rank, each in enumerate(reports) if each["error"]]
        if failed:
            what, why, remedy = reports[failed[0]]["error"]
            if self.size > 1 and len(failed) < self.size:
                hosts = ", ".join(f"{rank} (host {reports[rank]['host']})" for rank in failed)
                what = f"{what} [only on rank {hosts}, of {self.size}]"
                alike = "make the same files visible at the same path on every host"
                remedy = f"{alike}; or {remedy}" if remedy else alike
            raise UserError(what, why, remedy, on_all_ranks=True)
        different = [rank for rank, each in enumerate(reports) if each["same"] != reports[0]["same"]]
        if different:
            rank = different[0]
            raise UserError(
                f"the processes disagree on the {subject}",
                f"rank 0 (host {reports[0]['host']}) has {_short(reports[0]['same'], reports[rank]['same'])}, "
                f"rank {rank} (host {reports[rank]['host']}) has {_short(reports[rank]['same'], reports[0]['same'])}",
                "start every process with the same command, files and package version",
                on_all_ranks=True,
            )
        return result[0]

    def on_root(self, name: str, work: Iterator[T]) -> T | None:
        """Runs ``work`` to its end on rank 0 while the others wait; the last item on rank 0, ``None`` elsewhere.

        The others take part in a small collective every few seconds, so that no stall check or time-out of Horovod
        or of a network takes the waiting for a hang. ``work`` must yield at least every few seconds.
        """
        last: T | None = None
        if self.size == 1:
            for item in work:
                last = item
                self.beat()
            return last
        beat = f"on_root.{name}"
        if not self.is_root:
            while True:
                state = self.broadcast(None, beat)
                self.beat()
                if state["error"]:
                    raise UserError(*state["error"], on_all_ranks=True)
                if state["done"]:
                    return None
        due = time.monotonic() + HEARTBEAT_SECONDS
        try:
            for item in work:
                last = item
                self.beat()
                if time.monotonic() >= due:
                    self.broadcast({"done": False, "error": None}, beat)
                    due = time.monotonic() + HEARTBEAT_SECONDS
        except UserError as error:
            self.broadcast({"done": True, "error": [error.what, error.why, error.remedy]}, beat)
            error.on_all_ranks = True
            raise
        self.broadcast({"done": True, "error": None}, beat)
        return last

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, UserError) and error.on_all_ranks:
            if self.is_root:
                print(error, file=sys.stderr, flush=True)
            self.gather(0, "exit")  # no rank leaves, and so gets the others killed, before the message is out
            self.close()
            raise SystemExit(error.code)
        if isinstance(error, Stopped) and error.on_all_ranks:
            self.gather(0, "exit")
            self.close()
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.close()


class HorovodWorld(World):
    """Many processes. Every collective has a name: unnamed ones pair up by a counter that may differ by rank."""

    def __init__(self, launch: Launch, met: Meeting | None = None) -> None:
        super().__init__()
        try:
            self._hvd = importlib.import_module("horovod.mxnet")
        except (ImportError, OSError) as error:
            missing = UserError(
                f"this is process {launch.rank} of {launch.size} started by {launch.launcher}, "
                "but Horovod for MXNet is not installed",
                str(error),
                f"{horovod_build.how_to_install(cuda.is_installed())}, or start one process without a launcher",
            )
            raise _error_of_all(launch.rank, missing) from error
        if os.environ.get("HOROVOD_CONTROLLER") == "mpi" and not self._hvd.mpi_built():
            # Horovod itself would crash.
            built = UserError(
                "HOROVOD_CONTROLLER is mpi, but Horovod was built without MPI",
                remedy="unset it, and the processes meet without MPI; or build Horovod with HOROVOD_WITH_MPI=1",
            )
            raise _error_of_all(launch.rank, built)
        if not has_gpu_driver():
            # Horovod's thread looks for work every millisecond, and takes a tenth of the core that computes.
            os.environ.setdefault("HOROVOD_CYCLE_TIME", "10")
        self._shared: SharedGradients | None = None
        self._own_timeline = os.environ.setdefault("HOROVOD_TIMELINE", "DYNAMIC") != "DYNAMIC"
        self._met = met
        self._join(launch)
        if met is not None:
            self.gather(0, "met")
            met.end()

    def _join(self, launch: Launch) -> None:
        _check_network(launch)
        before = peer_loss.sockets()
        self._hvd.init()
        self._sockets = peer_loss.sockets() - before
        self.rank = self._hvd.rank()
        self.size = self._hvd.size()
        self.local_rank = self._hvd.local_rank()
        self.local_size = self._hvd.local_size()
        self.generation = int(os.environ.get(GENERATION, "0"))
        if self.size != launch.size:
            fewer = UserError(
                f"{launch.launcher} started {launch.size} processes, but Horovod sees {self.size}",
                "with HOROVOD_CONTROLLER=mpi it is MPI that brings them together",
                "unset it, and they meet without MPI",
            )
            raise _error_of_all(launch.rank, fewer)
        mine = {"host": socket.gethostname(), "addresses": peer_loss.addresses(self._sockets)}
        ranks = self.gather(mine, "hosts")
        peer_loss.hosts.remember({address: each["host"] for each in ranks for address in each["addresses"]})

    def __enter__(self) -> World:
        try:
            self._compare_installed()
        except UserError as error:
            self.__exit__(UserError, error, None)
            raise
        return self

    def _compare_installed(self) -> None:
        """Ranks of different code would differ in their results, or wait for different things.

        Raises:
            UserError: on every rank alike.
        """
        self.agree("installed packages", machine.decisive, same=lambda found: found)

    @property
    def is_elastic(self) -> bool:
        return _is_elastic()

    def regroup(self, control: Control) -> None:
        peer_loss.drain()
        if self._shared is not None:
            self._shared.close()
            self._shared = None
        self._hvd.shutdown()
        peer_loss.drain()
        peer_loss.hang_up(self._sockets)
        os.environ.update(control.assignment(self.generation))
        launch = detect()
        limit_threads(launch)
        self._join(launch)
        self._compare_installed()  # as those that are new in the group do

    def sum(self, array: np.ndarray, name: str) -> np.ndarray:
        import mxnet as mx

        if self._shared is not None and array.nbytes <= NOTE:
            return self._shared.sum_note(array)
        return self._hvd.allreduce(mx.nd.array(array, dtype=array.dtype), average=False, name=name).asnumpy()

    def gather(self, value: Any, name: str) -> list[Any]:
        # JSON in bytes: Horovod's own object collectives unpickle what arrives.
        import mxnet as mx

        data = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
        sizes = self._hvd.allgather(mx.nd.array([len(data)], dtype="int64"), name=f"{name}.sizes").asnumpy()
        joined = self._hvd.allgather(mx.nd.array(data, dtype="uint8"), name=f"{name}.data").asnumpy().tobytes()
        ends = np.cumsum(sizes).tolist()
        return [json.loads(joined[end - length : end]) for end, length in zip(ends, sizes.tolist())]

    def broadcast_parameters(self, parameters: Any) -> None:
        self._hvd.broadcast_parameters(parameters, root_rank=0, prefix="parameters.")

    def broadcast_arrays(self, arrays: dict[str, np.ndarray], root: int) -> dict[str, np.ndarray]:
        import mxnet as mx

        mine = {name: [list(array.shape), str(array.dtype)] for name, array in arrays.items()}
        kinds = self.gather(mine if self.rank == root else None, "arrays")[root]
        received = {}
        for name, (shape, dtype) in kinds.items():
            # As bytes: Horovod then needs to know no type but one.
            flat = np.zeros(int(np.prod(shape)) * np.dtype(dtype).itemsize, np.uint8)
            if self.rank == root:
                flat[:] = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8)
            sent = self._hvd.broadcast(mx.nd.array(flat, dtype="uint8"), root_rank=root, name=f"arrays.{name}")
            received[name] = sent.asnumpy().view(dtype).reshape(shape)
        return received

    def trainer(self, parameters: Any, optimizer: str, settings: dict[str, Any]) -> tuple[Any, Exchange]:
        # Groups: which gradients share a fused all-reduce would otherwise depend on timing, and with it the order of
        # additions. On a CPU one, because MXNet's handling of a failed collective races when many are pending. On a
        # GPU three of six arrays each, so that those of the dense layers, four fifths of the bytes and the first to be
        # ready, travel while the convolutions' gradients are computed.
        on_cpu = all(p.list_ctx()[0].device_type == "cpu" for p in parameters.values())
        groups = 1 if on_cpu else 3
        if not on_cpu and not self._hvd.cuda_built():
            raise horovod_build.without_cuda()
        trainer = self._hvd.DistributedTrainer(parameters, optimizer, settings, num_groups=groups)
        self._shared = share(self, trainer._params) if on_cpu else None
        if self._shared is None:
            return trainer, HorovodExchange(trainer, self)
        return trainer, SharedExchange(trainer, self._shared)

    def start_timeline(self, path: str) -> None:
        if self.is_root and not self._own_timeline:
            self._hvd.start_timeline(path)

    def stop_timeline(self) -> None:
        if self.is_root and not self._own_timeline:
            self._hvd.stop_timeline()

    def close(self) -> None:
        import mxnet as mx

        mx.nd.waitall()  # otherwise the last update may be lost and MXNet complains at exit
        self._hvd.shutdown()
        if self._met is not None:
            self._met.leave()


def join() -> World:
    """The world that the launcher describes; also gives this process its share of the host's threads.

    Raises:
        UserError: started as one of many, and Horovod is missing, or the others do not come.
    """
    launch = detect()
    try:
        met = rendezvous.meet(launch) if rendezvous.is_needed(launch) else None
    except UserError as error:
        if error.on_all_ranks:
            error = _error_of_all(launch.rank, error)
        raise error
    try:
        import_mxnet(detect())  # which knows more after a meeting
    except UserError as error:
        raise _error_of_all(launch.rank, error) from error
    return HorovodWorld(launch, met) if launch.size > 1 or _is_elastic() else World()


def _is_elastic() -> bool:
    return os.environ.get(ELASTIC) == "1"


def _check_network(launch: Launch) -> None:
    """Before Gloo, which ends the process without a word that a user understands.

    Raises:
        UserError: this host lacks the network interface, or an address of its own; one of its processes says so.
    """
    interface = os.environ.get("HOROVOD_GLOO_IFACE")
    if not interface:
        return
    try:
        address = interface_address(interface)
        _check_own_name(address)
    except UserError as error:
        raise _error_of_all(launch.local_rank, error) from error


def _check_own_name(address: str) -> None:
    name = socket.gethostname()
    try:
        socket.gethostbyname(name)
    except OSError as error:
        raise UserError(
            f"the host {name} does not know its own address",
            f"its name does not resolve there: {error.strerror or error}",
            f"add a line to /etc/hosts of {name}: {address} {name}",
        ) from error


def _error_of_all(rank: int, error: UserError) -> UserError:
    """An error that every process meets by itself: rank 0 speaks, the others only wait until it has.

    Args:
        rank: among those that meet it: in the group, or on the host.
    """
    if rank != 0:
        time.sleep(2)
        os._exit(error.code)
    return error


def _short(mine: Any, other: Any) -> str:
    """The part of ``mine`` that differs from ``other``."""
    if isinstance(mine, dict) and isinstance(other, dict):
        for key in sorted(mine.keys() | other.keys()):
            if mine.get(key) != other.get(key):
                inner = _short(mine.get(key), other.get(key))
                return f"{key}: {inner}" if isinstance(mine.get(key), dict) else f"{key} = {inner}"
    return json.dumps(mine)[:200]
