"""Processes on two hosts train the same as the same number of processes on one host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.chaos import harness
from tests.chaos.harness import slow
from tests.conftest import PAPER
from tests.multihost.network import Network
from tests.multihost.runs import command, on_one_host, run

CREPE: tuple[str, ...] = ()  # the default


@pytest.mark.parametrize(
    ("launcher", "network_of"),
    [
        ("supervise", CREPE),
        slow("supervise", PAPER),
        slow("horovodrun", CREPE),
        slow("horovodrun", PAPER),
    ],
)
def test_two_hosts_train_what_one_does(
    launcher: str, network_of: tuple[str, ...], data: Path, tmp_path: Path, network: Network
) -> None:
    """Sums take another route (sockets instead of shared memory), so they may be rounded in another way."""
    one = on_one_host(tmp_path / "one", data, 4, *network_of)
    two = tmp_path / "two"
    code, printed = run(network, command(launcher, two, data, 2, *network_of), tmp_path)
    assert code == 0, printed
    assert "4 processes" in printed
    assert "gradients summed by shared memory and Horovod" in printed
    mine, theirs = harness.steps(two), harness.steps(one)
    assert [step for step, _ in mine] == [step for step, _ in theirs] == list(range(1, harness.STEPS + 1))
    assert np.std([loss for _, loss in theirs]) > 2e-4  # batches of other documents would show
    assert [loss for _, loss in mine] == pytest.approx([loss for _, loss in theirs], abs=1e-5)
    weights = harness.result(one)
    assert harness.result(two).keys() == weights.keys()
    for name, array in harness.result(two).items():
        np.testing.assert_allclose(array, weights[name], rtol=0, atol=1e-5, err_msg=name)
