"""Hosts of a group, and the placement of its processes on them."""

from __future__ import annotations

import fcntl
import ipaddress
import re
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from crepe_dist.errors import UserError

# Neither user nor host may start with a dash: ssh would take it for an option.
NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9._-]*")
SIOCGIFADDR = 0x8915
LOOPBACK = "lo"


@dataclass(frozen=True)
class Host:
    name: str
    slots: int
    local: bool = True


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


def parse_hosts(text: str) -> list[Host]:
    """Parse ``host:slots,host:slots``; without a number, a host has one slot.

    Raises:
        UserError: a malformed name or number, or a host given twice.
    """
    hosts: list[Host] = []
    for part in text.split(","):
        name, colon, number = part.strip().partition(":")
        if not NAME.fullmatch(name) or (colon and not (number.isascii() and number.isdigit() and int(number) > 0)):
            raise UserError(f"--hosts: {part!r} is not host:slots", remedy="give for instance --hosts node1:4,node2:4")
        host = Host(name, int(number) if colon else 1, is_local(name))
        if any(host.name == other.name or (host.local and other.local) for other in hosts):
            raise UserError(f"--hosts: {name} is given twice", remedy="give each machine once, with all its slots")
        hosts.append(host)
    return hosts


def is_local(name: str) -> bool:
    return name in ("localhost", "127.0.0.1", socket.gethostname(), socket.gethostname().split(".")[0])


def interface_address(name: str, option: str = "--interface") -> str:
    """Return the IPv4 address of a network interface of this machine.

    Args:
        option: the flag or variable that named it, for the message.

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
                f"{option} {name}: no IPv4 address on {socket.gethostname()}",
                error.strerror or "",
                f"choose one of {known}; with supervise, one that all hosts have",
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


def allocate(hosts: Sequence[Host], processes: int) -> list[Slot]:
    """Place up to ``processes`` processes in the hosts' slots, in order."""
    return slots_of([host.name for host in hosts for _ in range(host.slots)][:processes])


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
