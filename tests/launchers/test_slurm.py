"""launch/slurm.sbatch on one machine: saves before the time limit, is requeued, and ends bit-identical."""

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import harness
from tests.conftest import needs_kernels
from tests.helpers.needs import needs
from tests.launchers.conftest import flags
from tests.launchers.slurm import Slurm, slurm

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm.sbatch"
# Two nodes of one processor.
SIZE = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")

pytestmark = [
    pytest.mark.slurm,
    needs("slurmctld", "slurmd", "sbatch", "srun", "munged", root=True),
    needs_kernels,
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm() as started:
        yield started


class Job:
    """Batch job of the script with the edits of a user."""

    def __init__(self, cluster: Slurm, folder: Path, arguments: list[str], pace: float, worker: str = "") -> None:
        self._cluster = cluster
        plan = harness.environment(
            {"kind": "", "rank": 0, "phase": "", "step": 0, "once": str(folder / "o"), "pace": pace}
        )
        python = folder / "python"
        python.write_text(
            f"#!/bin/bash\nexport PYTHONPATH={ROOT} CREPE_DIST_FAULT={plan['CREPE_DIST_FAULT']}\n"
            f'[ "$2" = crepe_dist.train ] || exit 99\n{worker}\n'
            f'exec {sys.executable} -m tests.chaos.worker "${{@:3}}"\n'
        )
        python.chmod(0o755)
        text = SCRIPT.read_text()
        text, edits = re.subn(r"^python=.*$", f"python={python}", text, flags=re.MULTILINE)
        text, others = re.subn(r"^arguments=.*$", f"arguments=({shlex.join(arguments)})", text, flags=re.MULTILINE)
        assert (edits, others) == (1, 1)
        script = folder / "job.sbatch"
        script.write_text(text)
        more = (*SIZE, f"--chdir={folder}", f"--output={folder}/log")
        self._log = folder / "log"
        self.number = cluster("sbatch", "--parsable", *more, script)

    @property
    def state(self) -> dict[str, str]:
        return self._cluster.job(self.number)

    @property
    def printed(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def until(self, condition: Callable[[], Any]) -> None:
        try:
            harness.wait_for(condition)
        except AssertionError:
            pytest.fail(f"{self.state}\n{self.printed}\n{self._cluster.logs()}")

    def begin_again(self, restart: int = 1) -> None:
        """Restart the job after three seconds instead of two minutes, but not immediately, which confuses the nodes."""
        self.until(lambda: self.state["Restarts"] == str(restart) and self.state["JobState"] == "PENDING")
        self._cluster("scontrol", "update", f"JobId={self.number}", "StartTime=now+3seconds")

    def wait(self) -> dict[str, str]:
        """Wait for the end of the job, and return its outcome."""
        self.until(lambda: self.state["JobState"] in ENDED)
        return self.state


def test_stopped_it_queues_itself_again_and_ends_in_the_same_bits(cluster, data, tmp_path, unbroken):
    run_dir = tmp_path / "a run"
    job = Job(cluster, tmp_path, flags(run_dir, data), pace=0.1)
    job.until(lambda: run_dir.exists() and harness.has_saved(run_dir))
    cluster("scancel", "--signal=TERM", job.number)  # Only to the processes, like --signal=TERM@….
    job.begin_again()
    ended = job.wait()
    assert ended["JobState"] == "COMPLETED", job.printed
    assert ended["Restarts"] == "1"
    assert job.printed.count("SIGTERM: saved after step") == 1
    assert job.printed.count("resuming from step") == 1
    harness.assert_same(run_dir, unbroken)


def test_a_killed_process_is_followed_by_a_bounded_number_of_restarts(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # The folder of sbatch gets the file of failures.
    killed = '[ "$SLURM_PROCID" = 0 ] && exit 69; kill -KILL $$'
    job = Job(cluster, tmp_path, [], pace=0, worker=killed)
    for restart in (1, 2, 3):
        job.begin_again(restart)
    assert job.wait()["JobState"] == "FAILED"
    assert job.state["Restarts"] == "3"
    assert "failure 4 (code 137); not queued again" in job.printed
    assert len((tmp_path / f"crepe_dist-{job.number}.failures").read_text().splitlines()) == 4


def test_a_mistake_of_the_user_is_not_repeated(cluster, tmp_path):
    job = Job(cluster, tmp_path, [], pace=0, worker="exit 1")
    assert job.wait()["JobState"] == "FAILED"
    assert job.state["Restarts"] == "0"
