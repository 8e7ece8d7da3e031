"""Training on a Ray cluster of two nodes on this machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from crepe_dist.errors import ExitCode
from tests.chaos import harness
from tests.clusters.cluster import Cluster, digest, finish

ENGINE = "ray"
HOLD = """
import sys
from ray.cluster_utils import Cluster
node = dict(num_cpus=1, object_store_memory=80 << 20)
cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **node})
other = cluster.add_node(**node)
print(">", cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "remove":
        cluster.remove_node(other, allow_graceful=False)
    else:
        other = cluster.add_node(**node)
    print("> done", flush=True)
cluster.shutdown()
"""


def test_two_nodes_train_what_one_process_does(cluster: Cluster, alone: Path) -> None:
    printed = finish(cluster.train(), cluster)
    assert "Ray: 2 processes" in printed
    assert "gradients summed by shared memory" in printed
    assert digest(cluster.run_dir) == digest(alone)


def test_a_killed_rank_restarts_with_all(cluster: Cluster, alone: Path) -> None:
    process = cluster.train()
    cluster.wait_for_saved_state()
    os.kill(cluster.ranks()[1], signal.SIGKILL)
    printed = finish(process, cluster)
    assert "rank 1 on " in printed
    assert "was killed by signal 9 (SIGKILL)" in printed
    assert "restarting from the newest saved state; 9 restarts left" in printed
    assert "resuming from step" in printed
    assert digest(cluster.run_dir) == digest(alone)


def test_a_node_goes_and_comes_back(cluster: Cluster, alone: Path) -> None:
    process = cluster.train()
    cluster.wait_for_saved_state()
    cluster.do("remove")
    cluster.wait_for("Ray: 1 process ")
    harness.wait_for(lambda: list(cluster.ranks()) == [0])
    (rank,) = cluster.ranks().values()
    os.kill(rank, signal.SIGSTOP)  # it must not end before the node is back
    cluster.do("add")
    cluster.wait_for("there is another node: asking all to save and stop")
    os.kill(rank, signal.SIGCONT)
    printed = finish(process, cluster)
    assert printed.count("Ray: 2 processes ") == 2
    assert digest(cluster.run_dir) == digest(alone)


def test_a_request_to_stop_is_passed_on(cluster: Cluster, alone: Path) -> None:
    process = cluster.train()
    cluster.wait_for_saved_state()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == ExitCode.STOPPED, cluster.printed
    assert "saved after step" in cluster.printed
    assert "Traceback" not in cluster.printed
    finish(cluster.train(), cluster)
    assert digest(cluster.run_dir) == digest(alone)


def test_a_mistake_is_told_and_not_repeated(cluster: Cluster) -> None:
    process = cluster.train("--data.source=nowhere")
    assert process.wait(100) == ExitCode.ERROR
    assert "error: " in cluster.printed
    assert "nowhere" in cluster.printed
    assert "restarting" not in cluster.printed
    assert "Traceback" not in cluster.printed


@pytest.mark.parametrize("variables", [{"CREPE_DIST_MEETING_SECONDS": "1"}])
def test_too_few_slots_are_told(cluster: Cluster, variables: dict[str, str]) -> None:
    process = cluster.train(processes=3, variables=variables)
    assert process.wait(100) == ExitCode.ERROR
    assert "error: the Ray cluster has no room for 3 processes" in cluster.printed
    assert "all its nodes together have room for 2" in cluster.printed
