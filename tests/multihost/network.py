"""Hosts emulated on one machine by namespaces (network, processes, mounts, name).

They are joined by cables to one switch, share the disk, and have nothing else in common: not `/dev/shm` or `/proc`.
Needs root, iproute2 and util-linux.

Nothing is left behind, whatever ends pytest: the first process of a host reads a pipe of ours; at its end that process
ends, and the kernel ends all others of the host with it and takes its network and mounts away.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.needs import needs, which

NET = "10.207.31"
SECOND_NET = "10.207.32"
NAMES = ("hosta", "hostb")
NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")
# The host lives until its standard input is closed. The shell must not exec, because it also reaps orphans.
FIRST = """set -e
mount -t tmpfs none /dev/shm
mount --bind {hosts} /etc/hosts
hostname {name}
ip link set lo up
echo up
cat >/dev/null
exit
"""
SWITCH = """set -e
ip link add switch type bridge
ip link set switch up
echo up
cat >/dev/null
exit
"""


def _missing_rights() -> list[str]:
    if os.geteuid() != 0 or which("unshare") is None:
        return []  # said anyway
    refused = subprocess.run(["unshare", *NAMESPACES, "--fork", "true"], capture_output=True).returncode
    return ["the right to make namespaces"] if refused else []


needs_namespaces = needs("ip", "unshare", "nsenter", root=True, others=_missing_rights())


class _Space:
    """Linux namespaces that exist until their first process ends."""

    def __init__(self, kinds: Sequence[str], script: str) -> None:
        kinds = [*kinds, "--mount-proc"] if "--pid" in kinds else kinds
        self._outer = subprocess.Popen(
            ["unshare", *kinds, "--fork", "--kill-child", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._outer.stdout is not None
        assert self._outer.stdout.readline() == "up\n"
        self.first = int(Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()[0])

    def end(self) -> None:
        """Kill all processes in the namespaces, like a power cut."""
        self._outer.kill()
        self._outer.communicate()


class Host:
    """Simulated host.

    Attributes:
        name: Host name, by which other hosts find it.
        address: IPv4 address of its interface eth0.
    """

    def __init__(self, network: "Network", number: int) -> None:
        self._network = network
        self.name = NAMES[number - 1]
        self.address = f"{NET}.{number}"
        self._space = _Space(NAMESPACES, FIRST.format(hosts=network.hosts_file, name=self.name))
        self.plug("eth0", self.name, self.address)

    def plug(self, interface: str, port: str, address: str = "") -> None:
        """Connect a new interface of this host to a new port of the switch."""
        _run("ip", "link", "add", interface, "netns", str(self._space.first), "type", "veth",
             "peer", "name", port, "netns", str(self._network.switch.first))  # fmt: skip
        self._network.on_switch("link", "set", port, "up")
        self._network.on_switch("link", "set", port, "master", "switch")
        if address:
            _run(*self.inside("ip", "addr", "add", f"{address}/24", "dev", interface))
        _run(*self.inside("ip", "link", "set", interface, "up"))

    def cut(self) -> None:
        """Unplug the cable at the switch."""
        self._network.on_switch("link", "set", self.name, "down")

    def mend(self) -> None:
        self._network.on_switch("link", "set", self.name, "up")

    def inside(self, *command: str) -> list[str]:
        """Return the command line that runs a command on this host."""
        return ["nsenter", "--target", str(self._space.first), *NAMESPACES, "--wd=.", *command]

    def replace(self, path: Path, by: Path) -> None:
        """Mount another file or folder over a path, on this host only."""
        _run(*self.inside("mount", "--bind", str(by), str(path)))

    def end(self) -> None:
        self._space.end()


class Network:
    """Virtual switch that connects the hosts of ``NAMES``. The folder must be empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts_file = folder / "hosts"
        self.hosts_file.write_text(
            "127.0.0.1 localhost\n" + "".join(f"{NET}.{n} {x}\n" for n, x in enumerate(NAMES, 1))
        )
        self.switch = _Space(("--net",), SWITCH)
        self.hosts: list[Host] = []

    def on_switch(self, *words: str) -> None:
        _run("nsenter", "--target", str(self.switch.first), "--net", "ip", *words)

    def __enter__(self) -> "Network":
        try:
            self.hosts += [Host(self, number) for number in range(1, len(NAMES) + 1)]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.end()
        self.switch.end()


def _run(*words: str) -> None:
    subprocess.run(words, check=True)
