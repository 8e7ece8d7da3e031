"""Training in Spark's local mode with two slots."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from crepe_dist.errors import ExitCode
from tests.clusters.cluster import Cluster, digest, finish
from tests.needs import needs

ENGINE = "spark"
# A Spark in local mode lives in the driver; the third number lets it retry a task.
HOLD = "import sys; print('> local[2,4]', flush=True); sys.stdin.read()"
pytestmark = needs("java")


def test_two_tasks_train_what_one_process_does(cluster: Cluster, alone: Path) -> None:
    printed = finish(cluster.train(), cluster)
    assert "2 processes" in printed
    assert digest(cluster.run_dir) == digest(alone)


def test_a_killed_rank_restarts_with_all(cluster: Cluster, alone: Path) -> None:
    process = cluster.train()
    cluster.wait_for_saved_state()
    os.kill(cluster.ranks()[1], signal.SIGKILL)
    printed = finish(process, cluster)
    assert "rank 1 was killed by signal 9 (SIGKILL)" in printed
    assert "resuming from step" in printed
    assert digest(cluster.run_dir) == digest(alone)


def test_a_request_to_stop_is_passed_on(cluster: Cluster, alone: Path) -> None:
    process = cluster.train()
    cluster.wait_for_saved_state()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == ExitCode.STOPPED, cluster.printed
    cluster.wait_for_no_rank()
    finish(cluster.train(), cluster)
    assert digest(cluster.run_dir) == digest(alone)


def test_a_mistake_is_told_and_not_repeated(cluster: Cluster) -> None:
    process = cluster.train("--data.source=nowhere")
    assert process.wait(100) == ExitCode.ERROR, cluster.printed
    assert cluster.printed.count("error: nowhere") == 1, cluster.printed


def test_too_few_slots_are_told(cluster: Cluster) -> None:
    process = cluster.train(processes=3)
    assert process.wait(100) == ExitCode.ERROR
    assert "error: Spark has no room for 3 processes" in cluster.printed
