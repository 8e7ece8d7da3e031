"""Address and time limit of the rendezvous, read from the environment, and the network interfaces of this host."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from crepe_dist import invocation
from crepe_dist.distributed.launch import Launch
from crepe_dist.errors import UserError

ADDRESS, PORT, SECONDS = "MASTER_ADDR", "MASTER_PORT", "CREPE_DIST_MEETING_SECONDS"
# Variables that identify a job, the same for all its processes: the default port is derived from them.
JOBS = (("SLURM_JOB_ID", "SLURM_STEP_ID"), ("PMIX_NAMESPACE",))
PORTS = range(20000, 30000)  # below the ports that Linux gives to clients
USUAL_SECONDS = "300"
SIOCGIFADDR = 0x8915
LOOPBACK = "lo"
INTERFACE = "CREPE_DIST_INTERFACE"


@dataclass(frozen=True)
class Endpoint:
    """Address and time limit of a rendezvous; ``interface`` may be empty."""

    host: str
    port: int
    interface: str
    seconds: float

    @classmethod
    def of(cls, launch: Launch, environment: Mapping[str, str]) -> Endpoint:
        """Read address and time limit from the environment.

        Raises:
            UserError: a value is missing or malformed.
        """
        if launch.rank >= launch.size:
            what = f"this process is rank {launch.rank} of {launch.size}, but ranks count from 0"
            raise UserError(what, remedy=f"give each process its rank, from 0 to {launch.size - 1}")
        # If all processes are on this host, no address is needed.
        host = environment.get(ADDRESS, "").strip() or ("127.0.0.1" if launch.local_size == launch.size else "")
        port = environment.get(PORT, "").strip() or _port_of_job(environment)
        if not (host and port):
            raise UserError(
                f"{launch.launcher} started {launch.size} processes, and {PORT if host else ADDRESS} is not set",
                "the processes meet at the host of rank 0, at a port that is free there",
                f"export {ADDRESS}=<its name or address> {PORT}=29500 (launch/ and docs/how-to/ show where), "
                f"or, on one host, start with `{invocation.typed('supervise')} -np {launch.size} …`",
                on_all_ranks=True,
            )
        number = _number(PORT, port, 65536)
        return cls(host, int(number), environment.get(INTERFACE, "").strip(), time_limit(environment))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def address(self) -> str:
        """Look up the IPv4 address, anew in each call: the name may appear only after rank 0's machine has started.

        Raises:
            OSError: the name cannot be resolved.
            UserError: there is no such interface.
        """
        address = str(socket.getaddrinfo(self.host, self.port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
        if self.interface not in ("", LOOPBACK) and is_loopback(address):
            # Debian resolves a host's own name to an address that only the host itself can reach.
            return interface_address(self.interface)
        return address


def time_limit(environment: Mapping[str, str]) -> float:
    """Read the time limit from the environment, in seconds.

    Raises:
        UserError: it is malformed.
    """
    return _number(SECONDS, environment.get(SECONDS, "").strip() or USUAL_SECONDS, 1e6)


def _number(name: str, given: str, limit: float) -> float:
    with suppress(ValueError):
        if 0 < float(given) < limit:
            return float(given)
    raise UserError(f"{name} is {given!r}", remedy=f"give a number from 1 to {limit - 1:.0f}", on_all_ranks=True)


def _port_of_job(environment: Mapping[str, str]) -> str:
    for names in JOBS:
        values = [environment.get(name, "") for name in names]
        if all(values):
            return str(PORTS[zlib.crc32(".".join(values).encode()) % len(PORTS)])
    return ""


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
