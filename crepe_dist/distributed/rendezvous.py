"""Rendezvous of processes whose launcher sets only their rank and the world size.

Rank 0 listens at ``MASTER_ADDR`` and ``MASTER_PORT`` (torchrun's names). Each other rank listens at a port of its own.
It connects to rank 0, reports this port, and keeps the connection. When all ranks have reported, rank 0 sends each of
them the addresses of all ranks and a token. The ranks then connect to each other, and the token authenticates these
connections. ``CREPE_DIST_SECRET`` authenticates both ends of each connection to rank 0 (``handshake.py``). After the
rendezvous, no process listens any more.
"""

from __future__ import annotations

import errno
import os
import secrets
import select
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from crepe_dist import invocation
from crepe_dist.distributed import handshake
from crepe_dist.distributed.handshake import (
    MAX_MESSAGE_BYTES,
    MAX_UNKNOWN_CALLERS,
    POLL_SECONDS,
    SECRET_ENV,
    AuthenticatedCaller,
    CallerListener,
    Channel,
    LocalProcess,
    Message,
    RefusedError,
    Schema,
    UnknownPeerError,
)
from crepe_dist.distributed.launch import LauncherEnv
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.settings.aliases import read_variable

ADDRESS_ENV, PORT_ENV, SECONDS_ENV = "MASTER_ADDR", "MASTER_PORT", "CREPE_DIST_RENDEZVOUS_SECONDS"
DEFAULT_PORT, DEFAULT_SECONDS = "29500", "300"  # Values of MASTER_PORT and of the time limit if they are not set.
LOOPBACK = ("127.0.0.1", "localhost")
NOTE_SECONDS = 10.0  # A rank that has waited for this number of seconds prints what it is waiting for.
REQUEST_SECONDS = 5.0  # Time limit for connecting to another rank, and for its answer.
MAX_ADDRESS_BYTES = 64  # Maximum size of an address and its port in JSON.
MAX_SHOWN_RANKS = 16  # Maximum number of missing ranks in a message.
REPORT_SCHEMA: Schema = {
    "host": handshake.string_check(255),
    "pid": handshake.int_check(1, 1 << 31),
    "port": handshake.int_check(1, 65535),
}
EMPTY_SCHEMA: Schema = {}
Peers = dict[int, socket.socket]
Address = tuple[str, int]
T = TypeVar("T")


@dataclass(frozen=True)
class Endpoint:
    """Address and time limit of a rendezvous."""

    host: str
    port: int
    seconds: float

    @classmethod
    def from_environment(cls, launch: LauncherEnv, environment: Mapping[str, str]) -> Endpoint:
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

    def listen(self, address: str, port: int, callers: int) -> socket.socket:
        """Listen at an address of this host.

        If the address is a loopback address, but the host of the endpoint is not in ``LOOPBACK``, listen on all network
        interfaces. Debian resolves a host's own name to a loopback address, which other hosts cannot reach.
        """
        listen_address = "" if is_loopback(address) and self.host not in LOOPBACK else address
        return socket.create_server((listen_address, port), backlog=callers + MAX_UNKNOWN_CALLERS)


def is_loopback(address: str) -> bool:
    return address.startswith("127.")


def read_time_limit(environment: Mapping[str, str]) -> float:
    """Read the time limit of a rendezvous from the environment, in seconds.

    Raises:
        UserError: The value is malformed.
    """
    return _parse_number(SECONDS_ENV, read_variable(SECONDS_ENV, environment) or DEFAULT_SECONDS, 1e6)


def _parse_number(name: str, value: str, limit: float) -> float:
    with suppress(ValueError):
        if 1 <= (number := float(value)) < limit and (name != PORT_ENV or number.is_integer()):
            return number
    raise UserError(f"{name} is {value!r}", remedy=f"set it to a number from 1 to {limit - 1:.0f}", on_all_ranks=True)


def rendezvous(launch: LauncherEnv, environment: Mapping[str, str] = os.environ) -> Peers:
    """Wait for all processes of the job, and connect to them. Return the connection to each other rank.

    Raises:
        UserError: The address cannot be used, a process does not arrive, or the secrets differ. The attribute
            ``on_all_ranks`` of the error is True if all processes raise the same error.
    """
    endpoint = Endpoint.from_environment(launch, environment)
    own = LocalProcess(launch.rank, launch.size, handshake.read_secret(environment))
    return (_run_rank0 if launch.rank == 0 else _run_other)(endpoint, own)


