"""Two hosts, each a network namespace of its own, joined by a cable that is cut; needs root and iproute2."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import harness
from tests.chaos.test_supervised import supervise

LIMIT = 5.0
ETC = Path("/etc/netns")  # what `ip netns exec` lays over /etc
SHELL = """#!/bin/sh
# As ssh host command: the host is a network namespace.
host=$1; shift
exec ip netns exec {prefix}$host unshare --uts sh -c "hostname $host; $1"
"""


class Cable:
    """Between the namespaces ``<prefix>hosta`` and ``<prefix>hostb``; the interface is eth0 in both."""

    def __init__(self) -> None:
        self.prefix = f"crepe{os.getpid()}-"
        self.names = (f"{self.prefix}hosta", f"{self.prefix}hostb")

    def lay(self) -> None:
        # Horovod asks for the address of a host by the host's own name, also where an interface is given.
        hosts = "127.0.0.1 localhost\n" + "".join(f"10.207.31.{n} host{'ab'[n - 1]}\n" for n in (1, 2))
        for name in self.names:
            ip("netns", "add", name)
            (ETC / name).mkdir(parents=True)
            (ETC / name / "hosts").write_text(hosts)
        first, second = self.names
        ip("-n", first, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", second)
        for number, name in enumerate(self.names, 1):
            ip("-n", name, "addr", "add", f"10.207.31.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")

    def cut(self) -> None:
        ip("-n", self.names[1], "link", "set", "eth0", "down")

    def mend(self) -> None:
        ip("-n", self.names[1], "link", "set", "eth0", "up")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False)
            shutil.rmtree(ETC / name, ignore_errors=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    laid = Cable()
    try:
        laid.lay()
        yield laid
    finally:
        laid.remove()


@harness.needs("ip", root=True)
@pytest.mark.slow
def test_the_cable_is_cut_and_mended(data: Path, tmp_path: Path, cable: Cable) -> None:
    """The watchdog ends what waits for the other host; once it is mended, the run goes on as if nothing had been."""
    shell = tmp_path / "rsh"
    shell.write_text(SHELL.format(prefix=cable.prefix))
    shell.chmod(0o755)
    settings = (
        *("--model.dropout=0", "--optimizer.name=sgd", "--optimizer.learning_rate=0.001"),
        *("--model.precision=float32", "--training.epochs=20", "--checkpoint.keep_last=1"),
    )
    code, printed = harness.run(harness.command(tmp_path / "one", data, 1, *settings), tmp_path)
    assert code == 0, printed
    run_dir = tmp_path / "run"
    flags = ("-H", "hosta:1,hostb:1", "--rsh", str(shell), "--interface", "eth0")
    plan = {"kind": "mark", "rank": 0, "phase": "train", "step": 30, "once": str(tmp_path / "once")}
    arguments = supervise(run_dir, data, 2, *settings, f"--safety.watchdog_s={LIMIT}", flags=flags)
    process = harness.start(["ip", "netns", "exec", cable.names[0], *arguments], tmp_path, plan)
    try:
        harness.wait_for(lambda: (tmp_path / "once").exists() or process.poll() is not None)
        cable.cut()
        cut = time.monotonic()
        stacks = [run_dir / "stacks" / f"rank_{rank}.txt" for rank in range(2)]
        harness.wait_for(lambda: any("no progress for" in path.read_text() for path in stacks), LIMIT + 15)
        assert time.monotonic() - cut < LIMIT + 15
        cable.mend()
        code, printed = harness.finish(process, 150)
    finally:
        if process.poll() is None:
            process.terminate()
            harness.finish(process)
    assert code == 0, printed
    assert re.search(r"error: no progress for \d+ s at step \d+", printed), printed
    assert "starting again from the newest checkpoint" in printed
    assert [step for step, _ in harness.steps(run_dir)] == list(range(1, 13 * 20 + 1))
    mine, theirs = ([loss for _, loss in harness.steps(folder)] for folder in (run_dir, tmp_path / "one"))
    assert mine == pytest.approx(theirs, abs=1e-4)
