"""The emulated hosts are isolated from each other and vanish with their creator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from crepe_dist.distributed import processes
from tests.chaos import harness
from tests.multihost.network import Network


def test_hosts_have_nothing_in_common_but_the_disk(network: Network, tmp_path: Path) -> None:
    first, second = network.hosts
    first.do("touch", "/dev/shm/mine")
    told = subprocess.run(
        first.inside("ssh", "-o", "BatchMode=yes", "hostb", f"hostname; ls /dev/shm {tmp_path}; ip -4 -o addr"),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    assert told.startswith("hostb\n")
    assert "mine" not in told
    assert "network" in told  # in the folder
    assert second.address in told
    assert first.address not in told
    assert not set(first.processes()) & set(second.processes())


def test_nothing_is_left_of_hosts_whose_maker_was_killed(tmp_path: Path) -> None:
    command = "ssh hostb 'sleep 1000' & touch up; sleep 1000"
    maker = subprocess.Popen(
        [sys.executable, "-m", "tests.multihost.network", "sh", "-c", command],
        cwd=tmp_path,
        env={**harness.environment(), "TMPDIR": str(tmp_path)},
    )
    harness.wait_for((tmp_path / "up").exists)
    harness.wait_for(lambda: len(_below(tmp_path)) >= 7)  # switch, hosts, sshd, shell, ssh, its session, sleep
    those = {pid: processes.start_time(pid) for pid in _below(tmp_path)}
    maker.kill()
    maker.wait()
    harness.wait_for(lambda: not any(processes.start_time(pid) == began for pid, began in those.items() if began))
    assert not _below(tmp_path)


def _below(folder: Path) -> list[int]:
    """Processes that have the folder in their environment, or on their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                found += [int(entry.name)] if str(folder).encode() in text else []
        except OSError:
            continue
    return found
