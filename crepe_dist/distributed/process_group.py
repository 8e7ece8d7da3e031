"""The processes that train together: their collectives, and decisions that all take together.

All collectives are made of one: each rank sends bytes to every other one. Horovod (``horovod_group.py``), MPI
(``mpi_group.py``) or TCP (``tcp_group.py``) carries them; ``join`` chooses.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Callable, TypeVar

import numpy as np
import numpy.typing as npt

from crepe_dist import hardware, invocation
from crepe_dist.distributed.messages import Bytes, MessageChecker
from crepe_dist.distributed.signals import StopRequested
from crepe_dist.errors import UserError

T = TypeVar("T")
HEARTBEAT_SECONDS = 10.0
# Remedies if only some ranks fail: for what is read from disk, and for what a rank computes on.
SAME_FILES_HINT = "make the same files visible at the same path on every host"
SAME_MACHINES_HINT = (
    f"run {invocation.command_line('doctor')} on these hosts and compare their hardware, driver and "
    f"packages with the others'"
)


class ProcessGroup:
    """World of a single process, and base class of the others. As a context manager it ends collectives cleanly.

    Every rank calls each method, with the same ``name`` at the same point of the program.

    Sums are in the order of the ranks.

    Attributes:
        hosts: the ranks of each host.
        sharers: number of processes that may use the same cores as this one, itself included.
        carrier: name of what connects the processes, for messages.
        beat: heartbeat for the watchdog, called while this rank waits for rank 0 or works alone as rank 0.
        before_long_wait: called before an unbounded wait for ranks that report progress themselves.
        patience: seconds after which a wait that the watchdog would end should end by itself, with its cause.
    """

    backend = ""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.heartbeat: Callable[[], None] = lambda: None
        self.pause_watchdog: Callable[[], None] = lambda: None
        self.timeout = math.inf
        self._messages = MessageChecker(rank)
        places = self.all_gather_object([socket.gethostname(), sorted(os.sched_getaffinity(0))], "hosts")
        self._messages.hosts = hosts = [host for host, _ in places]
        self.hosts = [[rank for rank, other in enumerate(hosts) if other == host] for host in dict.fromkeys(hosts)]
        self.local_rank = hosts[:rank].count(hosts[rank])
        self.local_size = hosts.count(hosts[rank])
        self.processes_per_cpuset = places.count(places[rank])

    @property
    def is_root(self) -> bool:
        return self.rank == 0

    def _all_to_all_bytes(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        """Send each rank its bytes of ``data``; return those received, in the order of the ranks, and their numbers."""
        return data, list(sizes)

    def all_gather_object(self, value: Any, name: str) -> list[Any]:
        """Collect the JSON value of every rank, in the order of ranks, on every rank."""
        data = np.frombuffer(json.dumps(value).encode(), np.uint8)
        received, sizes = self._all_to_all_bytes(np.tile(data, self.size), [data.size] * self.size, name)
        return [json.loads(part.tobytes()) for part in np.split(received, np.cumsum(sizes)[:-1])]

    def broadcast_object(self, value: Any, name: str) -> Any:
        """Return rank 0's JSON value on every rank."""
        return self.all_gather_object(value if self.is_root else None, name)[0]

    def all_to_all(
        self, array: npt.NDArray[Any], counts: Sequence[int], name: str
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Send each rank its elements of an array along the first axis, and return those received.

        Args:
            counts: number of elements for each rank, in the order of the ranks and of the array.

        Returns:
            The received elements in the order of the ranks that sent them, and the number from each rank.
        """
        width = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        received, sizes = self._all_to_all_bytes(data, [width * count for count in counts], name)
        return received.view(array.dtype).reshape(-1, *array.shape[1:]), np.array(sizes, np.int64) // width

    def all_reduce(self, array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        """Sum an array over the ranks; the same shape and dtype (float32, float64, int32, int64) on every rank."""
        counts = self._chunk_lengths(array.size)
        received, _ = self.all_to_all(array.reshape(-1), counts, name)
        part = received.reshape(self.size, -1).sum(axis=0, dtype=array.dtype)
        return self._all_gather_chunks(part, name).reshape(array.shape)

    def broadcast_parameters(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Replace the values of arrays, which have the same names on every rank, by rank 0's."""
        # Rank 0 sends a part to each rank, which passes it on to all: each sends the array once.
        for name, array in sorted(arrays.items()):
            counts = self._chunk_lengths(array.size) if self.is_root else [0] * self.size
            part, _ = self.all_to_all(array.reshape(-1)[: sum(counts)], counts, name)
            array[...] = self._all_gather_chunks(part, name).reshape(array.shape)

    def _chunk_lengths(self, count: int) -> list[int]:
        return [count * (rank + 1) // self.size - count * rank // self.size for rank in range(self.size)]

    def _all_gather_chunks(self, part: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        """Concatenate the parts of all ranks, on every rank."""
        return self.all_to_all(np.tile(part, self.size), [part.size] * self.size, name)[0]

    def run_on_all(
        self,
        name: str,
        fn: Callable[[], T],
        compare_by: Callable[[T], Any] | None = None,
        mismatch_hint: str = SAME_FILES_HINT,
    ) -> T:
        """Run ``work`` on every rank and return its result if it succeeded everywhere.

        Args:
            subject: name of the subject for messages.
            work: function that may raise ``UserError``.
            same: function of the result whose JSON value must be equal on every rank.
            alike: first remedy if ``work`` fails on some ranks only.

        Raises:
            UserError: on every rank alike, if ``work`` failed on one of them or the values differ.
        """
        result: list[T] = []
        report: dict[str, Any] = {"host": socket.gethostname(), "error": None, "same": None}
        try:
            result.append(fn())
            report["same"] = compare_by(result[0]) if compare_by else None
        except UserError as error:
            report["error"] = [error.what, error.why, error.remedy, error.code]
        reports = self.all_gather_object(report, f"agree.{name}")
        if failed := [rank for rank, report in enumerate(reports) if report["error"]]:
            what, why, remedy, code = reports[failed[0]]["error"]
            if self.size > 1 and len(failed) < self.size:
                hosts = ", ".join(f"{rank} (host {reports[rank]['host']})" for rank in failed)
                what = f"{what} [only on rank {hosts}, of {self.size}]"
                remedy = f"{mismatch_hint}; or {remedy}" if remedy else mismatch_hint
            raise UserError(what, why, remedy, on_all_ranks=True, code=code)
        first = reports[0]
        for rank, other in enumerate(reports):
            if other["same"] != first["same"]:
                raise UserError(
                    f"the processes disagree on the {name}",
                    f"rank 0 (host {first['host']}) has {_describe_difference(first['same'], other['same'])}, "
                    f"rank {rank} (host {other['host']}) has {_describe_difference(other['same'], first['same'])}",
                    "start every process with the same command, files and package versions, on machines that are alike "
                    f"({invocation.command_line('doctor')} describes them)",
                    on_all_ranks=True,
                )
        return result[0]

    def run_on_rank0(self, name: str, function: Callable[[], T]) -> T | None:
        """Call a function on rank 0 while the other ranks wait.

        Args:
            function: Function that takes a few seconds at most. Use ``run_steps_on_rank0`` for longer work.

        Returns:
            The result on rank 0, ``None`` on the other ranks.

        Raises:
            UserError: on every rank, if ``function`` raised it.
        """

        def single_step() -> Iterator[T]:
            yield function()

        return self.run_steps_on_rank0(name, single_step())

    def run_steps_on_rank0(self, name: str, steps: Iterator[T]) -> T | None:
        """Run a generator to its end on rank 0 while the other ranks wait.

        All ranks take part in a small collective every ``HEARTBEAT_SECONDS``. Otherwise Horovod or the network could
        time out.

        Args:
            work: Generator that yields at least every few seconds. Other ranks never start it.

        Returns:
            The last item on rank 0, ``None`` on the other ranks.

        Raises:
            UserError: on every rank, if ``work`` raised it.
        """
        last: T | None = None
        beat, due = f"on_root.{name}", time.monotonic() + HEARTBEAT_SECONDS
        while not self.is_root:
            end = self.broadcast_object(None, beat)  # as soon as there is one, the lines of an error, or none
            self.heartbeat()
            if end:
                raise UserError(*end, on_all_ranks=True)
            if end is not None:
                return None
        try:
            for item in steps:
                last = item
                self.heartbeat()
                if time.monotonic() >= due:
                    self.broadcast_object(None, beat)
                    due = time.monotonic() + HEARTBEAT_SECONDS
        except UserError as error:
            self.broadcast_object([error.what, error.why, error.remedy], beat)
            error.on_all_ranks = True
            raise
        self.broadcast_object([], beat)
        return last

    def close(self) -> None:
        """Wait for all pending work, then leave the group."""

    def __enter__(self) -> ProcessGroup:
        if self.size > 1:
            try:
                # With different code, ranks would diverge or wait for different collectives.
                self.run_on_all("installed packages", hardware.group_versions, compare_by=lambda versions: versions)
            except UserError as error:
                self.__exit__(UserError, error, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.size == 1:
            return
        is_common = isinstance(error, (UserError, StopRequested)) and error.on_all_ranks
        if is_common:
            if self.is_root and isinstance(error, UserError):
                print(error, file=sys.stderr, flush=True)
            self.all_gather_object(
                0, "exit"
            )  # a rank that left earlier could get the others killed before the message is printed
        if is_common or error is None or (isinstance(error, SystemExit) and not error.code):
            self.close()
        if isinstance(error, UserError) and is_common:
            raise SystemExit(error.code)


SINGLE_PROCESS = ProcessGroup()


def _describe_difference(mine: Any, other: Any) -> str:
    """Describe the first setting of ``mine`` that differs from ``other``."""
    if isinstance(mine, dict) and isinstance(other, dict):
        for key in sorted(mine.keys() | other.keys()):
            if mine.get(key) != other.get(key):
                inner = _describe_difference(mine.get(key), other.get(key))
                return f"{key}: {inner}" if isinstance(mine.get(key), dict) else f"{key} = {inner}"
    return json.dumps(mine)[:200]
