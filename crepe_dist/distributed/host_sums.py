"""Sums of arrays over hosts, each part of them by one rank per host through Horovod."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt

from crepe_dist.distributed.collectives import Collectives
from crepe_dist.mxnet_internals import view

Array = npt.NDArray[Any]


def host_name() -> str:
    """Return the name by which Horovod tells this rank's host from others."""
    return os.environ.get("HOROVOD_HOSTNAME") or socket.gethostname()


def hosts_of(places: Sequence[tuple[str, int]]) -> list[list[int]] | None:
    """Group the ranks by host.

    Args:
        places: host and local rank of each rank.

    Returns:
        The ranks of each host, in the order of their local ranks; ``None`` if local ranks are missing or repeated.
    """
    found: dict[str, dict[int, int]] = {}
    for rank, (host, local_rank) in enumerate(places):
        found.setdefault(host, {})[local_rank] = rank
    if sum(map(len, found.values())) < len(places) or any(
        set(each) != set(range(len(each))) for each in found.values()
    ):
        return None
    return [[each[local_rank] for local_rank in range(len(each))] for each in found.values()]


def all_hosts(ranks: Collectives) -> list[list[int]] | None:
    """Return the ranks of each host; see ``hosts_of``. Every rank calls it."""
    return hosts_of(
        [(host, local_rank) for host, local_rank in ranks.gather([host_name(), ranks.local_rank], "places")]
    )


def cuts(count: int, parts: int) -> list[int]:
    """Return the bounds of ``parts`` parts of nearly equal size."""
    return [count * part // parts for part in range(parts + 1)]


class HostSums:
    """Sums of one part of an array, over the ranks that have this part on each host.

    Horovod's all-reduce cannot do this. Among all ranks it sends every number through every rank. Among some of them it
    needs a process set, and with one the loss of a peer ends the process with SIGABRT (Horovod 0.28.1:
    ``ProcessSetTable::Finalize`` negotiates with the lost peer and throws in Horovod's thread). An all-to-all with
    splits sends each number once to each host that needs it.

    Two hosts exchange their parts and add them. More hosts first send each other the pieces that each shall add, and
    then the sums: 2 (hosts - 1) / hosts of the part, as in a ring.

    Args:
        horovod: the module ``horovod.mxnet``.
        ranks: collectives of all ranks.
        hosts: number of hosts.
        peers: the ranks that have this part, one per host; none: this rank has no part, and only takes part in the
            collectives.
        part: this rank's part, [n], float32 or int32, which the sum replaces.
    """

    def __init__(self, horovod: Any, ranks: Collectives, hosts: int, peers: Sequence[int], part: Array) -> None:
        self._hvd = horovod
        self._rank = ranks.rank
        self._size = ranks.size
        self._hosts = hosts
        self._peers = sorted(peers)
        self._part = part
        self._nothing = mx.nd.zeros(1, dtype=part.dtype)
        self._array = mx.nd.from_numpy(part[:], zero_copy=True) if peers else self._nothing  # makes its view read-only

    def add(self) -> None:
        """Replace the part by its sum over the hosts, in the order of ranks; every rank calls it."""
        if self._hosts == 2:
            others = {peer: self._part.size for peer in self._peers if peer != self._rank}
            received = self._send("gradients", self._array, others)
            if self._peers:
                self._part += view(received)
            return
        bounds = cuts(self._part.size, len(self._peers) or 1)
        mine = {peer: end - start for peer, start, end in zip(self._peers, bounds, bounds[1:])}
        received = self._send("gradients", self._array, mine)
        if not self._peers:
            self._send("sums", self._nothing, {})
            return
        total = view(received).reshape(len(self._peers), -1).sum(axis=0, dtype=self._part.dtype)
        sums = mx.nd.array(np.tile(total, len(self._peers)), ctx=mx.cpu(), dtype=total.dtype)
        received = self._send("sums", sums, dict.fromkeys(self._peers, total.size))
        self._part[:] = view(received)

    def _send(self, name: str, array: mx.nd.NDArray, counts: dict[int, int]) -> mx.nd.NDArray:
        """Send the numbers of an array to ranks, in their order, and return what this rank was sent.

        A rank that has nothing to send sends one number to itself: MXNet has no empty arrays.
        """
        counts = counts or {self._rank: array.size}
        splits = [counts.get(rank, 0) for rank in range(self._size)]
        received, _ = self._hvd.alltoall(array, splits=splits, name=name)
        return received
