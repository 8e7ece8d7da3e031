"""Network interfaces of this host, and their addresses."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from contextlib import suppress

from crepe_dist.errors import UserError

SIOCGIFADDR = 0x8915
LOOPBACK = "lo"
INTERFACE = "HOROVOD_GLOO_IFACE"


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
