"""Choice of the network in which a rank listens for the connections of other ranks."""

import array
import fcntl
import ipaddress
import socket
import struct
from contextlib import suppress

from crepe_dist.errors import UserError

INTERFACE_ENV = "CREPE_DIST_SOCKET_IFNAME"
SIOCGIFCONF = 0x8912  # Request to the Linux kernel for the IPv4 addresses of all interfaces (netdevice(7)).
IFCONF_STRUCT = struct.Struct("iP")  # Size and address of an array of ``IFREQ_STRUCT``.
IFREQ_STRUCT = struct.Struct("16s4x4s16x")  # Name and IPv4 address of an interface.
MAX_ADDRESSES = 1024  # Maximum number of addresses that are read.


def find_address(network: str, rank0_address: str) -> str:
    """Return the IPv4 address of this host at which the other ranks connect.

    Args:
        network: Interface of this host, such as ``ib0``, or subnet, such as ``10.1.0.0/16``. If it is empty, the
            address is that of the network that leads to rank 0.
        rank0_address: IPv4 address of rank 0.

    Raises:
        UserError: The interface does not exist or has no address, or no address is in the subnet.
        OSError: No network leads to rank 0.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        if not network:
            probe.connect((rank0_address, 1))  # This sends nothing: the kernel only selects an address of this host.
            return str(probe.getsockname()[0])
        data = array.array("B", bytes(IFREQ_STRUCT.size * MAX_ADDRESSES))
        answer = fcntl.ioctl(probe, SIOCGIFCONF, IFCONF_STRUCT.pack(len(data), data.buffer_info()[0]))
    entries = IFREQ_STRUCT.iter_unpack(data.tobytes()[: IFCONF_STRUCT.unpack(answer)[0]])
    # A name may end with the label of an additional address, such as ":1".
    pairs = [(name.split(b"\0")[0].decode().split(":")[0], socket.inet_ntoa(address)) for name, address in entries]
    pairs = [(name, address) for name, address in pairs if not ipaddress.IPv4Address(address).is_loopback]
    for name, address in pairs:
        if name == network or _is_in_subnet(address, network):
            return address
    has_interface = network in [name for _, name in socket.if_nameindex()]
    raise UserError(
        f"{INTERFACE_ENV} is {network!r}, but {socket.gethostname()} has "
        + ("no IPv4 address there that other hosts can reach" if has_interface else "no such interface or subnet"),
        f"its interfaces are {', '.join(f'{name} ({address})' for name, address in pairs) or 'only loopback'}",
        f"set {INTERFACE_ENV} to one of them or to a subnet such as 10.1.0.0/16, or unset it",
    )


def _is_in_subnet(address: str, subnet: str) -> bool:
    with suppress(ValueError):
        return ipaddress.IPv4Address(address) in ipaddress.IPv4Network(subnet, strict=False)
    return False
