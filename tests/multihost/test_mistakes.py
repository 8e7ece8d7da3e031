"""Unusable or differing hosts: an error names the host and the remedy."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import crepe_dist
from tests.chaos.harness import slow
from tests.multihost.network import Network, make_key
from tests.multihost.runs import command, run

PACKAGE = Path(crepe_dist.__file__).parent
BOTH = ("hosta", "hostb")


def nothing(network: Network, data: Path) -> None:
    pass


def no_key(network: Network, data: Path) -> None:
    other = network.folder / "other"
    make_key(other)
    network.hosts[0].replace(network.key, other)
    network.hosts[0].replace(network.key.with_suffix(".pub"), other.with_suffix(".pub"))


def other_key_of_the_host(network: Network, data: Path) -> None:
    first, second = (line.split() for line in network.known.read_text().splitlines())
    other = network.folder / "other"
    other.write_text(" ".join([second[0], *first[1:]]) + "\n")
    network.hosts[0].replace(network.known, other)


def no_python(network: Network, data: Path) -> None:
    network.hosts[1].hide(Path(sys.executable).parent)


def no_package(network: Network, data: Path) -> None:
    network.hosts[1].hide(PACKAGE)


@pytest.mark.parametrize(
    ("fault", "hosts", "why", "remedy"),
    [
        (nothing, ("hosta", "hostx"), "Could not resolve hostname hostx", "correct -H"),
        (no_key, BOTH, "Permission denied (publickey)", "ssh-copy-id hostb"),
        (other_key_of_the_host, BOTH, "Host key verification failed", "ssh hostb true"),
        (no_python, BOTH, f"{sys.executable}: No such file or directory", "the same checkout at the same path"),
        (no_package, BOTH, "No module named", "the same checkout at the same path"),
    ],
)
def test_a_host_that_only_a_person_can_make_usable(
    fault: Callable[[Network, Path], None],
    hosts: tuple[str, str],
    why: str,
    remedy: str,
    data: Path,
    tmp_path: Path,
    network: Network,
) -> None:
    """Fail at once: waiting or training without the host would hide a mistake."""
    fault(network, data)
    code, printed = run(network, command("supervise", tmp_path / "run", data, 1, hosts=hosts), tmp_path)
    assert code == 1, printed
    assert f"error: {hosts[1]} cannot be used\n  why: " in printed
    assert why in printed
    assert remedy in printed
    assert "Traceback" not in printed
    assert "generation" not in printed


def no_interface(network: Network, data: Path) -> None:
    host = network.hosts[1]
    host.ip("link", "set", "eth0", "down")
    host.ip("link", "set", "eth0", "name", "net7")
    host.ip("link", "set", "net7", "up")


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
    (no_interface, ["--interface eth0: no IPv4 address on hostb", "choose one of lo, net7"]),
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
    code, printed = run(network, command("supervise", tmp_path / "runs" / "run", data, 1), tmp_path)
    assert code == 1, printed
    for text in expected:
        assert printed.count(text) == 1, printed
    assert "restarting" not in printed
    assert not (tmp_path / "runs" / "run" / "result.json").exists()


@pytest.mark.slow
def test_a_host_that_may_yet_come(data: Path, tmp_path: Path, network: Network) -> None:
    """Without sshd it is as good as switched off."""
    network.hosts[1].end_sshd()
    code, printed = run(network, command("supervise", tmp_path / "run", data, 1), tmp_path)
    refused = "ssh: connect to host hostb port 22: Connection refused"
    assert f"no answer from hostb ({refused}); continuing without" in printed
    assert code == 0, printed
