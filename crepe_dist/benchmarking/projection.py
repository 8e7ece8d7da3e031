"""Analytical model of weak scaling: the throughput of N processes, from one process's step time and the network.

Every process trains on a batch of its own, then the gradients are all-reduced. The model accounts for bandwidth,
latency and overlap. It ignores stragglers, congestion, and the CPU time for copying and adding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# Share of the step that remains when the gradients of the dense layers (nine tenths of the bytes) are ready: the
# forward pass is a third of the operations, and the dense layers' backward pass, which comes next, a few hundredths.
OVERLAP = 0.6


@dataclass(frozen=True)
class Link:
    """Full-duplex link.

    Args:
        bandwidth: bytes a second in each direction.
        latency: seconds per message.
    """

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Cluster:
    """Cluster of equal hosts.

    Args:
        per_host: number of processes on a host.
        inner: link between processes of one host.
        outer: link between hosts; each host has one.
    """

    per_host: int
    inner: Link
    outer: Link


@dataclass(frozen=True)
class Job:
    """Work of one process.

    Args:
        compute: seconds per step, without the all-reduce.
        batch: documents per process and step.
        gradient: bytes to all-reduce.
    """

    compute: float
    batch: int
    gradient: int


@dataclass(frozen=True)
class Cost:
    """Cost of an all-reduce.

    Args:
        fixed: seconds that do not depend on the slowest link's bandwidth.
        transfer: bytes that pass the slowest link.
        link: the slowest link.
    """

    fixed: float
    transfer: float
    link: Link

    @property
    def seconds(self) -> float:
        return self.fixed + self.transfer / self.link.bandwidth


@dataclass(frozen=True)
class Forecast:
    """Prediction for one world size.

    Args:
        allreduce: seconds of an all-reduce.
        step: seconds of a step.
        documents: documents a second of all processes together.
        efficiency: throughput relative to as many independent processes, 0 to 1.
    """

    allreduce: float
    step: float
    documents: float
    efficiency: float


def ring(processes: int, gradient: float, link: Link) -> Cost:
    """Compute the cost of a ring all-reduce (Patarasuk & Yuan 2009, J. Parallel Distrib. Comput. 69).

    It consists of a reduce-scatter and an all-gather: 2(p-1) messages of 1/p of the gradient.
    """
    return Cost(2 * (processes - 1) * link.latency, 2 * (processes - 1) / processes * gradient, link)


def flat(processes: int, gradient: float, cluster: Cluster) -> Cost:
    """Compute the cost of one ring through all processes, host by host; the slowest link limits it."""
    return ring(processes, gradient, cluster.inner if processes <= cluster.per_host else cluster.outer)


def hierarchical(processes: int, gradient: float, cluster: Cluster) -> Cost:
    """Compute the cost of a hierarchical all-reduce.

    It consists of a reduce-scatter within each host, rings between the hosts, and an all-gather within each host. Each
    process of a host has a ring for its share of the gradient, and all rings share the host's link.
    """
    inner = ring(min(processes, cluster.per_host), gradient, cluster.inner)
    if processes <= cluster.per_host:
        return inner
    outer = ring(math.ceil(processes / cluster.per_host), gradient, cluster.outer)
    return Cost(inner.seconds + outer.fixed, outer.transfer, outer.link)


ALGORITHMS: dict[str, Callable[[int, float, Cluster], Cost]] = {"ring": flat, "hierarchical": hierarchical}


def forecast(job: Job, processes: int, cost: Cost, overlap: float) -> Forecast:
    """Predict a step in which the all-reduce overlaps the last part of the computation.

    step = max(compute, (1 - overlap) × compute + all-reduce). The gradients that are ready last are ignored, because
    they are small.

    Args:
        cost: cost of the all-reduce.
        overlap: share of the computation that the all-reduce can overlap, 0 to 1.
    """
    step = max(job.compute, (1 - overlap) * job.compute + cost.seconds)
    return Forecast(cost.seconds, step, processes * job.batch / step, job.compute / step)


def break_even(job: Job, cost: Cost, overlap: float) -> float | None:
    """Compute the bandwidth of the slowest link, in bytes a second, below which the job is communication-bound.

    Returns:
        0 if nothing is sent; ``None`` if no bandwidth is enough, because the fixed cost alone exceeds the computation
        that could hide it.
    """
    if cost.transfer == 0:
        return 0.0
    left = overlap * job.compute - cost.fixed
    return cost.transfer / left if left > 0 else None


def batch_for(job: Job, cost: Cost, overlap: float, efficiency: float) -> int:
    """Compute the smallest batch per process that reaches ``efficiency`` (below 1).

    This assumes that the computation is proportional to the batch: compute ≥ all-reduce / (1 / efficiency - 1 +
    overlap).
    """
    compute = cost.seconds / (1 / efficiency - 1 + overlap)
    return max(1, math.ceil(compute / (job.compute / job.batch)))
