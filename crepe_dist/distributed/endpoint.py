"""Address of rank 0: reading it from the environment, listening at it, and reporting to it.

Rank 0 listens at ``MASTER_ADDR`` and ``MASTER_PORT`` (torchrun's names). The ranks of a job meet there
(``rendezvous.py``), and so do the supervisors of a job on several nodes.
"""

import errno
import ipaddress
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from crepe_dist import invocation
from crepe_dist.distributed import channel
from crepe_dist.distributed.caller_listener import MAX_UNKNOWN_CALLERS, POLL_SECONDS, raise_resource_error
from crepe_dist.distributed.channel import REQUEST_SECONDS, Channel, Message, Schema
from crepe_dist.distributed.handshake import SECRET_ENV, LocalProcess, introduce
from crepe_dist.distributed.launch import LauncherEnv
from crepe_dist.errors import ExitCode, UserError

ADDRESS_ENV, PORT_ENV, SECONDS_ENV = "MASTER_ADDR", "MASTER_PORT", "CREPE_DIST_RENDEZVOUS_SECONDS"
DEFAULT_PORT, DEFAULT_SECONDS = "29500", "300"  # Values of MASTER_PORT and of the time limit if they are not set.
LOOPBACK = ("127.0.0.1", "localhost")
NOTE_SECONDS = 10.0  # A rank that has waited for this number of seconds prints what it is waiting for.
T = TypeVar("T")


def is_place(value: Any) -> bool:
    """Return whether the value is an IPv4 address and a port, such as ``"10.0.0.1:29500"``."""
    with suppress(ValueError, AttributeError):
        host, port = value.split(":")
        return bool(ipaddress.IPv4Address(host)) and 0 < int(port) < 65536
    return False


# Answer of rank 0 to the report of a process. It contains an error that the process must raise, and its exit code; or
# null, the place at which each rank listens, and a token for the connections between the ranks.
VERDICT_SCHEMA: Schema = {
    "error": lambda value: value is None or (isinstance(value, list) and [*map(type, value)] == [str] * 3),
    "code": lambda value: type(value) is int and value in list(ExitCode),
    "places": lambda value: isinstance(value, list) and all(map(is_place, value)),
    "token": channel.string_check(64),
}


