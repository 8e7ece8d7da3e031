#!/usr/bin/env python3
"""Compare the projection of `bench --project` with measurements between two emulated hosts on a link of known speed.

    sudo .venv/bin/python benchmarks/link.py --gbps 0.1 0.5 1 10

The hosts are network namespaces joined by a veth pair with a token bucket (tc tbf) on both ends. Each runs one worker
or more (--per-host), with one thread each; Gloo's rendezvous runs in the first. At each speed, a training step and an
all-reduce are measured and compared with predictions: computation as measured in workers without Horovod, the
all-reduce by the ring model of two hosts. One prediction uses the speed of the link alone, the other is bounded by the
speed of an unlimited link on this machine.

Needs root and iproute2. Traffic stays in the namespaces, which are removed at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

from crepe_dist import command
from crepe_dist.benchmarking.projection import Job, Link, forecast, ring
from crepe_dist.benchmarking.scaling import PYTHON, allreduce_seconds, environment, start_independent
from crepe_dist.benchmarking.workers import Workers
from crepe_dist.data.alphabet import ALPHABET
from crepe_dist.distributed.launch import horovodrun
from crepe_dist.errors import UserError
from crepe_dist.networks.paper.shape import PaperShape

HOSTS = ("crepe-link-a", "crepe-link-b")
ADDRESSES = ("192.0.2.1", "192.0.2.2")  # reserved for documentation (RFC 5737), so never routed
IFACE = "wire0"
TOTAL_SECONDS = 600
LATENCY = 50e-6  # seconds for a message through both namespaces

RENDEZVOUS = """
import sys
from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
from horovod.runner.http.http_server import RendezvousServer
server = RendezvousServer()
port = server.start()
server.init(get_host_assignments(parse_hosts(sys.argv[1]), int(sys.argv[2])))
print(port, flush=True)
sys.stdin.read()
"""


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--gbps", type=float, nargs="+", default=[0.1, 0.5, 1.0, 10.0], help="speeds of the link")
    flags.add_argument("--batch", type=int, default=32, help="documents per process and step")
    flags.add_argument("--per-host", type=int, default=1, help="processes on each host")
    flags.add_argument("--filters", type=int, default=128)
    flags.add_argument("--units", type=int, default=512)
    flags.add_argument("--rounds", type=int, default=3, help="rounds over all speeds; medians are reported")
    given = flags.parse_args()
    _check(given)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the context managers clean up
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(TOTAL_SECONDS)

    shape = PaperShape(len(ALPHABET), 1014, 7, given.filters, given.units)
    with ExitStack() as stack:
        stack.enter_context(namespaces())
        size = 2 * given.per_host
        port = stack.enter_context(rendezvous(given.per_host))
        started = [_worker(rank, given.per_host, port) for rank in range(size)]
        world = stack.enter_context(Workers(started, size, environment()))
        alone = stack.enter_context(start_independent(size))
        for workers in (world, alone):
            gradient = workers.ask("build", **asdict(shape))[0]["bytes"]
            workers.ask("train", batch=given.batch, steps=1)
        speeds: list[float | None] = [None, *(1e9 / 8 * gbps for gbps in given.gbps)]
        steps: dict[float | None, list[float]] = {speed: [] for speed in speeds}
        reductions: dict[float | None, list[float]] = {speed: [] for speed in speeds}
        compute = []
        for _ in range(given.rounds):
            compute.append(max(answer["seconds"] for answer in alone.ask("train", batch=given.batch, steps=3)) / 3)
            for speed in speeds:
                limit(speed)
                answers = world.ask("train", batch=given.batch, steps=3)
                steps[speed].append(max(answer["seconds"] for answer in answers) / 3)
                reductions[speed].append(allreduce_seconds(world, 2))
    report(Job(statistics.median(compute), given.batch, gradient), _medians(steps), _medians(reductions))


def report(job: Job, steps: dict[float | None, float], reductions: dict[float | None, float]) -> None:
    """Print a Markdown table of measured and predicted times; ``None`` is the unlimited link."""
    host = job.gradient / reductions[None]  # in a ring of two, each sends as many bytes as the gradient has
    print(f"{job.gradient:,} bytes of gradient, {1000 * job.compute:.0f} ms to compute a step of {job.batch} documents")
    print(f"without a limit: {1000 * reductions[None]:.1f} ms per all-reduce, {8 * host / 1e9:.2f} Gb/s\n")
    print("| link | all-reduce ms | predicted | error | step ms | predicted | error | bounded by the host | error |")
    print("|---|---|---|---|---|---|---|---|---|")
    for speed, measured in steps.items():
        if speed is None:
            continue
        ideal = forecast(job, 2, ring(2, job.gradient, Link(speed, LATENCY)), 0)
        bounded = forecast(job, 2, ring(2, job.gradient, Link(min(speed, host), LATENCY)), 0)
        cells = [
            f"{8 * speed / 1e9:g} Gb/s",
            *_compared(reductions[speed], ideal.allreduce),
            *_compared(measured, ideal.step),
            *_compared(measured, bounded.step)[1:],
        ]
        print(f"| {' | '.join(cells)} |")


def _compared(measured: float, predicted: float) -> list[str]:
    return [f"{1000 * measured:.0f}", f"{1000 * predicted:.0f}", f"{100 * (predicted / measured - 1):+.0f} %"]


@contextmanager
def namespaces() -> Iterator[None]:
    """Create the two hosts and the link between them; remove them at the end."""
    made = []
    try:
        for host in HOSTS:
            _run("ip", "netns", "add", host)
            made.append(host)
        _run("ip", "link", "add", IFACE, "netns", HOSTS[0], "type", "veth", "peer", "name", IFACE, "netns", HOSTS[1])
        for host, address in zip(HOSTS, ADDRESSES):
            _run("ip", "-n", host, "address", "add", f"{address}/24", "dev", IFACE)
            _run("ip", "-n", host, "link", "set", IFACE, "up")
            _run("ip", "-n", host, "link", "set", "lo", "up")
        yield
    finally:
        for host in made:
            subprocess.run(["ip", "netns", "delete", host], check=False)


def limit(speed: float | None) -> None:
    """Limit the link to ``speed`` bytes per second in each direction; ``None``: remove the limit."""
    for host in HOSTS:
        if speed is None:
            subprocess.run(
                ["tc", "-n", host, "qdisc", "delete", "dev", IFACE, "root"], capture_output=True, check=False
            )
            continue
        # The bucket holds a millisecond of traffic, and at least two of the kernel's largest packets.
        _run(
            *("tc", "-n", host, "qdisc", "replace", "dev", IFACE, "root", "tbf", "rate", f"{round(8 * speed)}bit"),
            *("burst", f"{max(131072, round(speed / 1000))}b", "latency", "50ms"),
        )


@contextmanager
def rendezvous(per_host: int) -> Iterator[int]:
    """Run Horovod's rendezvous server on the first host; yield its port."""
    hosts = ",".join(f"{address}:{per_host}" for address in ADDRESSES)
    server = subprocess.Popen(
        ["ip", "netns", "exec", HOSTS[0], sys.executable, "-c", RENDEZVOUS, hosts, str(2 * per_host)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C must reach only this process
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line.strip().isdigit():
            raise UserError("Horovod's rendezvous server did not start")
        yield int(line)
    finally:
        server.kill()
        server.wait()


def _worker(rank: int, per_host: int, port: int) -> list[str]:
    host, local_rank = divmod(rank, per_host)
    variables = {
        "HOROVOD_HOSTNAME": ADDRESSES[host],
        "HOROVOD_RANK": rank,
        "HOROVOD_SIZE": 2 * per_host,
        "HOROVOD_LOCAL_RANK": local_rank,
        "HOROVOD_LOCAL_SIZE": per_host,
        "HOROVOD_CROSS_RANK": host,
        "HOROVOD_CROSS_SIZE": 2,
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": ADDRESSES[0],
        "HOROVOD_GLOO_RENDEZVOUS_PORT": port,
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_IFACE": IFACE,
    }
    settings = [f"{name}={value}" for name, value in variables.items()]
    # Horovod 0.28.1 uses HOROVOD_GLOO_IFACE for the first connections only. Gradients go to the address to which the
    # host's name resolves, so each host is named by its address.
    named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', ADDRESSES[host]]
    return ["ip", "netns", "exec", HOSTS[host], *named, "env", *settings, *PYTHON, "--number", str(rank)]


def _check(given: argparse.Namespace) -> None:
    if os.geteuid() != 0:
        raise UserError("this needs root", "only root can make network namespaces", "start it with sudo")
    for program, package in (
        ("ip", "iproute2"),
        ("tc", "iproute2"),
        ("unshare", "util-linux"),
        ("hostname", "hostname"),
    ):
        if shutil.which(program) is None:
            raise UserError(f"the program {program} is missing", remedy=f"install {package}")
    if horovodrun() is None:
        raise UserError("Horovod is not installed", remedy="install it (README, Install)")
    if (
        not all(0 < gbps < 1000 for gbps in given.gbps)
        or min(given.batch, given.per_host, given.filters, given.units, given.rounds) < 1
    ):
        raise UserError("speeds, sizes and rounds must be above 0")


def _run(*arguments: str) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"`{' '.join(arguments)}` failed", done.stderr.strip())


def _medians(found: dict[float | None, list[float]]) -> dict[float | None, float]:
    return {speed: statistics.median(seconds) for speed, seconds in found.items()}


def _too_long(*_: object) -> None:
    raise UserError(f"not done after {TOTAL_SECONDS} seconds")


if __name__ == "__main__":
    command.run(main)
