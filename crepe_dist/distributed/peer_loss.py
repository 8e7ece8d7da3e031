"""Detection of a lost peer by the error that it causes, and of the host that it ran on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from crepe_dist.distributed.horovod_internals import is_lost_peer, peer_addresses
from crepe_dist.errors import PeerGone

TCP_INFO_BYTES = 8
# Offsets in struct tcp_info (linux/tcp.h) of what was sent again, and of keep-alive probes, without an acknowledgement.
UNANSWERED = slice(2, 4)
PROBE_SECONDS = 5
MOST_PROBES = 127  # the largest number; the watchdog ends a hang long before

Socket = tuple[int, str]  # descriptor, and identity as /proc names it


def is_peer_gone(error: BaseException) -> bool:
    """Return whether an error means that another process of the group was lost."""
    return isinstance(error, PeerGone) or is_lost_peer(str(error))


class Hosts:
    """Names of the group's hosts, by the addresses of their connections."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def remember(self, names: Mapping[str, str]) -> None:
        self._names = dict(names)

    @property
    def others(self) -> list[str]:
        """Names of the hosts other than this one."""
        return sorted(set(self._names.values()) - {socket.gethostname()})

    def silent(self) -> list[str]:
        """Return the hosts that acknowledge neither data nor probes: they or the network to them are gone."""
        gone = [to for _, to, info in _connections(sockets()) if any(info[UNANSWERED])]
        return self._said(gone)

    def behind(self, error: BaseException) -> list[str]:
        """Return the hosts that caused the failure of a collective, as far as that is known."""
        return self._said(peer_addresses(str(error))) or self.silent()

    def _said(self, addresses: Iterable[str]) -> list[str]:
        elsewhere = {address for address in addresses if not address.startswith("127.")}
        return sorted(
            f"{self._names[address]} ({address})" if address in self._names else address for address in elsewhere
        )


hosts = Hosts()


def sockets() -> set[Socket]:
    """Return this process's open sockets."""
    targets = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            targets.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
    return {(descriptor, target) for descriptor, target in targets if target.startswith("socket:")}


def addresses(opened: set[Socket]) -> list[str]:
    """Return this process's addresses in the connections of these sockets."""
    return sorted({address for address, _, _ in _connections(opened)})


def probe(opened: set[Socket]) -> None:
    """Let the kernel send probes on idle connections, so that a lost host is noticed also by who only receives."""
    for connection in _tcp(opened):
        with suppress(OSError):  # it was closed
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, MOST_PROBES)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _connections(opened: set[Socket]) -> Iterator[tuple[str, str, bytes]]:
    """Yield own address, peer address and the start of ``struct tcp_info`` of the TCP connections among them."""
    for connection in _tcp(opened):
        with suppress(OSError):  # it listens
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
            yield connection.getsockname()[0], connection.getpeername()[0], info


def _tcp(opened: set[Socket]) -> Iterator[socket.socket]:
    """Yield the TCP sockets of these that are still open."""
    for descriptor, _ in opened & sockets():
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            if connection.family == socket.AF_INET and connection.type == socket.SOCK_STREAM:
                yield connection
