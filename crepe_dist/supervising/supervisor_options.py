"""Settings of the supervisor."""

from __future__ import annotations

from dataclasses import dataclass

from crepe_dist.distributed.hosts import LOOPBACK, Host

# Without the last two, a host that loses its power would be missed only after hours.
REMOTE = (
    *("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)


@dataclass(frozen=True)
class Options:
    """What the supervisor is told.

    Args:
        processes: at most.
        hosts: in the order of ranks.
        min_processes: with fewer it waits for hosts.
        max_restarts: after failures; preemptions are free.
        grace: seconds between asking to stop and killing.
        interface: network interface of the rendezvous and of Gloo.
        address: its IPv4 address.
        remote: the command that reaches another host; the host's name and one string are appended.
    """

    processes: int = 1
    hosts: tuple[Host, ...] = (Host("localhost", 1),)
    min_processes: int = 1
    max_restarts: int = 10
    grace: float = 30.0
    interface: str = LOOPBACK
    address: str = "127.0.0.1"
    remote: tuple[str, ...] = REMOTE
