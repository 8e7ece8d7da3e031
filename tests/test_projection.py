"""The scaling model: limits, values computed by hand, and the output of the command."""

from __future__ import annotations

import json
import math

import pytest

from crepe_dist.benchmarking.projection import (
    ALGORITHMS,
    Cluster,
    Job,
    Link,
    batch_for,
    break_even,
    flat,
    forecast,
    hierarchical,
    ring,
)
from crepe_dist.networks.paper.shape import PaperShape
from tests.conftest import command, run

JOB = Job(compute=0.1, batch=32, gradient=40_000_000)
CLUSTER = Cluster(per_host=8, inner=Link(100e9, 1e-6), outer=Link(1e9, 1e-5))


def test_a_ring_worked_out_by_hand():
    """Four processes, 40 MB, 1 GB/s, 10 µs: six messages of 10 MB, 10 ms each, and six latencies."""
    assert ring(4, 40e6, Link(1e9, 1e-5)).seconds == pytest.approx(0.06006)


def test_hosts_joined_by_rings_worked_out_by_hand():
    """Two hosts of two, 40 MB: 0.4 ms + 2 µs within the hosts; 40 MB and two latencies between them."""
    cluster = Cluster(2, CLUSTER.inner, CLUSTER.outer)
    assert hierarchical(4, 40e6, cluster).seconds == pytest.approx(0.0004 + 2e-6 + 0.04 + 2e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS.values())
def test_limits(algorithm):
    assert algorithm(1, JOB.gradient, CLUSTER).seconds == 0
    at_once = Link(math.inf, 0)
    cost = algorithm(64, JOB.gradient, Cluster(8, at_once, at_once))
    assert forecast(JOB, 64, cost, 0).efficiency == 1
    assert forecast(JOB, 64, cost, 0).documents == 64 * JOB.batch / JOB.compute


@pytest.mark.parametrize("size", [2, 8])
def test_one_host_is_its_inner_link_alone(size):
    alone = ring(size, JOB.gradient, CLUSTER.inner)
    assert hierarchical(size, JOB.gradient, CLUSTER) == flat(size, JOB.gradient, CLUSTER) == alone


@pytest.mark.parametrize("algorithm", ALGORITHMS.values())
@pytest.mark.parametrize("overlap", [0, 0.6])
def test_a_faster_link_is_never_slower(algorithm, overlap):
    found = []
    for bandwidth in (1e8, 1e9, 1e10, 1e11):
        cost = algorithm(64, JOB.gradient, Cluster(8, CLUSTER.inner, Link(bandwidth, 1e-5)))
        found.append(forecast(JOB, 64, cost, overlap).efficiency)
    assert found == sorted(found)
    assert 0 < found[0] < found[-1] <= 1


def test_overlap_hides_what_fits_beside_the_computation():
    cost = ring(2, JOB.gradient, Link(1e9, 0))  # 40 ms
    assert forecast(JOB, 2, cost, 0).step == pytest.approx(0.14)
    assert forecast(JOB, 2, cost, 0.3).step == pytest.approx(0.11)
    assert forecast(JOB, 2, cost, 0.6).step == JOB.compute


@pytest.mark.parametrize("size", [4, 64])
@pytest.mark.parametrize("algorithm", ALGORITHMS.values())
def test_the_break_even_bandwidth_solves_its_equation(algorithm, size):
    bandwidth = break_even(JOB, algorithm(size, JOB.gradient, CLUSTER), 0.6)
    assert bandwidth is not None
    link = Link(bandwidth, 1e-6 if size <= 8 else 1e-5)
    there = Cluster(8, link if size <= 8 else CLUSTER.inner, link)
    assert algorithm(size, JOB.gradient, there).seconds == pytest.approx(0.6 * JOB.compute)


def test_no_bandwidth_makes_up_for_latency():
    assert break_even(JOB, ring(512, JOB.gradient, Link(1e9, 1e-3)), 0.6) is None
    assert break_even(JOB, ring(1, JOB.gradient, Link(1e9, 1e-3)), 0.6) == 0


@pytest.mark.parametrize("overlap", [0, 0.6])
def test_the_least_batch_for_an_efficiency(overlap):
    cost = hierarchical(64, JOB.gradient, CLUSTER)
    least = batch_for(JOB, cost, overlap, 0.9)

    def efficiency(batch):
        return forecast(Job(JOB.compute * batch / JOB.batch, batch, JOB.gradient), 64, cost, overlap).efficiency

    assert efficiency(least) >= 0.9 > efficiency(least - 1)


def test_parameters_of_the_notebook_s_network():
    assert PaperShape(69, 1014, 7, 256, 1024).parameters == 11_341_063


def test_the_command_prints_a_table(tmp_path):
    (tmp_path / "speed.json").write_text(
        json.dumps({"rates": {"train, ours, float32": 64, "train, ours, bfloat16": 128, "encode": 1e6}})
    )
    printed = run(
        command("bench", "--project", "8,64", "--measured", "speed.json", "--gradient-bytes", 10**8), tmp_path
    )
    assert "1,000.0 ms of computation" in printed
    assert "without overlap" in printed
    assert "68 % for VGG-16" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--project", "0"], "--project 0"),
        (["--project", "8,x"], "--project 8,x"),
        (["--project", "8,-2"], "--project 8,-2"),
        (["--project", ""], "--project"),
        (["--project", "8", "--link-gbps", "-1"], "--link-gbps is -1"),
        (["--project", "8", "--intra-gbps", "0"], "--intra-gbps is 0"),
        (["--project", "8", "--step-ms", "nan"], "--step-ms is nan"),
        (["--project", "8", "--gradient-bytes", "-5"], "--gradient-bytes is -5"),
        (["--project", "8", "--gpus-per-host", "0"], "--gpus-per-host is 0"),
        (["--project", "8", "--json", "out.json"], "--json and --project exclude"),
        (["--project", "8", "--overlap", "2"], "--overlap is 2"),
        (["--project", "8", "--measured", "none.json"], "none.json"),
        (["--project", "8", "--measured", "."], "cannot be read"),
        (["--project", "8", "--measured", "list.json"], "no training rate"),
    ],
)
def test_mistakes(complaint, tmp_path, arguments, said):
    (tmp_path / "list.json").write_text("[1]")
    assert said in complaint("bench", *arguments, cwd=tmp_path)
