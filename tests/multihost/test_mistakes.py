"""Hosts that differ: an error names the host and the remedy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import crepe_dist
from tests.chaos.harness import slow
from tests.multihost.network import Network
from tests.multihost.runs import command, run

PACKAGE = Path(crepe_dist.__file__).parent


def no_own_name(network: Network, data: Path) -> None:
    first = network.hosts[0]
    names = network.folder / "names"
    names.write_text(f"127.0.0.1 localhost\n{first.address} {first.name}\n")
    network.hosts[1].replace(Path("/etc/hosts"), names)


def altered_data(network: Network, data: Path) -> None:
    """Alter one byte without updating the manifest."""
    out = network.folder / "altered"
    shutil.copytree(data, out)
    file = out / "train.codes-00000.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    network.hosts[1].replace(data, out)


def other_package(network: Network, data: Path, old: str, new: str) -> None:
    out = network.folder / "package"
    shutil.copytree(PACKAGE, out)
    file = out / "version.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    network.hosts[1].replace(PACKAGE, out)


def other_version(network: Network, data: Path) -> None:
    other_package(network, data, crepe_dist.__version__, "0.0.9")


def other_sources(network: Network, data: Path) -> None:
    other_package(network, data, "\n", " # another line\n")


SAYS = [
    (no_own_name, ["the host hostb does not know its own address", "/etc/hosts of hostb: 10.207.31.2 hostb"]),
    (altered_data, ["train.codes-00000.npy", "[only on rank 1 (host hostb), of 2]"]),
    (
        other_version,
        [
            "the processes disagree on the installed packages",
            f'rank 0 (host hosta) has crepe_dist = "{crepe_dist.__version__}"',
            'rank 1 (host hostb) has crepe_dist = "0.0.9"',
        ],
    ),
    (
        other_sources,
        ["the processes disagree on the installed packages", "(host hostb) has crepe_dist's sources"],
    ),
]


@pytest.mark.parametrize(("fault", "expected"), [case if case[0] is other_version else slow(*case) for case in SAYS])
def test_a_host_that_is_not_like_the_other(
    fault: Callable[[Network, Path], None], expected: list[str], data: Path, tmp_path: Path, network: Network
) -> None:
    fault(network, data)
    code, printed = run(network, command(tmp_path / "runs" / "run", data, 1), tmp_path)
    assert code == 1, printed
    for text in expected:
        assert printed.count(text) == 1, printed
    assert not (tmp_path / "runs" / "run" / "result.json").exists()
