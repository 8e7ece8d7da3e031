"""Training on a Dask LocalCluster of two workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from crepe_dist.errors import ExitCode
from tests.clusters.cluster import Cluster, digest, finish

ENGINE = "dask"
HOLD = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    print(">", cluster.scheduler_address, flush=True)
    for line in sys.stdin:
        cluster.scale(1 if line.strip() == "remove" else 2)
        print("> done", flush=True)
    cluster.close()
"""


def test_two_workers_train_what_one_process_does(cluster: Cluster, alone: Path) -> None:
    printed = finish(cluster.train(), cluster)
    assert "Dask: 2 processes" in printed
    assert digest(cluster.run_dir) == digest(alone)


def test_a_killed_rank_restarts_with_all(cluster: Cluster, alone: Path) -> None:
    process = cluster.train()
    cluster.wait_for_saved_state()
    os.kill(cluster.ranks()[1], signal.SIGKILL)
    printed = finish(process, cluster)
    assert "was killed by signal 9 (SIGKILL)" in printed
    assert "resuming from step" in printed
    assert digest(cluster.run_dir) == digest(alone)


def test_a_killed_worker_restarts_with_all(cluster: Cluster, alone: Path) -> None:
    process = cluster.train()
    cluster.wait_for_saved_state()
    worker = int(Path(f"/proc/{cluster.ranks()[1]}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)
    printed = finish(process, cluster)
    assert "restarting from the newest saved state; 9 restarts left" in printed
    assert digest(cluster.run_dir) == digest(alone)


def test_a_request_to_stop_is_passed_on(cluster: Cluster, alone: Path) -> None:
    process = cluster.train()
    cluster.wait_for_saved_state()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == ExitCode.STOPPED, cluster.printed
    assert "saved after step" in cluster.printed
    finish(cluster.train(), cluster)
    assert digest(cluster.run_dir) == digest(alone)


def test_a_driver_that_is_killed_leaves_no_rank(cluster: Cluster) -> None:
    process = cluster.train("--training.epochs=4000")
    cluster.wait_for_saved_state()
    process.kill()
    process.wait()
    cluster.wait_for_no_rank()


def test_too_few_workers_are_told(cluster: Cluster) -> None:
    process = cluster.train(processes=3, variables={"CREPE_DIST_MEETING_SECONDS": "1"})
    assert process.wait(100) == ExitCode.ERROR
    assert "error: the Dask cluster has no room for 3 processes" in cluster.printed
