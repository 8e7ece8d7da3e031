"""Sums over hosts: each rank adds its part of the gradients to those of its peers on the other hosts.

An all-reduce over all ranks would send every number through every rank; an all-to-all sends each number once to each
host that needs it.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from crepe_dist.distributed.world import World
from crepe_dist.exchange.table import Table
from crepe_dist.native import library

NO_ROW = -1
Numbers = npt.NDArray[np.int32]


def ranks_by_host(world: World) -> list[list[int]]:
    """Return the ranks of each host, in the order of their local ranks; every rank calls it."""
    places = world.gather([socket.gethostname(), world.local_rank], "places")
    return group_by_host([(host, local_rank) for host, local_rank in places])


def group_by_host(places: Sequence[tuple[str, int]]) -> list[list[int]]:
    """Group the ranks by host; put each rank into a group of its own if local ranks are missing or repeated.

    Args:
        places: host and local rank of each rank.
    """
    hosts: dict[str, dict[int, int]] = {}
    for rank, (host, local_rank) in enumerate(places):
        hosts.setdefault(host, {})[local_rank] = rank
    complete = all(set(ranks) == set(range(len(ranks))) for ranks in hosts.values())
    if not complete or sum(map(len, hosts.values())) < len(places):
        return [[rank] for rank in range(len(places))]
    return [[ranks[local_rank] for local_rank in range(len(ranks))] for ranks in hosts.values()]


def cuts(count: int, parts: int) -> list[int]:
    """Return the bounds of ``parts`` parts of nearly equal size."""
    return [count * part // parts for part in range(parts + 1)]


class PartSums:
    """Sums of one part of an array, over the ranks that have this part on each host.

    Two hosts exchange their parts and add them. With more hosts, each adds one piece of the part: hosts first send each
    other these pieces, then the sums. A host sends 2 (hosts - 1) / hosts of the part, as in a ring.

    Args:
        hosts: number of hosts.
        peers: the ranks that have this part, one per host; empty if this rank has no part and only joins the
            collectives.
        part: this rank's part, int32 [n], which the sum replaces.
    """

    def __init__(self, world: World, hosts: int, peers: Sequence[int], part: Numbers) -> None:
        self._world = world
        self._hosts = hosts
        self._peers = sorted(peers)
        self._part = part

    def add(self) -> None:
        """Replace the part by its sum over the hosts; every rank calls it."""
        if self._hosts == 2:
            others = {peer: self._part.size for peer in self._peers if peer != self._world.rank}
            received = self._send("gradients", self._part, others)
            if self._peers:
                self._part += received
            return
        bounds = cuts(self._part.size, len(self._peers) or 1)
        pieces = {peer: end - start for peer, start, end in zip(self._peers, bounds, bounds[1:])}
        received = self._send("gradients", self._part, pieces)
        if not self._peers:
            self._send("sums", self._part, {})
            return
        total = received.reshape(len(self._peers), -1).sum(axis=0, dtype=self._part.dtype)
        sums = np.tile(total, len(self._peers))
        self._part[:] = self._send("sums", sums, dict.fromkeys(self._peers, total.size))

    def _send(self, name: str, array: Numbers, counts: dict[int, int]) -> Numbers:
        """Send the numbers of an array to ranks, in their order, and return the numbers received.

        A rank that has no part sends one number to itself; see ``World.all_to_all``.
        """
        if not counts:
            array, counts = np.zeros(1, array.dtype), {self._world.rank: 1}
        received, _ = self._world.all_to_all(array, [counts.get(rank, 0) for rank in range(self._world.size)], name)
        return received


class RowSums:
    """Sums of a table's rows over hosts: each rank sends its sums to the ranks of other hosts that keep these rows.

    Args:
        hosts: ranks of each host; those of one host share a table.
    """

    def __init__(self, world: World, hosts: Sequence[Sequence[int]], table: Table) -> None:
        self._world = world
        self._table = table
        rows = table.parameter.shape[0]
        self._kept: dict[int, tuple[int, int]] = {}
        self._order = [rank for host in hosts for rank in host]
        for host in hosts:
            count = library.functions().crepe_table_rows_each(rows, len(host))
            for local_rank, rank in enumerate(host):
                if world.rank not in host or rank == world.rank:
                    self._kept[rank] = (min(rows, local_rank * count), min(rows, (local_rank + 1) * count))

    def add(self) -> None:
        """Replace the last sum of this host by the sum over all hosts; every rank calls it."""
        world, nothing = self._world, (0, 0)
        lists = [self._table.give(*self._kept.get(rank, nothing)) for rank in range(world.size)]
        # Every rank sends itself at least one row; see ``World.all_to_all``.
        end = np.array([[NO_ROW] + [0] * (lists[0].shape[1] - 1)], np.int32)
        lists[world.rank] = np.concatenate([lists[world.rank], end])
        sent, name = np.concatenate(lists), f"rows.{self._table.name}"
        received, counts = world.all_to_all(sent, list(map(len, lists)), name)
        by_rank = np.split(received, np.cumsum(counts)[:-1])
        by_rank[world.rank] = by_rank[world.rank][:-1]
        self._table.take([by_rank[rank] for rank in self._order if rank in self._kept])
