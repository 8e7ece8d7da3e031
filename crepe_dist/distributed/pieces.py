"""Worlds whose collectives are made of one: each rank sends bytes to every other rank."""

from __future__ import annotations

import json
import os
import socket
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.distributed.launch import THREADS
from crepe_dist.distributed.world import World

Bytes = npt.NDArray[np.uint8]


class PieceWorld(World):
    """Base class of the worlds over MPI and over TCP. Sums are in the order of the ranks.

    A process without OMP_NUM_THREADS gets its share of the cores that it may use.
    """

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size
        report = {"host": socket.gethostname(), "cores": sorted(os.sched_getaffinity(0))}
        reports = self.gather(report, "places")
        hosts = [each["host"] for each in reports]
        self.local_rank = hosts[:rank].count(hosts[rank])
        self.local_size = hosts.count(hosts[rank])
        if not os.environ.get(THREADS, "").strip():
            os.environ[THREADS] = str(shares(reports)[rank])

    @abstractmethod
    def _swap(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        """Send each rank its bytes of ``data``; return those received, in the order of the ranks, and their numbers."""

    def gather(self, value: Any, name: str) -> list[Any]:
        data = np.frombuffer(json.dumps(value).encode(), np.uint8)
        received, sizes = self._swap(np.tile(data, self.size), [data.size] * self.size, name)
        ends = np.cumsum(sizes).tolist()
        return [json.loads(received[end - size : end].tobytes()) for end, size in zip(ends, sizes)]

    def all_to_all(
        self, array: npt.NDArray[Any], counts: Sequence[int], name: str
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
        width = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        received, sizes = self._swap(data, [width * count for count in counts], name)
        return received.view(array.dtype).reshape(-1, *array.shape[1:]), np.array(sizes, np.int32) // width

    def sum(self, array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        counts = self._parts(array.size)
        received, _ = self.all_to_all(array.reshape(-1), counts, name)
        part = received.reshape(self.size, -1).sum(axis=0, dtype=array.dtype)
        return self._join(part, name).reshape(array.shape)

    def broadcast_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        # Rank 0 sends a part to each rank, which passes it on to all: each sends the array once.
        for name, array in sorted(arrays.items()):
            counts = self._parts(array.size) if self.is_root else [0] * self.size
            part, _ = self.all_to_all(array.reshape(-1)[: sum(counts)], counts, name)
            array[...] = self._join(part, name).reshape(array.shape)

    def _parts(self, count: int) -> list[int]:
        return [count * (rank + 1) // self.size - count * rank // self.size for rank in range(self.size)]

    def _join(self, part: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        """Concatenate the parts of all ranks, on every rank."""
        return self.all_to_all(np.tile(part, self.size), [part.size] * self.size, name)[0]


def shares(reports: Sequence[Mapping[str, Any]]) -> list[int]:
    """Compute the threads of each process: its cores, each divided by the number of processes that may use it."""
    users = Counter((report["host"], core) for report in reports for core in report["cores"])
    shares = (sum(Fraction(1, users[report["host"], core]) for core in report["cores"]) for report in reports)
    return [max(1, int(share)) for share in shares]
