"""launch/slurm.sbatch on one machine: saves before the time limit, is requeued, and ends bit-identical."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import harness
from tests.helpers.needs import needs
from tests.launchers.conftest import flags, sha256
from tests.launchers.slurm import Slurm, slurm

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm.sbatch"
# Two nodes of one processor.
SIZE = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")

pytestmark = [
    pytest.mark.slurm,
    needs("slurmctld", "slurmd", "sbatch", "srun", "munged", root=True),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm() as started:
        yield started


class Job:
    """The script, edited as a user edits it."""

    def __init__(self, cluster: Slurm, folder: Path, arguments: list[str], *more: str, pace: float = 0) -> None:
        self._cluster = cluster
        plan = harness.environment(
            {"kind": "", "rank": 0, "phase": "", "step": 0, "once": str(folder / "o"), "pace": pace}
        )
        python = folder / "python"
        python.write_text(
            f"#!/bin/bash\nexport PYTHONPATH={ROOT} CREPE_DIST_FAULT={plan['CREPE_DIST_FAULT']}\n"
            f'[ "$2" = crepe_dist.train ] || exit 99\nexec {sys.executable} -m tests.chaos.worker "${{@:3}}"\n'
        )
        python.chmod(0o755)
        text = SCRIPT.read_text()
        text, edits = re.subn(r"^python=.*$", f"python={python}", text, flags=re.MULTILINE)
        text, others = re.subn(r"^arguments=.*$", f"arguments=({shlex.join(arguments)})", text, flags=re.MULTILINE)
        assert (edits, others) == (1, 1)
        script = folder / "job.sbatch"
        script.write_text(text)
        more = (*SIZE, f"--chdir={folder}", f"--output={folder}/log", *more)
        self._log = folder / "log"
        self._begun = 0  # how often again
        self.number = cluster("sbatch", "--parsable", *more, script)

    @property
    def state(self) -> dict[str, str]:
        return self._cluster.job(self.number)

    @property
    def printed(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def until(self, condition: Callable[[], Any], seconds: float = 120) -> None:
        try:
            harness.wait_for(condition, seconds)
        except AssertionError:
            pytest.fail(f"{self.state}\n{self.printed}\n{self._cluster.logs()}")

    def ends_or_restarts(self) -> str:
        """Its state, once it has ended or was queued again since it was last begun."""
        self.until(lambda: self.state["JobState"] in ENDED or int(self.state["Restarts"]) > self._begun, 300)
        return self.state["JobState"]

    def begin_again(self) -> None:
        """Restart the job after seconds instead of two minutes; at once, nodes would confuse it with the ended one."""
        self._begun += 1
        self.until(lambda: self.state["Restarts"] == str(self._begun) and self.state["JobState"] == "PENDING")
        self._cluster("scontrol", "update", f"JobId={self.number}", "StartTime=now+3seconds")

    def wait(self) -> dict[str, str]:
        """Wait for the end of the job; return its outcome."""
        self.until(lambda: self.state["JobState"] in ENDED)
        return self.state


def test_stopped_it_queues_itself_again_and_ends_in_the_same_bits(cluster, data, tmp_path, unbroken):
    run_dir = tmp_path / "a run"
    job = Job(cluster, tmp_path, flags(run_dir, data), pace=0.1)
    job.until(lambda: run_dir.exists() and harness.has_saved(run_dir))
    cluster("scancel", "--signal=TERM", job.number)  # to the processes alone, as --signal=TERM@… does
    job.begin_again()
    ended = job.wait()
    assert ended["JobState"] == "COMPLETED", job.printed
    assert ended["Restarts"] == "1"
    assert job.printed.count("SIGTERM: saved after step") == 1
    assert job.printed.count("resuming from step") == 1
    assert sha256(run_dir) == sha256(unbroken)
    harness.assert_same(run_dir, unbroken)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_too_long_for_its_limit_it_ends_in_the_same_bits(cluster, data, tmp_path, unbroken):
    """Slurm looks at limits every 30 s, and sends the signal up to as much too early: 25 to 55 s after the start. At
    2.75 s a step that is enough for 20 of 39 at most, and the end takes more: two new starts are the least."""
    run_dir = tmp_path / "a run"
    job = Job(cluster, tmp_path, flags(run_dir, data), "--time=1", "--signal=TERM@5", pace=2.75)
    while job.ends_or_restarts() not in ENDED:
        job.begin_again()
    ended = job.wait()
    assert ended["JobState"] == "COMPLETED", job.printed
    assert int(ended["Restarts"]) >= 2
    assert "DUE TO TIME LIMIT" not in job.printed
    assert job.printed.count("queued again") == int(ended["Restarts"])
    assert sha256(run_dir) == sha256(unbroken)
    harness.assert_same(run_dir, unbroken)
