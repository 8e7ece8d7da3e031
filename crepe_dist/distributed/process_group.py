"""Group of the processes that train together: its collectives, and methods that run a function on all ranks or rank 0.

Every collective is implemented with one primitive, an exchange of messages. The backend of this primitive is Horovod
(``horovod_group.py``), MPI (``mpi_group.py``) or TCP (``tcp_group.py``). ``init_process_group`` selects the backend.
"""

import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from crepe_dist import hardware, invocation
from crepe_dist.distributed.messages import Bytes, MessageChecker
from crepe_dist.distributed.signals import StopRequested
from crepe_dist.errors import ExitCode, UserError

T = TypeVar("T")
NO_BYTES: Bytes = np.zeros(0, np.uint8)
HEARTBEAT_SECONDS = 10.0  # Interval of the collectives of ``run_steps_on_rank0``.
# Remedies for a function that fails on some ranks only. The first is for functions that depend on files, the second for
# functions that depend on hardware or packages.
SAME_FILES_HINT = "make the same files visible at the same path on every host"
SAME_MACHINES_HINT = (
    f"run {invocation.command_line('doctor')} on these hosts and compare their hardware, driver and "
    f"packages with the others'"
)


class ProcessGroup:
    """Process group of a single process, and base class of the groups of multiple processes.

    Every rank must call each collective at the same point of the program, with the same ``name``. Sums are computed in
    the order of ranks. As a context manager, the group handles an error that all ranks raise: rank 0 prints it, and
    then all processes exit.

    Attributes:
        rank: Rank of this process.
        size: Number of processes.
        hosts: For each host, the list of its ranks.
        local_rank: Rank of this process among the processes of its host.
        local_size: Number of processes of this host.
        processes_per_cpuset: Number of processes that may use the same cores as this process, including this process.
        backend: Name of the backend, for messages. It is empty for a single process.
        heartbeat: Function that reports progress to the watchdog. ``run_steps_on_rank0`` calls it on rank 0 between two
            steps, and on the other ranks while they wait.
        pause_watchdog: Function that suspends the watchdog until the next heartbeat. The function is called before this
            rank waits, without a time limit, for ranks that report their own progress.
        timeout: Time limit in seconds for waits that the watchdog would otherwise end. A wait that times out itself can
            report the cause.
        late_rank: Rank whose message this rank waits for, or ``None`` if this rank does not wait for a message or the
            backend does not tell.
    """

    backend = ""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.heartbeat: Callable[[], None] = lambda: None
        self.pause_watchdog: Callable[[], None] = lambda: None
        self.timeout = math.inf
        self.late_rank: int | None = None
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

    @property
    def host_names(self) -> Sequence[str]:
        """Name of the host of each rank."""
        return self._messages.hosts

    def exchange(self, messages: Mapping[int, Bytes], name: str) -> tuple[Bytes, list[int]]:
        """Send a message to each of some ranks, and receive a message from each of them.

        Args:
            messages: Message to each of these ranks, by rank. If rank a has a message to rank b, even an empty one,
                then rank b has a message to rank a.

        Returns:
            The received messages concatenated in the order of ranks, and the number of bytes from each rank.
        """
        return self._exchange(messages, name)

    def _exchange(self, messages: Mapping[int, Bytes], name: str) -> tuple[Bytes, list[int]]:
        """Implement ``exchange``. Each backend overrides this method."""
        own = messages.get(self.rank, NO_BYTES)
        return own, [own.size]

    def all_gather_json(self, value: Any, name: str) -> list[Any]:
        """Return the JSON values of all ranks, in the order of ranks."""
        data = np.frombuffer(json.dumps(value).encode(), np.uint8)
        received, sizes = self.exchange(dict.fromkeys(range(self.size), data), name)
        return [json.loads(content.tobytes()) for content in np.split(received, np.cumsum(sizes)[:-1])]

    def broadcast_json(self, value: Any, name: str) -> Any:
        """Return rank 0's JSON value on every rank."""
        return self.all_gather_json(value if self.is_root else None, name)[0]

    def all_to_all(
        self, array: npt.NDArray[Any], counts: Sequence[int], name: str
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Send each rank its elements of an array. An element is an item along the first axis.

        Args:
            array: Elements for all ranks, in the order of ranks.
            counts: Number of elements for each rank.

        Returns:
            The received elements in the order of ranks, and the number of elements from each rank.
        """
        element_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        messages = np.split(data, element_bytes * np.cumsum(counts)[:-1])
        received, sizes = self.exchange(dict(enumerate(messages)), name)
        return received.view(array.dtype).reshape(-1, *array.shape[1:]), np.array(sizes, np.int64) // element_bytes

    def all_reduce(self, array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        """Return the sum of the ranks' arrays. The arrays have equal shapes and dtypes (float or int, 32 or 64 bit)."""
        counts = self._chunk_lengths(array.size)
        received, _ = self.all_to_all(array.reshape(-1), counts, name)
        chunk = received.reshape(self.size, -1).sum(axis=0, dtype=array.dtype)
        return self._all_gather_chunks(chunk, name).reshape(array.shape)

    def broadcast_parameters(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Copy the values of rank 0's arrays to all ranks. The arrays have the same names and shapes on every rank."""
        # Rank 0 sends a different chunk to each rank (scatter). Each rank then sends its chunk to all (all-gather).
        # Rank 0 thus sends less than twice the size of the array, and not a copy of the array to each rank.
        for name, array in sorted(arrays.items()):
            counts = self._chunk_lengths(array.size) if self.is_root else [0] * self.size
            chunk, _ = self.all_to_all(array.reshape(-1)[: sum(counts)], counts, name)
            array[...] = self._all_gather_chunks(chunk, name).reshape(array.shape)

    def _chunk_lengths(self, count: int) -> list[int]:
        """Divide ``count`` elements evenly into one chunk per rank, and return the lengths of the chunks."""
        return [count * (rank + 1) // self.size - count * rank // self.size for rank in range(self.size)]

    def _all_gather_chunks(self, chunk: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        """Return the chunks of all ranks, concatenated in the order of ranks."""
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
            compare_by: Function that maps the result to a JSON value. This value must be equal on all ranks. ``None``:
                the results are not compared.
            mismatch_hint: First remedy if ``fn`` fails on some ranks only.

        Raises:
            UserError: The same error on every rank, if ``fn`` raised ``UserError`` on any rank, or if the compared
                values differ. If ``fn`` failed on some ranks only, ``HOST_ERROR`` replaces the exit code ``ERROR``.
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
                code = ExitCode.HOST_ERROR if code == ExitCode.ERROR else code
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
            function: Function that takes a few seconds at most. Use ``run_steps_on_rank0`` for work that takes longer
                than this.

        Returns:
            The result on rank 0, and ``None`` on the other ranks.

        Raises:
            UserError: On every rank, if ``function`` raised it on rank 0.
        """
        return self.run_steps_on_rank0(name, (call() for call in (function,)))

    def run_steps_on_rank0(self, name: str, steps: Iterator[T]) -> T | None:
        """Run a generator to its end on rank 0 while the other ranks wait.

        All ranks take part in a small collective about every ``HEARTBEAT_SECONDS``. Without this collective, Horovod or
        the network could time out.

        Args:
            steps: Generator that yields at least every few seconds. Other ranks never start it.

        Returns:
            The last item that the generator yielded on rank 0, and ``None`` on the other ranks.

        Raises:
            UserError: On every rank, if ``steps`` raised it on rank 0.
        """
        last: T | None = None
        heartbeat, due = f"run_on_rank0.{name}", time.monotonic() + HEARTBEAT_SECONDS
        while not self.is_root:
            # ``None`` means that rank 0 has not finished. Otherwise, the value is a list: it contains the code and the
            # lines of rank 0's error, or is empty if rank 0 has succeeded.
            outcome = self.broadcast_json(None, heartbeat)
            self.heartbeat()
            if outcome:
                code, *lines = outcome
                raise UserError(*lines, on_all_ranks=True, code=code)
            if outcome is not None:
                return None
        try:
            for item in steps:
                last = item
                self.heartbeat()
                if time.monotonic() >= due:
                    self.broadcast_json(None, heartbeat)
                    due = time.monotonic() + HEARTBEAT_SECONDS
        except UserError as error:
            self.broadcast_json([error.code, error.what, error.why, error.remedy], heartbeat)
            error.on_all_ranks = True
            raise
        self.broadcast_json([], heartbeat)
        return last

    def close(self) -> None:
        """Wait for all pending work, then leave the group."""

    def __enter__(self) -> "ProcessGroup":
        if self.size > 1:
            try:
                # Ranks that run different versions would diverge, or would wait for different collectives.
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
            # A launcher kills the other processes when one of them exits. This collective ensures that no rank exits
            # before rank 0 has printed the error.
            self.all_gather_json(0, "exit")
        if is_common or error is None or (isinstance(error, SystemExit) and not error.code):
            self.close()
        if isinstance(error, UserError) and is_common:
            raise SystemExit(error.code)


SINGLE_PROCESS = ProcessGroup()


def _describe_difference(value: Any, reference: Any) -> str:
    """Describe the first item of ``value`` that differs from the same item of ``reference``."""
    if isinstance(value, dict) and isinstance(reference, dict):
        for key in sorted(value.keys() | reference.keys()):
            if value.get(key) != reference.get(key):
                description = _describe_difference(value.get(key), reference.get(key))
                return f"{key}: {description}" if isinstance(value.get(key), dict) else f"{key} = {description}"
    return json.dumps(value)[:200]
