"""Rendezvous of processes whose launcher sets only their rank and the world size.

The processes meet at ``MASTER_ADDR`` and ``MASTER_PORT``, torchrun's names, where rank 0 listens. Each of the others
reports to it, and keeps the connection. Once all have, rank 0 sends them the addresses of all and a token. They
use the token to connect to each other. ``CREPE_DIST_SECRET`` authenticates both ends of each connection
(``handshake.py``). Nothing listens once the group is formed.
"""

from __future__ import annotations

import errno
import hmac
import os
import secrets
import select
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from crepe_dist import invocation
from crepe_dist.distributed import handshake
from crepe_dist.distributed.handshake import (
    DIGEST,
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
DEFAULT_PORT, DEFAULT_SECONDS = "29500", "300"
LOOPBACK = ("127.0.0.1", "localhost")
NOTE_SECONDS = 10.0  # time before a waiting rank prints what it waits for
REQUEST_SECONDS = 5.0
MAX_ADDRESS_BYTES = 64  # of an address and a port in JSON
MAX_SHOWN_RANKS = 16
REPORT_SCHEMA: Schema = {
    "host": handshake.string_check(255),
    "pid": handshake.int_check(1, 1 << 31),
    "port": handshake.int_check(1, 65535),
}
EMPTY_SCHEMA: Schema = {}
Peers = dict[int, socket.socket]
Address = tuple[str, int]


@dataclass(frozen=True)
class Endpoint:
    """Address and time limit of a rendezvous."""

    host: str
    port: int
    seconds: float

    @classmethod
    def from_environment(cls, launch: LauncherEnv, environment: Mapping[str, str]) -> Endpoint:
        """Read address and time limit from the environment.

        Raises:
            UserError: a value is missing or malformed.
        """
        if launch.rank >= launch.size:
            what = f"this process is rank {launch.rank} of {launch.size}, but ranks count from 0"
            raise UserError(what, remedy=f"give each process its rank, from 0 to {launch.size - 1}")
        # If all processes are on this host, no address is needed.
        host = environment.get(ADDRESS_ENV, "").strip() or LOOPBACK[0] * (launch.local_size == launch.size)
        if not host:
            raise UserError(
                f"{launch.launcher} started {launch.size} processes, and {ADDRESS_ENV} is not set",
                "the processes meet at the host of rank 0, at a port that is free there",
                f"export {ADDRESS_ENV}=<its name or address> {PORT_ENV}={DEFAULT_PORT} "
                f"(launch/ and docs/how-to/ show where), or, on one host, "
                f"start with `{invocation.command_line('supervise')} -np {launch.size} …`",
                on_all_ranks=True,
            )
        port = _parse_number(PORT_ENV, environment.get(PORT_ENV, "").strip() or DEFAULT_PORT, 65536)
        return cls(host, int(port), read_time_limit(environment))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def listen(self, address: str, port: int, callers: int) -> socket.socket:
        """Listen at an address of this host; on all networks if it is loopback, but all are not to be on this host."""
        # Debian resolves a host's own name to an address that only the host itself can reach.
        shared = "" if is_loopback(address) and self.host not in LOOPBACK else address
        return socket.create_server((shared, port), backlog=callers + MAX_UNKNOWN_CALLERS)


def is_loopback(address: str) -> bool:
    return address.startswith("127.")


def read_time_limit(environment: Mapping[str, str]) -> float:
    """Read the time limit from the environment, in seconds.

    Raises:
        UserError: it is malformed.
    """
    return _parse_number(SECONDS_ENV, read_variable(SECONDS_ENV, environment) or DEFAULT_SECONDS, 1e6)


def _parse_number(name: str, given: str, limit: float) -> float:
    with suppress(ValueError):
        if 1 <= (number := float(given)) < limit and (name != PORT_ENV or number.is_integer()):
            return number
    raise UserError(f"{name} is {given!r}", remedy=f"give a number from 1 to {limit - 1:.0f}", on_all_ranks=True)


def rendezvous(launch: LauncherEnv, environment: Mapping[str, str] = os.environ) -> Peers:
    """Wait for all processes of the job; return the connections to the other ranks.

    Raises:
        UserError: the address is unusable, a process does not arrive, or the secrets differ; ``on_all_ranks`` where all
            raise the same.
    """
    endpoint = Endpoint.from_environment(launch, environment)
    own = LocalProcess(launch.rank, launch.size, handshake.read_secret(environment))
    return (_run_rank0 if launch.rank == 0 else _run_other)(endpoint, own)


def _run_rank0(endpoint: Endpoint, own: LocalProcess) -> Peers:
    """Listen, wait for the reports of all ranks, and send them the addresses of all, or an error."""
    arrived: dict[int, AuthenticatedCaller] = {}
    patience = _Deadline(0, endpoint.seconds)
    callers = CallerListener(_listen_as_rank0(endpoint, patience, own.size), own, range(1, own.size), REPORT_SCHEMA)
    for arrival in callers:
        arrived = {rank: each for rank, each in arrived.items() if _is_open(each)}  # one that ended may start again
        if arrival is not None:
            if error := _duplicate_rank_error(arrival, own, arrived):
                _send_error(arrival, error, ExitCode.ERROR)
            else:
                arrived[arrival.rank] = arrival
        if not (missing := [rank for rank in range(1, own.size) if rank not in arrived]):
            break
        shown = ", ".join(map(str, missing[:MAX_SHOWN_RANKS])) + ", …" * (len(missing) > MAX_SHOWN_RANKS)
        why = f"rank {shown} of {own.size} did not arrive at {endpoint}"
        if callers.refused_host:
            why += f"; a process on {callers.refused_host} has another {SECRET_ENV} and was refused"
        if patience.is_over(why):
            lines = (
                f"{len(missing)} of {own.size} processes did not arrive within {endpoint.seconds:g} s",
                f"{why}; rank 0 waited for them on {socket.gethostname()}"
                + ", which no other host can reach" * (endpoint.host in LOOPBACK),
                f"check the output of these ranks; give all the same {ADDRESS_ENV}, {PORT_ENV} and {SECRET_ENV}; "
                f"{SECONDS_ENV} sets the time limit",
            )
            for each in arrived.values():
                _send_error(each, lines, ExitCode.PEER_GONE)
            raise UserError(*lines, on_all_ranks=True, code=ExitCode.PEER_GONE)
    token = secrets.token_hex(32)
    places = [(arrived[rank].host, arrived[rank].message["port"]) for rank in sorted(arrived)]
    for each in arrived.values():
        each.channel.send({"error": None, "code": 0})
        each.channel.send({"places": places, "token": token})
    if not own.secret and not all(is_loopback(host) for host, _ in places):
        print(
            f"[rank 0] warning: {SECRET_ENV} is not set, so a stranger in the network could take the place of "
            "a process (docs/how-to/many-hosts.md)",
            file=sys.stderr,
            flush=True,
        )
    return {rank: each.channel.peer for rank, each in arrived.items()}


def _send_error(arrival: AuthenticatedCaller, error: tuple[str, str, str], code: ExitCode) -> None:
    """Send a process the error that ends it."""
    arrival.channel.send({"error": error, "code": int(code)})


def _duplicate_rank_error(
    arrival: AuthenticatedCaller, own: LocalProcess, arrived: Mapping[int, AuthenticatedCaller]
) -> tuple[str, str, str] | None:
    """Return the lines of the error if a caller cannot be the rank that it says it is."""
    rank = arrival.rank
    if arrival.size != own.size:
        what = f"rank 0 is one of {own.size} processes, rank {rank} one of {arrival.size}"
        why = f"rank 0 is pid {os.getpid()} on {socket.gethostname()}"
    elif rank in arrived:
        what, why = f"two processes are rank {rank}", f"the other is on {arrived[rank].message['host']}"
    else:
        return None
    return what, why, f"give each process its own rank, and two jobs on one host different values of {PORT_ENV}"


def _is_error(value: Any) -> bool:
    is_text = handshake.string_check(MAX_MESSAGE_BYTES)
    return value is None or (isinstance(value, list) and len(value) == 3 and all(map(is_text, value)))


def _is_address(value: Any) -> bool:
    is_host, is_port = handshake.string_check(MAX_ADDRESS_BYTES), REPORT_SCHEMA["port"]
    return isinstance(value, list) and len(value) == 2 and is_host(value[0]) and is_port(value[1])


# What rank 0 sends: first an error or none, then, without one, the addresses of the other ranks.
VERDICT_SCHEMA: Schema = {
    "error": _is_error,
    "code": lambda value: type(value) is int and value in list(ExitCode),
}


def _group_schema(size: int) -> Schema:
    def are_places(value: Any) -> bool:
        return isinstance(value, list) and len(value) == size - 1 and all(map(_is_address, value))

    return {"places": are_places, "token": handshake.is_token}


def _listen_as_rank0(endpoint: Endpoint, patience: _Deadline, size: int) -> socket.socket:
    """Listen as rank 0; wait while the host's name is not known yet, or still another host's."""
    while True:
        try:
            return endpoint.listen(socket.gethostbyname(endpoint.host), endpoint.port, size)
        except OSError as error:
            handshake.raise_resource_error(error)
            why = f"{endpoint.host}: {error.strerror or error}"
            may_change = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
            if not may_change or patience.is_over(why):
                raise UserError(
                    f"rank 0 cannot listen at {endpoint} ({ADDRESS_ENV}, {PORT_ENV})",
                    why,
                    f"set {ADDRESS_ENV} to a name of rank 0's host, and {PORT_ENV} to a port that is free there; "
                    "give each process its own rank",
                ) from error
        time.sleep(POLL_SECONDS)


def _run_other(endpoint: Endpoint, own: LocalProcess) -> Peers:
    """Report to rank 0, anew if it ends before all have met; then connect to the others."""
    patience = _Deadline(own.rank, endpoint.seconds)
    while True:
        try:
            address = socket.gethostbyname(endpoint.host)  # a name may appear only after its machine has started
            root, listener, said = _report_to_rank0(endpoint, address, own)
            break
        except RefusedError as error:
            here = "is set to another value there, or not" if own.secret else "is not set here"
            raise UserError(
                f"rank 0 at {endpoint} refused this process, rank {own.rank} on {socket.gethostname()}",
                f"{error}: {SECRET_ENV} {here}",
                f"give all processes of the job the same {SECRET_ENV}, and two jobs on one host "
                f"different values of {PORT_ENV}",
            ) from error
        except (OSError, ValueError) as error:
            handshake.raise_resource_error(error)
            why = f"{endpoint.host}: {(isinstance(error, OSError) and error.strerror) or error}"
        if patience.is_over(why):
            raise UserError(
                f"rank 0 did not answer at {endpoint} ({ADDRESS_ENV}, {PORT_ENV}) within {endpoint.seconds:g} s",
                why,
                f"check rank 0's output, that {ADDRESS_ENV} is its host, and that the network permits TCP; "
                f"{SECONDS_ENV} sets the time limit",
                code=ExitCode.PEER_GONE,
            )
        time.sleep(POLL_SECONDS)
    if said["error"] is not None:
        # Rank 0 has the same error if a process did not arrive.
        raise UserError(*said["error"], on_all_ranks=said["code"] == ExitCode.PEER_GONE, code=said["code"])
    group = replace(own, secret=hmac.digest(own.secret, said["token"].encode(), DIGEST))
    places = [(address, endpoint.port), *map(tuple, said["places"])]
    return {0: root, **_connect_to_peers(endpoint, listener, places, group)}


def _report_to_rank0(
    endpoint: Endpoint, address: str, own: LocalProcess
) -> tuple[socket.socket, socket.socket, Message]:
    """Report to rank 0, and wait until all have met.

    Returns:
        The connection, the socket where this rank listens, and what rank 0 sends.
    """
    with ExitStack() as opened:
        root = opened.enter_context(socket.create_connection((address, endpoint.port), REQUEST_SECONDS))
        listener = opened.enter_context(endpoint.listen(root.getsockname()[0], 0, own.size))
        channel = handshake.run_with_timeout(REQUEST_SECONDS, root, handshake.greet(root, own, 0))
        channel.send({"host": socket.gethostname(), "pid": os.getpid(), "port": listener.getsockname()[1]})
        # Rank 0 limits the time itself.
        said = handshake.run_with_timeout(endpoint.seconds + REQUEST_SECONDS, root, channel.receive(VERDICT_SCHEMA))
        if said["error"] is None:
            most = MAX_MESSAGE_BYTES + MAX_ADDRESS_BYTES * own.size
            said.update(
                handshake.run_with_timeout(REQUEST_SECONDS, root, channel.receive(_group_schema(own.size), most))
            )
        opened.pop_all()
    return root, listener, said


def _connect_to_peers(
    endpoint: Endpoint, listener: socket.socket, places: Sequence[Address], own: LocalProcess
) -> Peers:
    """Connect to the ranks from 1 up to this one, and wait for those above it."""
    peers, above, rank = Peers(), range(own.rank + 1, own.size), 0
    patience = _Deadline(own.rank, endpoint.seconds)
    try:
        for rank in range(1, own.rank):
            host, port = places[rank]
            # Rank 0 sees the ranks of its own host at loopback, perhaps.
            place = places[0][0] if is_loopback(host) else host, port
            peers[rank] = _connect(place, own, rank, patience)
        for arrival in CallerListener(listener, own, above, EMPTY_SCHEMA):
            if arrival is not None:
                arrival.channel.send({})
                peers[arrival.rank] = arrival.channel.peer
            if not (missing := [rank for rank in above if rank not in peers]):
                break
            rank = missing[0]
            if patience.is_over(f"rank {rank} did not connect"):
                raise TimeoutError("it did not connect")
    except (OSError, ValueError) as error:
        handshake.raise_resource_error(error)
        raise UserError(
            f"rank {own.rank} on {socket.gethostname()} has no connection to rank {rank} at {places[rank][0]}",
            str((isinstance(error, OSError) and error.strerror) or error),
            "see the output of that rank, and let the hosts connect to each other by TCP, at any port",
            code=ExitCode.PEER_GONE,
        ) from error
    return peers


def _connect(place: Address, own: LocalProcess, rank: int, patience: _Deadline) -> socket.socket:
    """Connect to a rank that listens; again if it was busy with strangers."""
    while True:
        peer = socket.create_connection(place, REQUEST_SECONDS)
        try:
            channel: Channel = handshake.run_with_timeout(REQUEST_SECONDS, peer, handshake.greet(peer, own, rank))
            channel.send({})
            # It may have to wait for ranks between them first.
            handshake.run_with_timeout(patience.seconds, peer, channel.receive(EMPTY_SCHEMA))
            return peer
        except (OSError, UnknownPeerError) as error:
            peer.close()
            if isinstance(error, RefusedError) or patience.is_over(f"rank {rank}: {error}"):
                raise
        time.sleep(POLL_SECONDS)


def _is_open(arrival: AuthenticatedCaller) -> bool:
    """Return whether the other end of a connection, on which nothing is expected, is open."""
    look = select.poll()
    look.register(arrival.channel.peer, select.POLLIN)
    return not look.poll(0)


@dataclass
class _Deadline:
    """Time limit of a waiting rank."""

    rank: int
    seconds: float
    _noted: bool = False
    _began: float = field(default_factory=time.monotonic)

    def is_over(self, why: str) -> bool:
        """Return whether the time is over; print once, after ``NOTE_SECONDS``, what is waited for."""
        waited = time.monotonic() - self._began
        if waited >= NOTE_SECONDS and not self._noted:
            self._noted = True
            print(f"[rank {self.rank}] waiting, {self.seconds:g} s at most: {why}", file=sys.stderr, flush=True)
        return waited >= self.seconds