def _run_rank0(endpoint: Endpoint, own: LocalProcess) -> Peers:
    """Wait for the reports of all ranks. Then send each of them the addresses of all ranks, or an error."""
    arrived: dict[int, AuthenticatedCaller] = {}
    deadline = _Deadline(own, endpoint.seconds)
    callers = CallerListener(listen_as_rank0(endpoint, own), own, range(1, own.size), REPORT_SCHEMA)
    for new_caller in callers:
        # A process whose connection is closed has ended. It may be restarted, and its new connection is then accepted.
        arrived = {rank: caller for rank, caller in arrived.items() if _is_open(caller)}
        if new_caller is not None:
            if error := _duplicate_rank_error(new_caller, own, arrived):
                _send_error(new_caller, error, ExitCode.ERROR)
            else:
                arrived[new_caller.rank] = new_caller
        if not (missing := [rank for rank in range(1, own.size) if rank not in arrived]):
            break
        shown = ", ".join(map(str, missing[:MAX_SHOWN_RANKS])) + ", …" * (len(missing) > MAX_SHOWN_RANKS)
        why = f"rank {shown} of {own.size} did not arrive at {endpoint}"
        if callers.refused_host:
            why += f"; a process on {callers.refused_host} has a different {SECRET_ENV} and was refused"
        if deadline.is_over(why):
            lines = (
                f"{len(missing)} of {own.size} processes did not arrive within {endpoint.seconds:g} s",
                f"{why}; rank 0 waited for them on {socket.gethostname()}"
                + ", which no other host can reach" * (endpoint.host in LOOPBACK),
                f"check the output of these ranks; set the same {ADDRESS_ENV}, {PORT_ENV} and {SECRET_ENV} for all "
                f"ranks; {SECONDS_ENV} sets the time limit",
            )
            for caller in arrived.values():
                _send_error(caller, lines, ExitCode.PEER_GONE)
            raise UserError(*lines, on_all_ranks=True, code=ExitCode.PEER_GONE)
    token = secrets.token_hex(32)
    addresses = [(arrived[rank].host, arrived[rank].message["port"]) for rank in sorted(arrived)]
    for caller in arrived.values():
        caller.channel.send({"error": None, "code": 0})
        caller.channel.send({"places": addresses, "token": token})
    warn_without_secret(own, [host for host, _ in addresses])
    return {rank: caller.channel.peer for rank, caller in arrived.items()}


def warn_without_secret(own: LocalProcess, hosts: Sequence[str]) -> None:
    """Print a warning if there is no secret, and an address of ``hosts`` is not a loopback address."""
    if not own.secret and not all(map(is_loopback, hosts)):
        print(
            f"[{own}] warning: {SECRET_ENV} is not set, so an attacker in the network could take the place of "
            "a process (docs/how-to/many-hosts.md)",
            file=sys.stderr,
            flush=True,
        )


def _send_error(caller: AuthenticatedCaller, error: tuple[str, str, str], code: ExitCode) -> None:
    """Send an error to a process, which raises it."""
    caller.channel.send({"error": error, "code": int(code)})


def _duplicate_rank_error(
    caller: AuthenticatedCaller, own: LocalProcess, arrived: Mapping[int, AuthenticatedCaller]
) -> tuple[str, str, str] | None:
    """Return the lines of an error if the client has another world size, or if its rank has already arrived."""
    rank = caller.rank
    if caller.size != own.size:
        what = f"rank 0 is one of {own.size} processes, rank {rank} one of {caller.size}"
        why = f"rank 0 is pid {os.getpid()} on {socket.gethostname()}"
    elif rank in arrived:
        what, why = f"two processes are rank {rank}", f"the other process is on {arrived[rank].message['host']}"
    else:
        return None
    return what, why, f"set a different rank for each process, and a different {PORT_ENV} for each job on one host"


def _is_error(value: Any) -> bool:
    is_text = handshake.string_check(MAX_MESSAGE_BYTES)
    return value is None or (isinstance(value, list) and len(value) == 3 and all(map(is_text, value)))