@dataclass(frozen=True)
class Endpoint:
    """Address and time limit of a rendezvous."""

    host: str
    port: int
    seconds: float

    @classmethod
    def from_environment(cls, launch: LauncherEnv, environment: Mapping[str, str]) -> "Endpoint":
        """Read the address and the time limit from the environment.

        Raises:
            UserError: A value is missing or malformed, or the rank is not below the world size.
        """
        if launch.rank >= launch.size:
            what = f"this process is rank {launch.rank} of {launch.size}, but ranks count from 0"
            raise UserError(what, remedy=f"set the rank of each process, from 0 to {launch.size - 1}")
        # If all processes are on this host, no address is needed.
        host = environment.get(ADDRESS_ENV, "").strip() or LOOPBACK[0] * (launch.local_size == launch.size)
        if not host:
            raise UserError(
                f"{launch.launcher} started {launch.size} processes, and {ADDRESS_ENV} is not set",
                "all processes connect to rank 0, at an address and port of its host",
                f"export {ADDRESS_ENV}=<name or address of rank 0's host> {PORT_ENV}={DEFAULT_PORT} "
                f"(launch/ and docs/how-to/ show where), or, on one host, "
                f"start with `{invocation.command_line('supervise')} -np {launch.size} …`",
                on_all_ranks=True,
            )
        port = _parse_number(PORT_ENV, environment.get(PORT_ENV, "").strip() or DEFAULT_PORT, 65536)
        return cls(host, int(port), read_time_limit(environment))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Return whether all processes must be on this host."""
        return self.host in LOOPBACK

    def listen(self, address: str, port: int, callers: int) -> socket.socket:
        """Listen at an address of this host.

        If the address is a loopback address, but processes may be on other hosts, listen on all network interfaces.
        Debian resolves a host's own name to a loopback address, which other hosts cannot reach.
        """
        listen_address = "" if is_unspecific(address) and not self.is_local else address
        return socket.create_server((listen_address, port), backlog=callers + MAX_UNKNOWN_CALLERS)


def is_unspecific(address: str) -> bool:
    """Return whether other hosts cannot use the address, because it is a loopback address or means all addresses."""
    return address.startswith(("127.", "0.0.0.0"))


def read_time_limit(environment: Mapping[str, str]) -> float:
    """Read the time limit of a rendezvous from the environment, in seconds.

    Raises:
        UserError: The value is malformed.
    """
    return _parse_number(SECONDS_ENV, environment.get(SECONDS_ENV, "").strip() or DEFAULT_SECONDS, 1e6)


def _parse_number(name: str, value: str, limit: float) -> float:
    with suppress(ValueError):
        if 1 <= (number := float(value)) < limit and (name != PORT_ENV or number.is_integer()):
            return number
    raise UserError(f"{name} is {value!r}", remedy=f"set it to a number from 1 to {limit - 1:.0f}", on_all_ranks=True)


def report_to_rank0(
    endpoint: Endpoint, address: str, own: LocalProcess, message: Message, seconds: float = REQUEST_SECONDS
) -> tuple[Channel, Message]:
    """Send rank 0 a message. Return the channel and the verdict of rank 0.

    Args:
        address: IP address of rank 0.
        seconds: Time limit for the verdict.

    Raises:
        UserError: Rank 0 has sent an error. Its code is ``PEER_GONE`` if all processes raise the same error.
        UnknownPeerError, OSError: Rank 0 does not answer, or refuses this process.
    """
    peer = socket.create_connection((address, endpoint.port), REQUEST_SECONDS)
    opened, verdict = introduce(peer, own, 0, message, VERDICT_SCHEMA, seconds)
    if verdict["error"] is not None:
        peer.close()
        code = verdict["code"]
        raise UserError(*verdict["error"], on_all_ranks=code == ExitCode.PEER_GONE, code=code)
    return opened, verdict


def make_verdict(
    error: Sequence[str] | None = None, code: int = ExitCode.DONE, places: Sequence[str] = (), token: str = ""
) -> Message:
    """Return the answer to the report of a process; see ``VERDICT_SCHEMA``."""
    return {"error": error, "code": int(code), "places": places, "token": token}


def retry(endpoint: Endpoint, own: LocalProcess, action: Callable[[str], T]) -> T:
    """Call ``action`` with the IP address of rank 0 until it succeeds, and return its result.

    The action of rank 0 is to listen. The name of its host may be resolvable only after its machine has started, or may
    still resolve to another host. The action of the others is to report to rank 0. If rank 0 ends before all ranks have
    arrived, it may be restarted.

    Raises:
        UserError: The action does not succeed within the time limit, or rank 0 refuses this process.
    """
    deadline, first = Deadline(own, endpoint.seconds), f"{own.kind} 0"
    while True:
        try:
            return action(socket.gethostbyname(endpoint.host))
        except channel.RefusedError as error:
            # The secret of the other process is unknown, so name both possible causes.
            difference = "is set to another value there, or not" if own.secret else "is not set here"
            raise UserError(
                f"{first} at {endpoint} refused this process, {own} on {socket.gethostname()}",
                f"{error}: {SECRET_ENV} {difference}",
                f"set the same {SECRET_ENV} for all processes of the job, and a different {PORT_ENV} for each job "
                "on one host",
            ) from error
        except (OSError, ValueError) as error:
            raise_resource_error(error)
            number, text = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
            why = f"{endpoint.host}: {text or error}"
            if number == errno.EADDRNOTAVAIL:
                why = f"{endpoint.host} is not an address of {socket.gethostname()}, where {own} was started"
            may_change = own.rank > 0 or isinstance(error, socket.gaierror) or number == errno.EADDRNOTAVAIL
        if deadline.is_over(why) or not may_change:
            what = f"{own} cannot listen" if own.rank == 0 else f"{first} did not answer within {endpoint.seconds:g} s"
            raise UserError(
                f"{what} at {endpoint} ({ADDRESS_ENV}, {PORT_ENV})",
                why,
                f"set {ADDRESS_ENV} to a name of {first}'s host and {PORT_ENV} to a port that is free there, check the "
                f"output of {first}, and allow TCP; {SECONDS_ENV} sets the time limit",
                code=ExitCode.ERROR if own.rank == 0 else ExitCode.PEER_GONE,
            )
        time.sleep(POLL_SECONDS)


def listen_as_rank0(endpoint: Endpoint, own: LocalProcess) -> socket.socket:
    """Listen at the address of rank 0, as ``retry`` describes."""
    return retry(endpoint, own, lambda address: endpoint.listen(address, endpoint.port, own.size))


def warn_without_secret(own: LocalProcess, hosts: Sequence[str]) -> None:
    """Print a warning if there is no secret, and an address of ``hosts`` is not a loopback address."""
    if not own.secret and not all(map(is_unspecific, hosts)):
        own.log(f"warning: {SECRET_ENV} is not set, so an attacker could replace a process (docs/how-to/many-hosts.md)")


@dataclass
class Deadline:
    """Time limit of a waiting rank. It starts when the object is created."""

    own: LocalProcess
    seconds: float
    _has_printed: bool = False
    _start: float = field(default_factory=time.monotonic)

    def is_over(self, why: str) -> bool:
        """Return whether the time limit has passed. Print ``why`` at the first call after ``NOTE_SECONDS``."""
        waited = time.monotonic() - self._start
        if waited >= NOTE_SECONDS and not self._has_printed:
            self._has_printed = True
            self.own.log(f"waiting, {self.seconds:g} s at most: {why}")
        return waited >= self.seconds
