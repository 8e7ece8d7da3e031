"""Hosts emulated on one machine by namespaces (network, processes, mounts, name), each with its own sshd.

They are joined by cables to one switch, share the disk, and have nothing else in common: not `/dev/shm`, `/proc`, or
`/run`. Needs root, iproute2, util-linux, openssh-server and openssh-client.

Nothing is left behind, whatever ends pytest: the first process of a host reads a pipe of ours; at its end that process
ends, and the kernel ends all others of the host with it and takes its network and mounts away.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from tests.chaos import harness
from tests.helpers.needs import needs, which

NET = "10.207.31"
NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")
SSH_CONFIG = """Host *
IdentityFile {key}
IdentitiesOnly yes
GlobalKnownHostsFile {known}
UserKnownHostsFile /dev/null
"""
SSHD_CONFIG = """ListenAddress {address}
HostKey {host_key}
PidFile none
AuthorizedKeysFile {key}.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"""
# Standard input is the pipe that the life of the host hangs on; sshd must not hold it.
FIRST = """set -e
mount -t tmpfs none /dev/shm
mount -t tmpfs none /run
mkdir /run/sshd
mount --bind {folder}/etc/hosts /etc/hosts
mount --bind {folder}/etc/ssh /etc/ssh
hostname {name}
ip link set lo up
echo up
read go
{sshd} -D -e -f {folder}/sshd_config </dev/null >{folder}/sshd.log 2>&1 &
cat >/dev/null  # not exec: the shell also takes in processes that lost their parent
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


needs_namespaces = needs("ip", "ssh", "ssh-keygen", "sshd", "unshare", "nsenter", root=True, others=_missing_rights())


class _Space:
    """Namespaces, alive until their first process ends."""

    def __init__(self, kinds: Sequence[str], script: str) -> None:
        kinds = [*kinds, "--mount-proc"] if "--pid" in kinds else kinds
        self._outer = subprocess.Popen(
            ["unshare", *kinds, "--fork", "--kill-child", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.read() == "up"
        self.first = int(Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()[0])

    def read(self) -> str:
        assert self._outer.stdout is not None
        return self._outer.stdout.readline().strip()

    def write(self, line: str) -> None:
        assert self._outer.stdin is not None
        self._outer.stdin.write(f"{line}\n")
        self._outer.stdin.flush()

    def end(self) -> None:
        """Kills all that runs in it, as a power cut does."""
        self._outer.kill()
        self._outer.communicate()


class Host:
    """An emulated host, which is up from the start.

    Attributes:
        name: that others know it by.
        address: IPv4, on its interface eth0.
    """

    def __init__(self, network: Network, number: int) -> None:
        self._network = network
        self._number = number
        self.name = f"host{'abcdefgh'[number - 1]}"
        self.address = f"{NET}.{number}"
        self._folder = network.folder / self.name
        self._write_files()
        self.up()

    def up(self) -> None:
        script = FIRST.format(folder=self._folder, name=self.name, sshd=which("sshd"))
        self._space = _Space(NAMESPACES, script)
        mac = f"02:00:00:00:00:{self._number:02x}"  # the same again: others remember it
        ip("link", "add", "eth0", "address", mac, "netns", str(self._space.first), "type", "veth",
           "peer", "name", self.name, "netns", str(self._network.switch.first))  # fmt: skip
        self._network.on_switch("link", "set", self.name, "master", "switch", "up")
        self.ip("addr", "add", f"{self.address}/24", "dev", "eth0")
        self.ip("link", "set", "eth0", "up")
        log = self._folder / "sshd.log"
        log.write_text("")
        self._space.write("go")
        harness.wait_for(lambda: "Server listening" in log.read_text())

    def cut(self) -> None:
        """Unplugs the cable, at the switch."""
        self._network.on_switch("link", "set", self.name, "down")

    def mend(self) -> None:
        self._network.on_switch("link", "set", self.name, "up")

    def inside(self, *command: str) -> list[str]:
        """The command as a process of this host."""
        return ["nsenter", "--target", str(self._space.first), *NAMESPACES, "--wd=.", *command]

    def do(self, *command: str) -> None:
        subprocess.run(self.inside(*command), check=True)

    def ip(self, *words: str) -> None:
        self.do("ip", *words)

    def processes(self) -> list[int]:
        """Ids, as we see them, of all its processes but the first."""
        mine = os.readlink(f"/proc/{self._space.first}/ns/pid")
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.readlink(entry / "ns" / "pid") == mine:
                    found.append(int(entry.name))
            except OSError:
                continue
        return [pid for pid in found if pid != self._space.first]

    def replace(self, path: Path, by: Path) -> None:
        """Another folder or file in its place, on this host alone."""
        self.do("mount", "--bind", str(by), str(path))

    @contextmanager
    def slow(self, times: int) -> Iterator[None]:
        """Within it each of its processes has one ``times``-th of its time, in slices of 20 ms."""
        over = threading.Event()

        def pace() -> None:
            while not over.is_set():
                stopped = self.processes()
                _signal(stopped, signal.SIGSTOP)
                over.wait(0.02 * (times - 1))
                _signal(stopped, signal.SIGCONT)
                time.sleep(0.02)

        thread = threading.Thread(target=pace)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def end(self) -> None:
        self._space.end()

    def _write_files(self) -> None:
        folder, network = self._folder, self._network
        (folder / "etc" / "ssh").mkdir(parents=True)
        names = "".join(f"{NET}.{n} host{'abcdefgh'[n - 1]}\n" for n in range(1, network.count + 1))
        (folder / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (folder / "etc" / "ssh" / "ssh_config").write_text(SSH_CONFIG.format(key=network.key, known=network.known))
        host_key = folder / "host_key"
        make_key(host_key)
        kind, public = (folder / "host_key.pub").read_text().split()[:2]
        with network.known.open("a") as stream:
            stream.write(f"{self.name},{self.address} {kind} {public}\n")
        (folder / "sshd_config").write_text(
            SSHD_CONFIG.format(address=self.address, host_key=host_key, key=network.key)
        )


class Network:
    """A switch and the hosts that are plugged into it; a context manager.

    Args:
        folder: an empty one, for keys and settings.
        count: of the hosts: ``hosta``, ``hostb``, …
    """

    def __init__(self, folder: Path, count: int = 2) -> None:
        self.folder = folder
        self.count = count
        self.key = folder / "key"
        self.known = folder / "known_hosts"
        make_key(self.key)
        self.switch = _Space(("--net",), SWITCH)
        self.hosts: list[Host] = []
        try:
            for number in range(1, count + 1):
                self.hosts.append(Host(self, number))
        except BaseException:
            self.close()
            raise

    def on_switch(self, *words: str) -> None:
        subprocess.run(["nsenter", "--target", str(self.switch.first), "--net", "ip", *words], check=True)

    def close(self) -> None:
        for host in self.hosts:
            host.end()
        self.switch.end()

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            continue
