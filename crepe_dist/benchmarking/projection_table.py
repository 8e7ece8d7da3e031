"""Terminal output of the scaling model."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from crepe_dist.benchmarking.projection import ALGORITHMS, Cluster, Job, batch_for, break_even, forecast

EFFICIENCY = 0.9
REFERENCE = (
    "For comparison, measured by Horovod's authors (arXiv:1802.05799 and its README): 512 GPUs on 128 hosts at "
    "25 Gb/s (RoCE) trained Inception V3 and ResNet-101 with 90 % efficiency, and 68 % for VGG-16. This network "
    "resembles VGG: most of its parameters are in the first dense layer."
)


def show(job: Job, cluster: Cluster, sizes: Sequence[int], overlap: float, console: Console) -> None:
    """Print the predictions with and without overlap, and the bandwidths below which communication dominates."""
    console.print(
        f"{1000 * job.compute:,.1f} ms of computation for {job.batch} documents per process and step, "
        f"{job.gradient / 1e6:,.1f} MB of gradients; {cluster.per_host} processes per host, "
        f"{_speed(cluster.inner.bandwidth)} within, "
        f"{_speed(cluster.outer.bandwidth)} and {1e6 * cluster.outer.latency:,.0f} µs between hosts",
        soft_wrap=True,
    )
    for share in dict.fromkeys((overlap, 0.0)):
        title = f"all-reduce overlaps the last {100 * share:.0f} % of the computation" if share else "without overlap"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("processes", justify="right", overflow="fold")
        table.add_column("algorithm", overflow="fold")
        for name in ("compute ms", "all-reduce ms", "step ms", "documents/s", "efficiency"):
            table.add_column(name, justify="right", overflow="fold")
        table.add_column(f"batch for {100 * EFFICIENCY:.0f} %", justify="right")
        for size in sizes:
            for name, algorithm in ALGORITHMS.items():
                cost = algorithm(size, job.gradient, cluster)
                prediction = forecast(job, size, cost, share)
                table.add_row(
                    f"{size:,}",
                    name,
                    f"{1000 * job.compute:,.2f}",
                    f"{1000 * prediction.allreduce:,.2f}",
                    f"{1000 * prediction.step:,.2f}",
                    f"{prediction.documents:,.0f}",
                    f"{100 * prediction.efficiency:.1f} %",
                    f"{batch_for(job, cost, share, EFFICIENCY):,}",
                )
        console.print(table)
    if overlap > 0:
        for size in sizes:
            console.print(_bound(job, cluster, size, overlap), soft_wrap=True)
    console.print(REFERENCE, soft_wrap=True)


def _bound(job: Job, cluster: Cluster, size: int, overlap: float) -> str:
    """State the bandwidth below which each algorithm is communication-bound."""
    where = "within the host" if size <= cluster.per_host else "between hosts"
    bounds = []
    for name, algorithm in ALGORITHMS.items():
        bandwidth = break_even(job, algorithm(size, job.gradient, cluster), overlap)
        bounds.append(f"{name} at any speed" if bandwidth is None else f"{name} below {_speed(bandwidth)} {where}")
    return f"{size:,} processes are communication-bound: {', '.join(bounds)}"


def _speed(bandwidth: float) -> str:
    gigabits = 8 * bandwidth / 1e9
    return f"{gigabits:,.0f} Gb/s" if gigabits >= 100 else f"{gigabits:.3g} Gb/s"
