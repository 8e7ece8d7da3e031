"""Cut cables, lost, returning and slow hosts: never a hang, and errors that name the host."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.chaos import harness
from tests.multihost.network import Network
from tests.multihost.runs import LAUNCHERS, LIMIT, Run, command, in_one_process

EPOCHS = "--training.epochs=8"
STEPS = list(range(1, 13 * 8 + 1))
SILENT = r"error: no progress for \d+ s at step \d+ \(train\)\n.*no answer from hostb \(10\.207\.31\.2\)"


def at_step_30(launcher: str, data: Path, folder: Path, network: Network, *more: str, pace: float = 0.0) -> Run:
    """Training on both hosts that has come so far; rank 0 says so by the file ``once``. The run's folder is ``run``."""
    once = folder / "once"
    plan = {"kind": "mark", "rank": 0, "phase": "train", "step": 30, "once": str(once), "pace": pace}
    run = Run(network.hosts[0], command(launcher, folder / "run", data, 1, EPOCHS, *more), folder, plan)
    harness.wait_for(lambda: once.exists() or run.process.poll() is not None, 200)
    assert run.process.poll() is None, run.printed
    run.trains()
    return run


def assert_losses(run_dir: Path, one: Path) -> None:
    """Each step stands once, as in the run that nothing happened to."""
    assert [step for step, _ in harness.steps(run_dir)] == STEPS
    harness.assert_same(run_dir, one)


@pytest.fixture(scope="module")
def unharmed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_one_process(tmp_path_factory.mktemp("unharmed") / "run", data, EPOCHS)


@pytest.mark.slow
def test_the_cable_is_cut_and_mended(data: Path, tmp_path: Path, network: Network, unharmed: Path) -> None:
    """The watchdog ends what waits for the other host; once it is mended, the run goes on as if nothing had been."""
    run = at_step_30("supervise", data, tmp_path, network)
    network.hosts[1].cut()
    run.wait_for(SILENT, run.over())
    network.hosts[1].mend()
    code, printed = run.end()
    assert code == 0, printed
    assert "restarting from the newest checkpoint" in printed
    assert_losses(tmp_path / "run", unharmed)


@pytest.mark.slow
def test_the_cable_stays_cut(data: Path, tmp_path: Path, network: Network, unharmed: Path) -> None:
    """ssh finds out, and the host that is left goes on alone."""
    run = at_step_30("supervise", data, tmp_path, network)
    network.hosts[1].cut()
    run.wait_for(SILENT, run.over())
    code, printed = run.end()
    assert code == 0, printed
    assert re.search("the agent on hostb is gone: .*hostb not responding", printed), printed
    assert "1 process (1 on hosta)" in printed
    assert_losses(tmp_path / "run", unharmed)


@pytest.mark.slow
def test_the_cable_is_cut_under_horovodrun(data: Path, tmp_path: Path, network: Network, unharmed: Path) -> None:
    """It ends with the host's name; the same command goes on once the cable is mended."""
    run = at_step_30("horovodrun", data, tmp_path, network)
    network.hosts[1].cut()
    run.wait_for(SILENT, run.over())
    code, printed = run.end(run.over())
    assert code != 0, printed
    network.hosts[1].mend()
    (tmp_path / "again").mkdir()
    arguments = command("horovodrun", tmp_path / "run", data, 1, EPOCHS)
    code, printed = Run(network.hosts[0], arguments, tmp_path / "again").end()
    assert code == 0, printed
    assert "resuming from step" in printed
    assert_losses(tmp_path / "run", unharmed)


@pytest.mark.slow
def test_a_host_goes_and_comes_back(data: Path, tmp_path: Path, network: Network, unharmed: Path) -> None:
    """Training goes on with the other, without a person, and grows again."""
    host = network.hosts[1]
    run = at_step_30("supervise", data, tmp_path, network, "--min-np=1", pace=0.25)
    host.vanish()
    run.wait_for(r"generation \d+: 1 process \(1 on hosta\)")
    assert "the agent on hostb is gone" in run.printed
    host.up()
    run.wait_for("hostb is back: asking all to save and stop")
    run.wait_for(r"generation [2-9]\d*: 2 processes \(1 on hosta, 1 on hostb\)")
    code, printed = run.end()
    assert code == 0, printed
    assert_losses(tmp_path / "run", unharmed)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_host_that_is_ten_times_slower(
    launcher: str, data: Path, tmp_path: Path, network: Network, unharmed: Path
) -> None:
    """Slow is not hung: nobody is ended for it, and the results are the same."""
    run = at_step_30(launcher, data, tmp_path, network)
    began = time.monotonic()
    with network.hosts[1].slow(10):
        code, printed = run.end(280)
    assert code == 0, printed
    assert time.monotonic() - began > LIMIT, "it was not slow for long enough to be taken for hung"
    assert "no progress" not in printed
    assert "restarting" not in printed
    assert_losses(tmp_path / "run", unharmed)