def _is_address(value: Any) -> bool:
    is_host, is_port = handshake.string_check(MAX_ADDRESS_BYTES), REPORT_SCHEMA["port"]
    return isinstance(value, list) and len(value) == 2 and is_host(value[0]) and is_port(value[1])


# First message of rank 0. It contains an error, or null. After null, a second message lists all addresses.
VERDICT_SCHEMA: Schema = {
    "error": _is_error,
    "code": lambda value: type(value) is int and value in list(ExitCode),
}


def _group_schema(size: int) -> Schema:
    """Return the schema of the second message of rank 0, with the addresses of the other ``size - 1`` ranks."""

    def are_addresses(value: Any) -> bool:
        return isinstance(value, list) and len(value) == size - 1 and all(map(_is_address, value))

    return {"places": are_addresses, "token": handshake.is_token}


def listen_as_rank0(endpoint: Endpoint, own: LocalProcess) -> socket.socket:
    """Listen as rank 0. Wait while the host name cannot be resolved yet, or still resolves to another host."""
    deadline = _Deadline(own, endpoint.seconds)
    while True:
        try:
            return endpoint.listen(socket.gethostbyname(endpoint.host), endpoint.port, own.size)
        except OSError as error:
            handshake.raise_resource_error(error)
            why = f"{endpoint.host}: {error.strerror or error}"
            may_change = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
            if not may_change or deadline.is_over(why):
                raise UserError(
                    f"{own} cannot listen at {endpoint} ({ADDRESS_ENV}, {PORT_ENV})",
                    why,
                    f"set {ADDRESS_ENV} to a name of {own}'s host, and {PORT_ENV} to a port that is free there; "
                    f"check that only this process is {own}",
                ) from error
        time.sleep(POLL_SECONDS)


def _run_other(endpoint: Endpoint, own: LocalProcess) -> Peers:
    """Report to rank 0, and then connect to the other ranks."""
    address, (root, listener, reply) = retry(
        endpoint, own, lambda address: (address, _report_to_rank0(endpoint, address, own))
    )
    if reply["error"] is not None:
        # PEER_GONE: a process did not arrive, and rank 0 raises the same error.
        raise UserError(*reply["error"], on_all_ranks=reply["code"] == ExitCode.PEER_GONE, code=reply["code"])
    addresses = [(address, endpoint.port), *map(tuple, reply["places"])]
    return {0: root, **_connect_to_peers(endpoint, listener, addresses, own.derive(reply["token"]))}


def retry(endpoint: Endpoint, own: LocalProcess, report: Callable[[str], T]) -> T:
    """Call ``report`` with the IP address of rank 0 until it succeeds, and return its result.

    If rank 0 ends before all ranks have arrived, it may be restarted, so this function tries until the time limit.

    Raises:
        UserError: Rank 0 does not answer within the time limit, or refuses this process.
    """
    deadline, first = _Deadline(own, endpoint.seconds), f"{own.kind} 0"
    while True:
        try:
            # The name may be resolvable only after its machine has started.
            return report(socket.gethostbyname(endpoint.host))
        except RefusedError as error:
            # The secret of the other process is unknown, so name both possible causes.
            difference = "is set to another value there, or not" if own.secret else "is not set here"
            raise UserError(
                f"{first} at {endpoint} refused this process, {own} on {socket.gethostname()}",
                f"{error}: {SECRET_ENV} {difference}",
                f"set the same {SECRET_ENV} for all processes of the job, and a different {PORT_ENV} for each job "
                "on one host",
            ) from error
        except (OSError, ValueError) as error:
            handshake.raise_resource_error(error)
            why = f"{endpoint.host}: {(isinstance(error, OSError) and error.strerror) or error}"
        if deadline.is_over(why):
            raise UserError(
                f"{first} did not answer at {endpoint} ({ADDRESS_ENV}, {PORT_ENV}) within {endpoint.seconds:g} s",
                why,
                f"check the output of {first}, that {ADDRESS_ENV} is the address of its host, "
                f"and that the network allows TCP; "
                f"{SECONDS_ENV} sets the time limit",
                code=ExitCode.PEER_GONE,
            )
        time.sleep(POLL_SECONDS)


