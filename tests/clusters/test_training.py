"""Training on a Ray of two nodes on this machine."""

import os
import signal
from pathlib import Path

import pytest

from crepe_dist.errors import ExitCode
from tests.chaos import harness
from tests.clusters.cluster import Cluster, finish


def test_two_processes_train_what_one_does(cluster: Cluster, alone: Path) -> None:
    printed = finish(cluster.train(), cluster)
    assert "2 processes" in printed
    assert "gradients summed by shared memory" in printed
    harness.assert_same(cluster.run_dir, alone)


def kill_a_rank(cluster: Cluster) -> None:
    os.kill(cluster.ranks()[1], signal.SIGKILL)


def suspend_all_ranks(cluster: Cluster) -> None:
    for rank in cluster.ranks().values():
        os.kill(rank, signal.SIGSTOP)


RESTARTS = "restarting from the newest saved state; 9 restarts left"


@pytest.mark.parametrize(
    ("failure", "messages"),
    [
        (kill_a_rank, ("was killed by signal 9 (Killed)", "resuming from step", "rank 1 on ", RESTARTS)),
        (suspend_all_ranks, ("ended with code 76 (no progress)", "resuming from step")),
        (Cluster.remove_node, ("Ray: 1 process ",)),
    ],
)
def test_training_restarts_after_a_failure(failure, messages, cluster: Cluster, alone: Path) -> None:
    process = cluster.train("--safety.watchdog-s=10")
    cluster.wait_for_saved_state()
    failure(cluster)
    printed = finish(process, cluster)
    for message in messages:
        assert message in printed
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
