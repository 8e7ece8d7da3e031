"""Runs on emulated hosts, started on the first one as a user would."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.chaos import harness
from tests.conftest import launch_prefix
from tests.multihost.network import Host, Network

LIMIT = 10.0  # of the watchdog


def command(run_dir: Path, data: Path, slots: int, *more: str, hosts: Sequence[str] = ("hosta", "hostb")) -> list[str]:
    """So many processes on each of the hosts."""
    settings = (f"--safety.watchdog-s={LIMIT}", *more)
    names = ",".join(f"{host}:{slots}" for host in hosts)
    count = slots * len(hosts)
    start = launch_prefix(count)
    _, *rest = harness.command(run_dir, data, count, *settings)
    # It remembers for an hour which hosts ssh reached, and by which interface, and looks no second time.
    return [*start, "--disable-cache", *("-H", names), *rest[len(start) - 1 :]]


class Run:
    """A command that runs on a host; what it prints goes to a file, and can be read meanwhile."""

    def __init__(self, host: Host, arguments: Sequence[str], folder: Path, plan: dict[str, Any] | None = None) -> None:
        self._log = folder / "printed.txt"
        self._began = time.monotonic()
        self._took = 0.0
        with self._log.open("w") as stream:
            self.process = subprocess.Popen(
                host.inside(*arguments),
                cwd=folder,
                env=harness.environment(plan),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its signals are its own
            )

    def trains(self) -> None:
        """Note how long it took to come so far."""
        self._took = time.monotonic() - self._began

    def over(self) -> float:
        """Seconds in which a hang must have ended; more where a start takes long, as it does on a busy machine."""
        return LIMIT + max(15.0, self._took)

    @property
    def printed(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, text: str, seconds: float = 120) -> None:
        due = time.monotonic() + seconds
        while not re.search(text, self.printed):
            assert self.process.poll() is None, f"ended without {text!r}:\n{self.printed}"
            assert time.monotonic() < due, f"not within {seconds} s: {text!r}:\n{self.printed}"
            time.sleep(0.05)

    def end(self, seconds: float = 250) -> tuple[int, str]:
        """Exit code, and all that was printed."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.printed}") from None
        return code, self.printed


def run(network: Network, arguments: Sequence[str], folder: Path) -> tuple[int, str]:
    return Run(network.hosts[0], arguments, folder).end()


def in_one_process(run_dir: Path, data: Path, *more: str) -> Path:
    """The run that others are held against, on this machine."""
    started = harness.start(harness.command(run_dir, data, 1, *more), run_dir.parent)
    code, printed = harness.finish(started, 250)
    assert code == 0, printed
    return run_dir
