"""Hosts of a group, and the placement of its processes on them."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from crepe_dist.errors import UserError

SIOCGIFADDR = 0x8915
LOOPBACK = "lo"
INTERFACE = "HOROVOD_GLOO_IFACE"


@dataclass(frozen=True)
class Slot:
    """Place of a process in the group. ``cross_rank`` counts the processes that have the same local rank."""

    host: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int


def interface_address(name: str) -> str:
    """Return the IPv4 address of a network interface of this machine.

    Raises:
        UserError: there is no such interface, or it has no IPv4 address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            request = struct.pack("256s", name.encode()[:15])
            answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
        except OSError as error:
            known = ", ".join(interface for _, interface in socket.if_nameindex())
            raise UserError(
                f"{INTERFACE} {name}: no IPv4 address on {socket.gethostname()}",
                error.strerror or "",
                f"choose one of {known}",
            ) from error
    return socket.inet_ntoa(answer[20:24])


def interface_of(address: str) -> str | None:
    """Return the network interface whose first IPv4 address this is; ``None`` if there is none."""
    if is_loopback(address):
        return LOOPBACK
    for _, name in socket.if_nameindex():
        with suppress(UserError):  # it has no IPv4 address
            if interface_address(name) == address:
                return name
    return None


def is_loopback(address: str) -> bool:
    return ipaddress.IPv4Address(address).is_loopback


def slots_of(names: Sequence[str]) -> list[Slot]:
    """Place processes on the hosts of these names, in the order of ranks."""
    counts = Counter(names)
    seen: Counter[str] = Counter()
    slots = []
    for rank, name in enumerate(names):
        cross = [host for host in counts if counts[host] > seen[name]]
        slots.append(Slot(name, rank, len(names), seen[name], counts[name], cross.index(name), len(cross)))
        seen[name] += 1
    return slots
