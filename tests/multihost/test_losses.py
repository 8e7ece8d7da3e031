"""Cut cables and slow hosts: never a hang, and errors that name the host."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.chaos import harness
from tests.multihost.network import Network
from tests.multihost.runs import LIMIT, Run, command, in_one_process

EPOCHS = "--epochs=8"
STEPS = list(range(1, 13 * 8 + 1))
SILENT = r"error: no progress for \d+ s at step \d+ \(train\)"


def at_step_30(data: Path, folder: Path, network: Network) -> Run:
    """Training on both hosts that has come so far; rank 0 says so by the file ``once``. The run's folder is ``run``."""
    once = folder / "once"
    plan = {"kind": "mark", "rank": 0, "phase": "train", "step": 30, "once": str(once)}
    run = Run(network.hosts[0], command(folder / "run", data, 1, EPOCHS), folder, plan)
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
def test_the_cable_is_cut(data: Path, tmp_path: Path, network: Network, unharmed: Path) -> None:
    """It ends; the same command goes on once the cable is mended."""
    run = at_step_30(data, tmp_path, network)
    network.hosts[1].cut()
    run.wait_for(SILENT, run.over())
    code, printed = run.end(run.over())
    assert code != 0, printed
    network.hosts[1].mend()
    (tmp_path / "again").mkdir()
    arguments = command(tmp_path / "run", data, 1, EPOCHS)
    code, printed = Run(network.hosts[0], arguments, tmp_path / "again").end()
    assert code == 0, printed
    assert "resuming from step" in printed
    assert_losses(tmp_path / "run", unharmed)


@pytest.mark.slow
def test_a_host_that_is_ten_times_slower(data: Path, tmp_path: Path, network: Network, unharmed: Path) -> None:
    """Slow is not hung: nobody is ended for it, and the results are the same."""
    run = at_step_30(data, tmp_path, network)
    began = time.monotonic()
    with network.hosts[1].slow(10):
        code, printed = run.end(280)
    assert code == 0, printed
    assert time.monotonic() - began > LIMIT, "it was not slow for long enough to be taken for hung"
    assert "no progress" not in printed
    assert_losses(tmp_path / "run", unharmed)
