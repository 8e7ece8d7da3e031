"""``crepe supervise --nnodes 2`` on two hosts: after each fault, the run ends with the bits of an unbroken run."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import harness
from tests.chaos.harness import slow
from tests.conftest import needs_kernels
from tests.helpers.programs import program
from tests.multihost.conftest import LIMIT
from tests.multihost.network import Host, Network, needs_namespaces
from tests.multihost.test_two_hosts import EPOCHS, alone

pytestmark = [pytest.mark.multihost, needs_namespaces, needs_kernels]


class Job:
    """Supervisors on two hosts, with two processes each."""

    def __init__(self, network: Network, data: Path, folder: Path) -> None:
        self.network, self.data, self.run_dir = network, data, folder / "run"
        self.once = folder / "once"
        # Rank 0 marks that it has reached step 30, and waits a little before each step.
        fault = {"kind": "mark", "rank": 0, "phase": "train", "step": 30, "once": str(self.once), "pace": 0.02}
        self.environment = {
            **harness.environment(fault),
            "CREPE_DIST_SECRET": "a secret of the nodes",
            "MASTER_ADDR": network.hosts[0].name,
        }
        self.supervisors: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, *ranks: int) -> None:
        words = harness.command(self.run_dir, self.data, 1, EPOCHS, f"--safety.watchdog-s={LIMIT}")[3:]
        flags = ("-np", 2, "--nnodes", 2, "--grace", 20)
        for rank in ranks:
            with (self.network.folder / f"node-{rank}").open("ab") as stream:
                process = subprocess.Popen(
                    self.network.hosts[rank].inside(
                        *program("chaos/supervise.py", *flags, "--node-rank", rank, "--node-timeout", 60, *words)
                    ),
                    cwd=self.network.folder,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,
                )
            self.supervisors[rank] = process

    def printed(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self.network.folder.glob("node-*")))

    def wait_for(self, text: str) -> None:
        harness.wait_for(lambda: text in self.printed())

    def kill(self, rank: int, name: str) -> None:
        """Kill the newest process of a host whose command line contains ``name``."""
        pids = subprocess.run(
            self.network.hosts[rank].inside("ps", "-eo", "pid=,args="), capture_output=True, text=True, check=True
        ).stdout
        found = [line.split()[0] for line in pids.splitlines() if name in line]
        assert found, pids
        subprocess.run(self.network.hosts[rank].inside("kill", "-9", found[-1]), check=True)

    def codes(self) -> list[int]:
        return [process.wait() for process in self.supervisors.values()]


@pytest.fixture
def job(network: Network, data: Path, tmp_path: Path) -> Iterator[Any]:
    made = Job(network, data, tmp_path)
    made.start(0)
    made.start(1)
    harness.wait_for(lambda: made.once.exists() or made.supervisors[0].poll() is not None)
    assert made.once.exists(), made.printed()
    yield made
    for process in made.supervisors.values():
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def unharmed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return alone(tmp_path_factory.mktemp("unharmed") / "run", data, EPOCHS)


def ends_as_unbroken(job: Job, unharmed: Path) -> None:
    try:
        codes = job.codes()
    except BaseException:
        print(job.printed())
        raise
    assert codes == [0, 0], job.printed()
    assert "resuming from step" in job.printed()
    assert "Traceback" not in job.printed()
    harness.assert_same(job.run_dir, unharmed)


@pytest.mark.parametrize("host", [1, slow(0)])
def test_a_killed_rank(job, unharmed, host):
    job.kill(host, "tests.chaos.worker")
    ends_as_unbroken(job, unharmed)
    assert "was killed by signal 9" in job.printed()


@pytest.mark.parametrize("host", [slow(1), slow(0)])
def test_a_killed_supervisor(job, unharmed, host):
    job.kill(host, "chaos/supervise.py")
    job.supervisors[host].wait()
    job.start(host)
    ends_as_unbroken(job, unharmed)


@pytest.mark.slow
def test_a_host_that_is_lost_for_good(job, unharmed):
    job.network.hosts[1].end()
    job.wait_for("was lost with its node")
    assert job.supervisors[0].wait() == 0, job.printed()
    assert "supervise: 2 processes (2 on hosta)" in job.printed()
    harness.assert_same(job.run_dir, unharmed)


@pytest.mark.parametrize("host", [slow(1), slow(0)])
def test_a_lost_host_that_is_replaced(job, unharmed, host):
    job.network.on_switch("link", "del", job.network.hosts[host].name)  # No process can say that it ends.
    job.network.hosts[host].end()
    job.wait_for("was lost with its node" if host else "lost node 0")
    job.network.hosts[host] = Host(job.network, host + 1)
    job.start(host)
    ends_as_unbroken(job, unharmed)
    assert "(2 on hosta, 2 on hostb)" in job.printed()


@pytest.mark.slow
def test_a_cut_cable(job, unharmed):
    job.network.hosts[1].cut()
    job.wait_for("restarting from the newest saved state")
    job.network.hosts[1].mend()
    ends_as_unbroken(job, unharmed)
