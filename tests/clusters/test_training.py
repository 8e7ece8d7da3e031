"""Training on a Ray of two nodes on this machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from crepe_dist.errors import ExitCode
from tests.chaos import harness
from tests.clusters.cluster import Cluster, finish


def test_two_processes_train_what_one_does(cluster: Cluster, alone: Path) -> None:
    printed = finish(cluster.train(), cluster)
    assert "2 processes" in printed
    assert "gradients summed by shared memory" in printed
    harness.assert_same(cluster.run_dir, alone)


def test_a_killed_rank_restarts_with_all(cluster: Cluster, alone: Path) -> None:
    process = cluster.train()
    cluster.wait_for_saved_state()
    os.kill(cluster.ranks()[1], signal.SIGKILL)
    printed = finish(process, cluster)
    assert "was killed by signal 9 (Killed)" in printed
    assert "resuming from step" in printed
    assert "rank 1 on " in printed
    assert "restarting from the newest saved state; 9 restarts left" in printed
    harness.assert_same(cluster.run_dir, alone)


def test_ranks_that_are_all_suspended_restart(cluster: Cluster, alone: Path) -> None:
    process = cluster.train("--safety.watchdog-s=10")
    cluster.wait_for_saved_state()
    for rank in cluster.ranks().values():
        os.kill(rank, signal.SIGSTOP)
    printed = finish(process, cluster)
    assert "ended with code 76 (no progress)" in printed
    assert "resuming from step" in printed
    harness.assert_same(cluster.run_dir, alone)


def test_a_request_to_stop_is_passed_on(cluster: Cluster, alone: Path) -> None:
    process = cluster.train()
    cluster.wait_for_saved_state()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == ExitCode.STOPPED, cluster.printed
    assert "Traceback" not in cluster.printed
    assert "saved after step" in cluster.printed
    cluster.wait_for_no_rank()
    finish(cluster.train(), cluster)
    harness.assert_same(cluster.run_dir, alone)


def test_a_lost_node_leaves_fewer_processes(cluster: Cluster, alone: Path) -> None:
    process = cluster.train()
    cluster.wait_for_saved_state()
    cluster.remove_node()
    printed = finish(process, cluster)
    assert "Ray: 1 process " in printed
    harness.assert_same(cluster.run_dir, alone)
