"""Settings of the supervisor."""

from __future__ import annotations

from dataclasses import dataclass

from crepe_dist.distributed.hosts import LOOPBACK, Host

# Without the last two, the loss of a host's power would go unnoticed for hours.
REMOTE = (
    *("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)


@dataclass(frozen=True)
class Options:
    """Options of the supervisor.

    Args:
        processes: largest number of processes.
        hosts: hosts in the order of ranks.
        min_processes: smallest number of processes; with fewer slots, the supervisor waits for hosts.
        max_restarts: restarts after failures; preemptions do not count.
        grace: seconds between asking a worker to stop and killing it.
        interface: network interface of the rendezvous and of Gloo.
        address: IPv4 address of the interface.
        remote: command that reaches another host; the host's name and one shell command are appended.
    """

    processes: int = 1
    hosts: tuple[Host, ...] = (Host("localhost", 1),)
    min_processes: int = 1
    max_restarts: int = 10
    grace: float = 30.0
    interface: str = LOOPBACK
    address: str = "127.0.0.1"
    remote: tuple[str, ...] = REMOTE
