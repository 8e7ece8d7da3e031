"""Rendezvous of processes whose launcher sets only their rank and the world size.

The processes meet at ``MASTER_ADDR`` and ``MASTER_PORT``, torchrun's names, where rank 0 listens. Each of the others
reports to it, and keeps the connection. Once all have, rank 0 sends them the addresses of all and a secret, with which
they connect to each other. Messages are JSON, a length before each. Nothing listens once the group is formed.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from crepe_dist import invocation
from crepe_dist.distributed.control import SUPERVISED_AS
from crepe_dist.distributed.launch import Launch
from crepe_dist.errors import ExitCode, UserError

ADDRESS, PORT, SECONDS = "MASTER_ADDR", "MASTER_PORT", "CREPE_DIST_MEETING_SECONDS"
USUAL_PORT, USUAL_SECONDS = "29500", "300"
LOOPBACK = ("127.0.0.1", "localhost")
NOTE_SECONDS = 10.0  # time before a waiting rank prints what it waits for
LOOK_SECONDS = 0.1
REQUEST_SECONDS = 5.0
FIRST_SECONDS = 2.0  # for the message of a caller, who may be a stranger
MOST_BYTES, FIRST_BYTES = 1 << 24, 1 << 12  # of a message, and of the first one
SHOWN_RANKS = 16
LENGTH = struct.Struct("<I")
Message = dict[str, Any]
Peers = dict[int, socket.socket]


@dataclass(frozen=True)
class Endpoint:
    """Address and time limit of a rendezvous."""

    host: str
    port: int
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
        host = environment.get(ADDRESS, "").strip() or LOOPBACK[0] * (launch.local_size == launch.size)
        if not host:
            raise UserError(
                f"{launch.launcher} started {launch.size} processes, and {ADDRESS} is not set",
                "the processes meet at the host of rank 0, at a port that is free there",
                f"export {ADDRESS}=<its name or address> {PORT}={USUAL_PORT} (launch/ and docs/how-to/ show where), "
                f"or, on one host, start with `{invocation.typed('supervise')} -np {launch.size} …`",
                on_all_ranks=True,
            )
        port = _number(PORT, environment.get(PORT, "").strip() or USUAL_PORT, 65536)
        return cls(host, int(port), time_limit(environment))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def listen(self, address: str, port: int, callers: int) -> socket.socket:
        """Listen at an address of this host; on all networks if it is loopback, but all are not to be on this host."""
        # Debian resolves a host's own name to an address that only the host itself can reach.
        shared = "" if is_loopback(address) and self.host not in LOOPBACK else address
        return socket.create_server((shared, port), backlog=callers)


def is_loopback(address: str) -> bool:
    return address.startswith("127.")


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


def meet(launch: Launch, environment: Mapping[str, str] = os.environ) -> Peers:
    """Wait for all processes of the job; return the connections to the other ranks.

    Raises:
        UserError: the address is unusable, or a process does not arrive; ``on_all_ranks`` where all raise the same.
    """
    endpoint = Endpoint.of(launch, environment)
    report = {
        "rank": launch.rank,
        "size": launch.size,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": environment.get(SUPERVISED_AS, ""),
    }
    return (_lead if launch.rank == 0 else _follow)(endpoint, report)


def _lead(endpoint: Endpoint, report: Message) -> Peers:
    """Listen, wait for the reports of all ranks, and send them the addresses of all, or an error."""
    size, peers, reports = report["size"], Peers(), {0: report}
    patience = _Patience(0, endpoint.seconds)
    for arrived in arrivals(_open(endpoint, patience, size), range(1, size)):
        peers = {rank: peer for rank, peer in peers.items() if _is_open(peer)}  # one that has ended may start again
        if arrived and arrived[1].get("job") == report["job"]:
            peer, said = arrived
            if error := _objection(said, peers, reports):
                _tell(peer, {"error": error, "code": int(ExitCode.ERROR)})
            else:
                peers[said["rank"]], reports[said["rank"]] = peer, said
        if not (missing := [rank for rank in range(1, size) if rank not in peers]):
            break
        shown = ", ".join(map(str, missing[:SHOWN_RANKS])) + ", …" * (len(missing) > SHOWN_RANKS)
        why = f"rank {shown} of {size} did not arrive at {endpoint}"
        if patience.is_over(why):
            lines = (
                f"{len(missing)} of {size} processes did not arrive within {endpoint.seconds:g} s",
                f"{why}; rank 0 waited for them on {report['host']}"
                + ", which no other host can reach" * (endpoint.host in LOOPBACK),
                f"check the output of these ranks; give all the same {ADDRESS} and {PORT}; "
                f"{SECONDS} sets the time limit",
            )
            for peer in peers.values():
                _tell(peer, {"error": lines, "code": int(ExitCode.PEER_GONE)})
            raise UserError(*lines, on_all_ranks=True, code=ExitCode.PEER_GONE)
    places = {rank: (peer.getpeername()[0], reports[rank]["port"]) for rank, peer in peers.items()}
    outcome = {"places": [places[rank] for rank in range(1, size)], "secret": secrets.token_hex(16)}
    for peer in peers.values():
        _tell(peer, outcome)
    return peers


def _objection(said: Message, peers: Peers, reports: Mapping[int, Message]) -> tuple[str, str, str] | None:
    """Return the lines of the error if a caller cannot be the rank that it says it is."""
    rank, size = said["rank"], reports[0]["size"]
    if said.get("size") != size:
        what = f"rank 0 is one of {size} processes, rank {rank} one of {said.get('size')}"
        why = f"rank 0 is pid {reports[0]['pid']} on {reports[0]['host']}"
    elif rank in peers:
        what, why = f"two processes are rank {rank}", f"the other is on {reports[rank].get('host')}"
    else:
        return None
    return what, why, f"give each process its own rank, and two jobs on one host different values of {PORT}"


def _open(endpoint: Endpoint, patience: _Patience, size: int) -> socket.socket:
    """Listen as rank 0; wait while the host's name is not known yet, or still another host's."""
    while True:
        try:
            return endpoint.listen(socket.gethostbyname(endpoint.host), endpoint.port, size)
        except OSError as error:
            why = f"{endpoint.host}: {error.strerror or error}"
            may_change = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
            if not may_change or patience.is_over(why):
                raise UserError(
                    f"rank 0 cannot listen at {endpoint} ({ADDRESS}, {PORT})",
                    why,
                    f"set {ADDRESS} to a name of rank 0's host, and {PORT} to a port that is free there; "
                    "give each process its own rank",
                ) from error
        time.sleep(LOOK_SECONDS)


def _follow(endpoint: Endpoint, report: Message) -> Peers:
    """Report to rank 0, anew if it ends before all have met; then connect to the others."""
    patience = _Patience(report["rank"], endpoint.seconds)
    while True:
        try:
            address = socket.gethostbyname(endpoint.host)  # a name may appear only after its machine has started
            root = socket.create_connection((address, endpoint.port), REQUEST_SECONDS)
            listener = endpoint.listen(root.getsockname()[0], 0, report["size"])
            _tell(root, {**report, "port": listener.getsockname()[1]})
            said = _hear(root, endpoint.seconds + REQUEST_SECONDS)  # rank 0 limits the time itself
            break
        except (OSError, ValueError) as error:
            why = f"{endpoint.host}: {(isinstance(error, OSError) and error.strerror) or error}"
        if patience.is_over(why):
            raise UserError(
                f"rank 0 did not answer at {endpoint} ({ADDRESS}, {PORT}) within {endpoint.seconds:g} s",
                why,
                f"check rank 0's output, that {ADDRESS} is its host, and that the network permits TCP; "
                f"{SECONDS} sets the time limit",
                code=ExitCode.PEER_GONE,
            )
        time.sleep(LOOK_SECONDS)
    if "error" in said:
        # Rank 0 has the same error if a process did not arrive.
        raise UserError(*said["error"], on_all_ranks=said["code"] == ExitCode.PEER_GONE, code=said["code"])
    return {0: root, **_meet_others(endpoint, listener, root, said, report["rank"])}


def _meet_others(endpoint: Endpoint, listener: socket.socket, root: socket.socket, said: Message, own: int) -> Peers:
    """Connect to the ranks from 1 up to this one, and wait for those above it."""
    places: list[tuple[str, int]] = [root.getpeername(), *said["places"]]
    peers, above, rank = Peers(), range(own + 1, len(places)), 0
    try:
        for rank in range(1, own):
            host, port = places[rank]
            # Rank 0 sees the ranks of its own host at loopback, perhaps.
            place = places[0][0] if is_loopback(host) else host, port
            peers[rank] = socket.create_connection(place, REQUEST_SECONDS)
            _tell(peers[rank], {"rank": own, "secret": said["secret"]})
        patience = _Patience(own, endpoint.seconds)
        for arrived in arrivals(listener, above):
            if arrived and arrived[1].get("secret") == said["secret"]:
                peers[arrived[1]["rank"]] = arrived[0]
            if not (missing := [rank for rank in above if rank not in peers]):
                break
            rank = missing[0]
            if patience.is_over(f"rank {rank} did not connect"):
                raise TimeoutError("it did not connect")
    except OSError as error:
        raise UserError(
            f"rank {own} on {socket.gethostname()} has no connection to rank {rank} at {places[rank][0]}",
            str(error.strerror or error),
            "see the output of that rank, and let the hosts connect to each other by TCP, at any port",
            code=ExitCode.PEER_GONE,
        ) from error
    return peers


def arrivals(listener: socket.socket, ranks: Sequence[int]) -> Iterator[tuple[socket.socket, Message] | None]:
    """Yield callers of a listening socket who say in their first message which of the ranks they are.

    It yields ``None`` before each look for a caller, and lets go of strangers. Its end closes the socket.
    """
    with listener:
        listener.settimeout(LOOK_SECONDS)
        while True:
            yield None
            try:
                caller, _ = listener.accept()
            except OSError:  # nobody called
                continue
            with suppress(OSError, ValueError):
                said = _hear(caller, FIRST_SECONDS, FIRST_BYTES)
                if type(said.get("rank")) is int and said["rank"] in ranks:
                    yield caller, said
                    continue
            caller.close()


def _tell(peer: socket.socket, message: Message) -> None:
    data = json.dumps(message).encode()
    with suppress(OSError):  # found out in hearing from it
        peer.sendall(LENGTH.pack(len(data)) + data)


def _hear(peer: socket.socket, seconds: float, most: int = MOST_BYTES) -> Message:
    """Receive a message.

    Raises:
        OSError, ValueError: it does not come, the peer has ended, or another program speaks in its place.
    """
    due = time.monotonic() + seconds
    data, length = b"", LENGTH.size
    while len(data) < length:
        peer.settimeout(max(0.001, due - time.monotonic()))
        piece = peer.recv(length - len(data))
        data += piece
        if len(data) == LENGTH.size:
            length += LENGTH.unpack(data)[0]
        if not piece or length > most:
            raise ValueError("another program answers, or the process has ended")
    with suppress(RecursionError):
        message = json.loads(data[LENGTH.size :])
        if isinstance(message, dict):
            return message
    raise ValueError("another program answers")


def _is_open(peer: socket.socket) -> bool:
    """Return whether the other end of a connection, on which nothing is expected, is open."""
    look = select.poll()
    look.register(peer, select.POLLIN)
    return not look.poll(0)


@dataclass
class _Patience:
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
