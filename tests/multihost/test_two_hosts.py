"""Processes on two hosts end with the bits of a single process; cut cables, slow hosts, and hosts that differ."""

import re
import shutil
from pathlib import Path

import pytest

import crepe_dist
from crepe_dist.errors import ExitCode
from tests.chaos import harness
from tests.chaos.harness import slow
from tests.conftest import PAPER, needs_kernels
from tests.multihost.conftest import Run
from tests.multihost.network import SECOND_NET, Network, needs_namespaces

pytestmark = [pytest.mark.multihost, needs_namespaces]
CREPE: tuple[str, ...] = ()  # the default
PACKAGE = Path(crepe_dist.__file__).parent
EPOCHS = "--epochs=8"


def alone(run_dir: Path, data: Path, *more: str) -> Path:
    """Run of one process. Other runs are compared with it."""
    code, printed = harness.finish(harness.start(harness.command(run_dir, data, 1, *more), run_dir.parent))
    assert code == 0, printed
    return run_dir


@needs_kernels
@pytest.mark.parametrize("network_of", [CREPE, slow(PAPER)])
def test_two_hosts_train_what_one_process_does(
    network_of: tuple[str, ...], data: Path, tmp_path: Path, network: Network
) -> None:
    code, printed = Run(network, tmp_path / "two", data, 2, *network_of).end()
    assert code == 0, printed
    assert "4 processes" in printed
    assert "gradients summed by shared memory and TCP" in printed
    assert printed.count("[rank 0] warning: CREPE_DIST_SECRET is not set") == 1
    harness.assert_same(tmp_path / "two", alone(tmp_path / "one", data, *network_of))


@needs_kernels
def test_training_uses_the_named_network(data: Path, tmp_path: Path, network: Network, monkeypatch) -> None:
    for number, host in enumerate(network.hosts, 1):
        host.plug("eth1", f"second{number}", f"{SECOND_NET}.{number}")
    monkeypatch.setenv("CREPE_DIST_SOCKET_IFNAME", "eth1")
    code, printed = Run(network, tmp_path / "two", data, 1).end()
    assert code == 0, printed
    assert f"[rank 0] TCP addresses: hosta {SECOND_NET}.1 and hostb {SECOND_NET}.2\n" in printed
    first, second = (network.hosts[1].sent_bytes(interface) for interface in ("eth0", "eth1"))
    assert first < 50_000 < 1_000_000 < second


def at_step_30(data: Path, folder: Path, network: Network) -> Run:
    """Training on both hosts in the folder ``run`` that has reached step 30. Rank 0 then creates the file ``once``."""
    once = folder / "once"
    plan = {"kind": "mark", "rank": 0, "phase": "train", "step": 30, "once": str(once)}
    run = Run(network, folder / "run", data, 1, EPOCHS, plan=plan)
    harness.wait_for(lambda: once.exists() or run.code is not None)
    assert run.code is None, run.printed
    return run


@pytest.fixture(scope="module")
def unharmed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return alone(tmp_path_factory.mktemp("unharmed") / "run", data, EPOCHS)


def test_a_suspended_process_of_another_host_is_named(data: Path, tmp_path: Path, network: Network) -> None:
    plan = {"kind": "SIGSTOP", "rank": 1, "phase": "train", "step": 15, "once": str(tmp_path / "once")}
    code, printed = Run(network, tmp_path / "run", data, 1, EPOCHS, plan=plan).end()
    assert code == ExitCode.HUNG, printed
    assert re.search(r"why: this rank waits for a message from rank 1 on hostb \(pid \d+\)", printed), printed


@pytest.mark.slow
def test_the_cable_is_cut(data: Path, tmp_path: Path, network: Network, unharmed: Path) -> None:
    """Training ends. After the repair, the same command resumes it."""
    run = at_step_30(data, tmp_path, network)
    network.hosts[1].cut()
    run.wait_for(r"error: no progress for \d+ s at step \d+ \(train\)")
    code, printed = run.end()
    assert code != 0, printed
    network.hosts[1].mend()
    code, printed = Run(network, tmp_path / "run", data, 1, EPOCHS).end()
    assert code == 0, printed
    assert "resuming from step" in printed
    harness.assert_same(tmp_path / "run", unharmed)


def test_a_host_that_is_not_like_the_other(data: Path, tmp_path: Path, network: Network) -> None:
    out = network.folder / "package"
    shutil.copytree(PACKAGE, out)
    with (out / "version.py").open("a") as stream:
        stream.write("# another line\n")
    network.hosts[1].replace(PACKAGE, out)
    code, printed = Run(network, tmp_path / "run", data, 1).end()
    assert code == 1, printed
    for text in ("the processes disagree on the installed packages", "(host hostb) has crepe_dist's sources"):
        assert printed.count(text) == 1, printed
    assert not (tmp_path / "run" / "result.json").exists()
