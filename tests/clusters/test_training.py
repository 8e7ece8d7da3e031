"""Training on a Ray of two nodes on this machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from crepe_dist.errors import ExitCode
from tests.chaos import harness
from tests.clusters.cluster import Cluster, digest, finish


def test_two_processes_train_what_one_does(cluster: Cluster, alone: Path) -> None:
    printed = finish(cluster.train(), cluster)
    assert "2 processes" in printed
    assert "gradients summed by shared memory" in printed
    assert digest(cluster.run_dir) == digest(alone)


def test_a_killed_rank_restarts_with_all(cluster: Cluster, alone: Path) -> None:
    process = cluster.train()
    cluster.wait_for_saved_state()
    os.kill(cluster.ranks()[1], signal.SIGKILL)
    printed = finish(process, cluster)
    assert "was killed by signal 9 (Killed)" in printed
    assert "resuming from step" in printed
    assert "rank 1 on " in printed
    assert "restarting from the newest saved state; 9 restarts left" in printed
    assert digest(cluster.run_dir) == digest(alone)


def test_a_request_to_stop_is_passed_on(cluster: Cluster, alone: Path) -> None:
    process = cluster.train()
    cluster.wait_for_saved_state()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == ExitCode.STOPPED, cluster.printed
    assert "Traceback" not in cluster.printed
    assert "saved after step" in cluster.printed
    cluster.wait_for_no_rank()
    finish(cluster.train(), cluster)
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
