"""Scaling on paper: what N processes would train in a second, from one process's step and the speed of the links.

Every process does one step on a batch of its own (weak scaling), then the gradient is summed over all. The model knows
bandwidth, latency and overlap; it does not know stragglers, congestion, or the processors' work in copying and adding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# Of a step's time, what is left when the gradients of the dense layers, nine tenths of the bytes, are ready: the
# forward pass is a third of the operations, and backward begins with the dense layers, a few hundredths.
OVERLAP = 0.6


@dataclass(frozen=True)
class Link:
    """Full-duplex: ``bandwidth`` bytes a second each way, ``latency`` seconds a message."""

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Cluster:
    """Hosts of ``per_host`` processes; ``inner`` links processes of a host, ``outer`` links hosts, one link each."""

    per_host: int
    inner: Link
    outer: Link


@dataclass(frozen=True)
class Job:
    """One process: ``compute`` seconds a step of ``batch`` documents without any all-reduce, ``gradient`` bytes."""

    compute: float
    batch: int
    gradient: int


@dataclass(frozen=True)
class Cost:
    """An all-reduce: ``fixed`` seconds, and ``transfer`` bytes through the slowest link."""

    fixed: float
    transfer: float
    link: Link

    @property
    def seconds(self) -> float:
        return self.fixed + self.transfer / self.link.bandwidth


@dataclass(frozen=True)
class Forecast:
    """Of one world size; ``documents`` a second of all processes, ``efficiency`` against as many lone ones."""

    allreduce: float
    step: float
    documents: float
    efficiency: float


def ring(processes: int, gradient: float, link: Link) -> Cost:
    """Reduce-scatter and all-gather around a ring, bandwidth-optimal (Patarasuk & Yuan 2009, J. Parallel Distrib.
    Comput. 69): 2(p-1) messages of 1/p of the gradient, each way of the link used once."""
    return Cost(2 * (processes - 1) * link.latency, 2 * (processes - 1) / processes * gradient, link)


def flat(processes: int, gradient: float, cluster: Cluster) -> Cost:
    """One ring through all processes, host by host; the slowest link sets its pace."""
    return ring(processes, gradient, cluster.inner if processes <= cluster.per_host else cluster.outer)


def hierarchical(processes: int, gradient: float, cluster: Cluster) -> Cost:
    """Reduce-scatter within each host, rings between hosts (one for each process of a host, of its part of the
    gradient, all through the host's one link), all-gather within each host."""
    inner = ring(min(processes, cluster.per_host), gradient, cluster.inner)
    if processes <= cluster.per_host:
        return inner
    outer = ring(math.ceil(processes / cluster.per_host), gradient, cluster.outer)
    return Cost(inner.seconds + outer.fixed, outer.transfer, outer.link)


ALGORITHMS: dict[str, Callable[[int, float, Cluster], Cost]] = {"ring": flat, "hierarchical": hierarchical}


def forecast(job: Job, processes: int, cost: Cost, overlap: float) -> Forecast:
    """A step in which the all-reduce may run beside the last ``overlap`` of the computation, from 0 to 1.

    It cannot begin before and need not end with it: step = max(compute, (1 - overlap) × compute + all-reduce). The
    gradients that are ready last are taken to be too few to count.
    """
    step = max(job.compute, (1 - overlap) * job.compute + cost.seconds)
    return Forecast(cost.seconds, step, processes * job.batch / step, job.compute / step)


def break_even(job: Job, cost: Cost, overlap: float) -> float | None:
    """Bytes a second of the link at which the all-reduce takes as long as the computation that can hide it.

    With less the job is bound by communication. 0 if it sends nothing; ``None`` if no bandwidth is enough, because
    latency and the other links alone take longer.
    """
    if cost.transfer == 0:
        return 0.0
    left = overlap * job.compute - cost.fixed
    return cost.transfer / left if left > 0 else None


def batch_for(job: Job, cost: Cost, overlap: float, efficiency: float) -> int:
    """The least documents a process and step with that ``efficiency`` (below 1), if computation takes time in
    proportion to documents: compute ≥ all-reduce / (1 / efficiency - 1 + overlap)."""
    compute = cost.seconds / (1 / efficiency - 1 + overlap)
    return max(1, math.ceil(compute / (job.compute / job.batch)))
