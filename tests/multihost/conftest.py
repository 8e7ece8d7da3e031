"""Runs on two emulated hosts, whose processes a scheduler starts that sets their rank and the world size."""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import harness
from tests.multihost.network import Network

LIMIT = 10.0  # Time limit of the watchdog in seconds.
PORT = "29500"


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """Two hosts, ``hosta`` and ``hostb``."""
    folder = tmp_path / "network"
    folder.mkdir()
    with Network(folder) as up:
        yield up


class Run:
    """Training with processes on each host. Their output is written to a file that tests can read meanwhile."""

    def __init__(
        self, network: Network, run_dir: Path, data: Path, slots: int, *more: str, plan: dict[str, Any] | None = None
    ) -> None:
        arguments = harness.command(run_dir, data, 1, f"--safety.watchdog-s={LIMIT}", *more)
        self._log = network.folder / "printed.txt"
        self._processes = []
        hosts = [host for host in network.hosts for _ in range(slots)]
        meeting = {"WORLD_SIZE": str(len(hosts)), "MASTER_ADDR": network.hosts[0].name, "MASTER_PORT": PORT}
        with self._log.open("w") as stream:
            for rank, host in enumerate(hosts):
                process = subprocess.Popen(
                    host.inside(*arguments),
                    cwd=network.folder,
                    env={**harness.environment(plan), **meeting, "RANK": str(rank)},
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # A process group of its own, so that signals do not reach the test.
                )
                self._processes.append(process)

    @property
    def printed(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def code(self) -> int | None:
        """Return the exit code of the first failed process, 0 if all have succeeded, or ``None`` while they run."""
        codes = [process.poll() for process in self._processes]
        return next((code for code in codes if code), 0 if None not in codes else None)

    def wait_for(self, text: str) -> None:
        harness.wait_for(lambda: re.search(text, self.printed))

    def end(self) -> tuple[int, str]:
        """Return the exit code and the output. After a failure, end the other processes, as launchers do."""
        try:
            harness.wait_for(lambda: self.code is not None)
            time.sleep(2 if self.code else 0)
            return self.code or 0, self.printed
        finally:
            for process in self._processes:
                process.kill()
                process.wait()
