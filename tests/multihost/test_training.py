"""Processes on two hosts end with the bits of a single process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import harness
from tests.chaos.harness import slow
from tests.conftest import PAPER, needs_kernels
from tests.multihost.network import Network
from tests.multihost.runs import command, in_one_process, run

CREPE: tuple[str, ...] = ()  # the default


@needs_kernels
@pytest.mark.parametrize("network_of", [CREPE, slow(PAPER)])
def test_two_hosts_train_what_one_process_does(
    network_of: tuple[str, ...], data: Path, tmp_path: Path, network: Network
) -> None:
    two = tmp_path / "two"
    code, printed = run(network, command(two, data, 2, *network_of), tmp_path)
    assert code == 0, printed
    assert "4 processes" in printed
    assert "gradients summed by shared memory and Horovod" in printed
    harness.assert_same(two, in_one_process(tmp_path / "one", data, *network_of))