def _report_to_rank0(
    endpoint: Endpoint, address: str, own: LocalProcess
) -> tuple[socket.socket, socket.socket, Message]:
    """Report to rank 0, and wait until all ranks have arrived.

    Returns:
        The connection, the listening socket of this rank, and the messages of rank 0 as one dictionary.
    """
    with ExitStack() as opened:
        root = opened.enter_context(socket.create_connection((address, endpoint.port), REQUEST_SECONDS))
        listener = opened.enter_context(endpoint.listen(root.getsockname()[0], 0, own.size))
        channel = handshake.run_with_timeout(REQUEST_SECONDS, root, handshake.greet(root, own, 0))
        channel.send({"host": socket.gethostname(), "pid": os.getpid(), "port": listener.getsockname()[1]})
        # Rank 0 sends its message at its time limit at the latest, so wait a little longer than this limit.
        reply = handshake.run_with_timeout(endpoint.seconds + REQUEST_SECONDS, root, channel.receive(VERDICT_SCHEMA))
        if reply["error"] is None:
            most = MAX_MESSAGE_BYTES + MAX_ADDRESS_BYTES * own.size
            reply.update(
                handshake.run_with_timeout(REQUEST_SECONDS, root, channel.receive(_group_schema(own.size), most))
            )
        opened.pop_all()
    return root, listener, reply


def _connect_to_peers(
    endpoint: Endpoint, listener: socket.socket, addresses: Sequence[Address], own: LocalProcess
) -> Peers:
    """Connect to the lower ranks except rank 0, and accept the connections of the higher ranks."""
    peers, above, rank = Peers(), range(own.rank + 1, own.size), 0
    deadline = _Deadline(own, endpoint.seconds)
    try:
        for rank in range(1, own.rank):
            host, port = addresses[rank]
            # Ranks on rank 0's host may have reported from a loopback address, so rank 0's address is used for these
            # ranks.
            peer_address = addresses[0][0] if is_loopback(host) else host, port
            peers[rank] = _connect(peer_address, own, rank, deadline)
        for caller in CallerListener(listener, own, above, EMPTY_SCHEMA):
            if caller is not None:
                caller.channel.send({})
                peers[caller.rank] = caller.channel.peer
            if not (missing := [rank for rank in above if rank not in peers]):
                break
            rank = missing[0]
            if deadline.is_over(f"rank {rank} did not connect"):
                raise TimeoutError("the rank did not connect")
    except (OSError, ValueError) as error:
        handshake.raise_resource_error(error)
        raise UserError(
            f"rank {own.rank} on {socket.gethostname()} has no connection to rank {rank} at {addresses[rank][0]}",
            str((isinstance(error, OSError) and error.strerror) or error),
            "check the output of that rank, and allow TCP connections between the hosts at all ports",
            code=ExitCode.PEER_GONE,
        ) from error
    return peers


def _connect(address: Address, own: LocalProcess, rank: int, deadline: _Deadline) -> socket.socket:
    """Connect to a rank that listens.

    If that rank disconnects, connect again, because it may have had too many clients.
    """
    while True:
        peer = socket.create_connection(address, REQUEST_SECONDS)
        try:
            channel: Channel = handshake.run_with_timeout(REQUEST_SECONDS, peer, handshake.greet(peer, own, rank))
            channel.send({})
            # The other rank may answer late, because it connects to all lower ranks before it accepts connections.
            handshake.run_with_timeout(deadline.seconds, peer, channel.receive(EMPTY_SCHEMA))
            return peer
        except (OSError, UnknownPeerError) as error:
            peer.close()
            if isinstance(error, RefusedError) or deadline.is_over(f"rank {rank}: {error}"):
                raise
        time.sleep(POLL_SECONDS)


def _is_open(caller: AuthenticatedCaller) -> bool:
    """Return whether the other end of an idle connection is open.

    The client sends nothing at this point of the protocol, so its connection is readable only if it was closed.
    """
    poller = select.poll()
    poller.register(caller.channel.peer, select.POLLIN)
    return not poller.poll(0)


@dataclass
class _Deadline:
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
            print(f"[{self.own}] waiting, {self.seconds:g} s at most: {why}", file=sys.stderr, flush=True)
        return waited >= self.seconds
