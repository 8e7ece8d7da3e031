"""Group of the processes that train together: its collectives, and functions that run on all ranks or on rank 0.

All collectives are built on one: an all-to-all of bytes. Its backend is Horovod (``horovod_group.py``), MPI
(``mpi_group.py``) or TCP (``tcp_group.py``). ``init_process_group`` selects the backend.
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
HEARTBEAT_SECONDS = 10.0  # Interval of the collectives of ``run_steps_on_rank0``.
# Remedies if a function fails on some ranks only: because of files, and because of hardware or packages.
SAME_FILES_HINT = "make the same files visible at the same path on every host"
SAME_MACHINES_HINT = (
    f"run {invocation.command_line('doctor')} on these hosts and compare their hardware, driver and "
    f"packages with the others'"
)


class ProcessGroup:
    """Process group of a single process, and base class of the groups of multiple processes.

    Every rank must call each collective at the same point of the program, with the same ``name``. Sums are computed in
    the order of ranks. As a context manager, the group prints an error of all ranks once, and ends all processes.

    Attributes:
        rank: Rank of this process.
        size: Number of processes.
        hosts: Ranks of each host.
        local_rank: Rank of this process among the processes of its host.
        local_size: Number of processes of this host.
        processes_per_cpuset: Number of processes that may use the same cores as this process, including this process.
        backend: Name of the backend, for messages. It is empty for a single process.
        heartbeat: Function that reports progress to the watchdog. It is called while this rank waits for rank 0, or
            runs a function as rank 0.
        pause_watchdog: Function that is called before an unbounded wait for ranks that report progress themselves.
        timeout: Time limit in seconds for waits that the watchdog would otherwise end. A wait that ends itself can
            report the cause.
    """

    backend = ""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.heartbeat: Callable[[], None] = lambda: None
        self.pause_watchdog: Callable[[], None] = lambda: None
        self.timeout = math.inf
        self._messages = MessageChecker(rank)
        hosts_and_cores = self.all_gather_json([socket.gethostname(), sorted(os.sched_getaffinity(0))], "hosts")
        self._messages.hosts = hosts = [host for host, _ in hosts_and_cores]
        self.hosts = [
            [rank for rank, rank_host in enumerate(hosts) if rank_host == host] for host in dict.fromkeys(hosts)
        ]
        self.local_rank = hosts[:rank].count(hosts[rank])
        self.local_size = hosts.count(hosts[rank])
        self.processes_per_cpuset = hosts_and_cores.count(hosts_and_cores[rank])

    @property
    def is_root(self) -> bool:
        return self.rank == 0

    def _all_to_all_bytes(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        """Send each rank its part of ``data``.

        Args:
            sizes: Number of bytes for each rank, in the order of ranks and of ``data``.

        Returns:
            The received bytes in the order of ranks, and the number of bytes from each rank.
        """
        return data, list(sizes)

    def all_gather_json(self, value: Any, name: str) -> list[Any]:
        """Return the JSON values of all ranks, in the order of ranks."""
        data = np.frombuffer(json.dumps(value).encode(), np.uint8)
        received, sizes = self._all_to_all_bytes(np.tile(data, self.size), [data.size] * self.size, name)
        return [json.loads(content.tobytes()) for content in np.split(received, np.cumsum(sizes)[:-1])]

    def broadcast_json(self, value: Any, name: str) -> Any:
        """Return rank 0's JSON value on every rank."""
        return self.all_gather_json(value if self.is_root else None, name)[0]

    def all_to_all(
        self, array: npt.NDArray[Any], counts: Sequence[int], name: str
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Send each rank its elements of an array. The array is divided along the first axis.

        Args:
            counts: Number of elements for each rank, in the order of ranks and of the array.

        Returns:
            The received elements in the order of ranks, and the number of elements from each rank.
        """
        element_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        received, sizes = self._all_to_all_bytes(data, [element_bytes * count for count in counts], name)
        return received.view(array.dtype).reshape(-1, *array.shape[1:]), np.array(sizes, np.int64) // element_bytes

    def all_reduce(self, array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        """Sum an array over the ranks. It has the same shape and dtype (float or int, 32 or 64 bits) on every rank."""
        counts = self._chunk_lengths(array.size)
        received, _ = self.all_to_all(array.reshape(-1), counts, name)
        chunk = received.reshape(self.size, -1).sum(axis=0, dtype=array.dtype)
        return self._all_gather_chunks(chunk, name).reshape(array.shape)

    def broadcast_parameters(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Copy the values of rank 0's arrays to all ranks. The arrays have the same names and shapes on every rank."""
        # Rank 0 sends a different chunk to each rank (scatter). Each rank then sends its chunk to all (all-gather).
        # Each process thus sends only about the size of the array.
        for name, array in sorted(arrays.items()):
            counts = self._chunk_lengths(array.size) if self.is_root else [0] * self.size
            chunk, _ = self.all_to_all(array.reshape(-1)[: sum(counts)], counts, name)
            array[...] = self._all_gather_chunks(chunk, name).reshape(array.shape)

    def _chunk_lengths(self, count: int) -> list[int]:
        """Return the lengths of one chunk per rank, into which ``count`` elements are divided evenly."""
        return [count * (rank + 1) // self.size - count * rank // self.size for rank in range(self.size)]

    def _all_gather_chunks(self, chunk: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        """Return the concatenated chunks of all ranks."""
        return self.all_to_all(np.tile(chunk, self.size), [chunk.size] * self.size, name)[0]

    def run_on_all(
        self,
        name: str,
        fn: Callable[[], T],
        compare_by: Callable[[T], Any] | None = None,
        mismatch_hint: str = SAME_FILES_HINT,
    ) -> T:
        """Run a function on every rank. Return its result if it succeeded on all ranks.

        Args:
            name: Name of the result, for messages.
            fn: Function that may raise ``UserError``.
            compare_by: Function of the result that returns a JSON value, which must be equal on all ranks.
            mismatch_hint: First remedy if ``fn`` fails on some ranks only.

        Raises:
            UserError: The same error on every rank, if ``fn`` failed on one of them or if the values differ.
        """
        result: list[T] = []
        report: dict[str, Any] = {"host": socket.gethostname(), "error": None, "value": None}
        try:
            result.append(fn())
            report["value"] = compare_by(result[0]) if compare_by else None
        except UserError as error:
            report["error"] = [error.what, error.why, error.remedy, error.code]
        reports = self.all_gather_json(report, f"run_on_all.{name}")
        if failed := [rank for rank, report in enumerate(reports) if report["error"]]:
            what, why, remedy, code = reports[failed[0]]["error"]
            if self.size > 1 and len(failed) < self.size:
                hosts = ", ".join(f"{rank} (host {reports[rank]['host']})" for rank in failed)
                what = f"{what} [only on rank {hosts}, of {self.size}]"
                remedy = f"{mismatch_hint}; or {remedy}" if remedy else mismatch_hint
            raise UserError(what, why, remedy, on_all_ranks=True, code=code)
        first = reports[0]
        for rank, report in enumerate(reports):
            if report["value"] != first["value"]:
                raise UserError(
                    f"the processes disagree on the {name}",
                    f"rank 0 (host {first['host']}) has {_describe_difference(first['value'], report['value'])}, "
                    f"rank {rank} (host {report['host']}) has {_describe_difference(report['value'], first['value'])}",
                    "start every process with the same command, files and package versions, on machines of the same "
                    f"kind ({invocation.command_line('doctor')} describes them)",
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
            UserError: On every rank, if ``function`` raised it.
        """

        def single_step() -> Iterator[T]:
            yield function()

        return self.run_steps_on_rank0(name, single_step())

    def run_steps_on_rank0(self, name: str, steps: Iterator[T]) -> T | None:
        """Run a generator to its end on rank 0 while the other ranks wait.

        All ranks take part in a small collective every ``HEARTBEAT_SECONDS``. Otherwise Horovod or the network could
        time out.

        Args:
            steps: Generator that yields at least every few seconds. Other ranks never start it.

        Returns:
            The last item on rank 0, ``None`` on the other ranks.

        Raises:
            UserError: On every rank, if ``steps`` raised it.
        """
        last: T | None = None
        heartbeat, due = f"run_on_rank0.{name}", time.monotonic() + HEARTBEAT_SECONDS
        while not self.is_root:
            # None: rank 0 has not finished. Otherwise the lines of its error, or an empty list.
            error_lines = self.broadcast_json(None, heartbeat)
            self.heartbeat()
            if error_lines:
                raise UserError(*error_lines, on_all_ranks=True)
            if error_lines is not None:
                return None
        try:
            for item in steps:
                last = item
                self.heartbeat()
                if time.monotonic() >= due:
                    self.broadcast_json(None, heartbeat)
                    due = time.monotonic() + HEARTBEAT_SECONDS
        except UserError as error:
            self.broadcast_json([error.what, error.why, error.remedy], heartbeat)
            error.on_all_ranks = True
            raise
        self.broadcast_json([], heartbeat)
        return last

    def close(self) -> None:
        """Wait for all pending work, then leave the group."""

    def __enter__(self) -> ProcessGroup:
        if self.size > 1:
            try:
                # Ranks with different code would diverge, or wait for different collectives.
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
            # A launcher kills the other processes when one ends. So no rank ends before rank 0 has printed the error.
            self.all_gather_json(0, "exit")
        if is_common or error is None or (isinstance(error, SystemExit) and not error.code):
            self.close()
        if isinstance(error, UserError) and is_common:
            raise SystemExit(error.code)


SINGLE_PROCESS = ProcessGroup()


def _describe_difference(value: Any, reference: Any) -> str:
    """Describe the first item of ``value`` that differs from ``reference``."""
    if isinstance(value, dict) and isinstance(reference, dict):
        for key in sorted(value.keys() | reference.keys()):
            if value.get(key) != reference.get(key):
                description = _describe_difference(value.get(key), reference.get(key))
                return f"{key}: {description}" if isinstance(value.get(key), dict) else f"{key} = {description}"
    return json.dumps(value)[:200]
