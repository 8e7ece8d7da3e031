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
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from crepe_dist.distributed.control import SUPERVISED_AS
from crepe_dist.distributed.endpoint import ADDRESS, INTERFACE, PORT, SECONDS, Endpoint, interface_of, is_loopback
from crepe_dist.distributed.launch import NCCL_INTERFACE, Launch
from crepe_dist.errors import ExitCode, UserError

NOTE_SECONDS = 10.0  # time before a waiting rank prints what it waits for
LOOK_SECONDS = 0.1
REQUEST_SECONDS = 5.0
MOST_BYTES = 1 << 24  # of a message
FIRST_BYTES = 1 << 12  # of the message of a caller, who may be a stranger
STRANGERS = 64  # callers who have not yet said who they are, besides one for each rank
SHOWN_RANKS = 16
LENGTH = struct.Struct("<I")
Message = dict[str, Any]
Peers = dict[int, socket.socket]


def meet(launch: Launch, environment: Mapping[str, str] = os.environ) -> Peers:
    """Wait for all processes of the job; return the connections to the other ranks.

    Raises:
        UserError: the address is unusable, or a process does not arrive; ``on_all_ranks`` where all raise the same.
    """
    endpoint = Endpoint.of(launch, environment)
    patience = _Patience(launch.rank, endpoint.seconds)
    report = {
        "rank": launch.rank,
        "size": launch.size,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": environment.get(SUPERVISED_AS, ""),
    }
    peers = (_lead if launch.rank == 0 else _follow)(endpoint, patience, report)
    if interface := interface_of(next(iter(peers.values())).getsockname()[0]):
        # Otherwise NCCL chooses an interface by itself, perhaps one that is not shared by all hosts. "=": NCCL takes a
        # bare name for the start of one.
        os.environ.setdefault(NCCL_INTERFACE, f"={interface}")
    return peers


def _lead(endpoint: Endpoint, patience: _Patience, report: Message) -> Peers:
    """Listen, wait for the reports of all ranks, and send them the addresses of all, or an error."""
    size, peers, reports = report["size"], Peers(), {0: report}
    listener = _open(endpoint, patience, size)
    address = listener.getsockname()[0]
    for arrived in arrivals(listener, range(1, size)):
        if arrived and arrived[1].get("job") == report["job"]:
            peer, said = arrived
            if error := _objection(said, peers, reports):
                _tell(peer, {"error": error, "code": int(ExitCode.ERROR)})
            else:
                peers[said["rank"]], reports[said["rank"]] = peer, said
        if not (missing := [rank for rank in range(1, size) if rank not in peers]):
            break
        shown = ", ".join(map(str, missing[:SHOWN_RANKS])) + ", …" * (len(missing) > SHOWN_RANKS)
        why = f"rank {shown} of {size} did not arrive"
        for rank, peer in [] if arrived else list(peers.items()):
            if not (_is_open(peer) and _tell(peer, {"wait": why})):
                del peers[rank]  # it may start again
        if patience.is_over(why):
            alone = is_loopback(address)
            lines = (
                f"{len(missing)} of {size} processes did not arrive within {endpoint.seconds:g} s",
                f"{why}; rank 0 waited for them on {report['host']} at {address}:{endpoint.port}"
                + ", which no other host can reach" * alone,
                f"check the output of these ranks; give all the same {ADDRESS} and {PORT}; "
                + f"with several hosts set {INTERFACE} to their network; " * alone
                + f"{SECONDS} sets the time limit",
            )
            for peer in peers.values():
                _tell(peer, {"error": lines, "code": int(ExitCode.PEER_GONE), "of_all": True})
            raise UserError(*lines, on_all_ranks=True, code=ExitCode.PEER_GONE)
    places = [(address, 0), *((peers[rank].getpeername()[0], reports[rank]["port"]) for rank in range(1, size))]
    outcome = {"places": places, "secret": secrets.token_hex(16)}
    for peer in peers.values():
        _tell(peer, outcome)
    return peers


def _objection(said: Message, peers: Peers, reports: Mapping[int, Message]) -> tuple[str, str, str] | None:
    """Return the lines of the error if a caller cannot be the rank that it says it is."""
    rank, size, ports = said["rank"], reports[0]["size"], f"give two jobs on one host different values of {PORT}"
    if said.get("size") != size:
        what = f"rank 0 is one of {size} processes, rank {rank} one of {said.get('size')}"
        return (
            what,
            f"rank 0 is pid {reports[0]['pid']} on {reports[0]['host']}",
            f"start all with one command; {ports}",
        )
    if rank in peers and _is_open(peers[rank]):
        other = f"the other is on {reports[rank].get('host')}"
        return f"two processes are rank {rank}", other, f"give each process its own rank; {ports}"
    return None


def _open(endpoint: Endpoint, patience: _Patience, size: int) -> socket.socket:
    what = f"rank 0 cannot listen at {endpoint} ({ADDRESS}, {PORT})"
    while True:
        try:
            address = endpoint.address()
            if address == "0.0.0.0":
                raise OSError(errno.EADDRNOTAVAIL, "")
            return socket.create_server((address, endpoint.port), backlog=size + STRANGERS)
        except socket.gaierror as error:
            why = f"{endpoint.host} is not known here: {error.strerror}"
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                cause = "another program listens there, or another process is rank 0"
                why = f"{address}: {os.strerror(error.errno or 0)}; {cause}"
                raise UserError(what, why, f"choose another {PORT}, or give each process its own rank") from error
            why = f"{address} is not an address of this host, {socket.gethostname()}"
        if patience.is_over(why):
            raise UserError(what, why, f"set {ADDRESS} to a name of rank 0's host")
        time.sleep(LOOK_SECONDS)


def _follow(endpoint: Endpoint, patience: _Patience, report: Message) -> Peers:
    """Report to rank 0, anew if it ends before all have met; then connect to the others."""
    address, why = "", ""
    while True:
        try:
            address = endpoint.address()
            root = socket.create_connection((address, endpoint.port), REQUEST_SECONDS)
            listener = socket.create_server((root.getsockname()[0], 0), backlog=report["size"] + STRANGERS)
            _tell(root, {**report, "port": listener.getsockname()[1]})
            while "wait" in (said := _hear(root)):
                patience.renew()  # rank 0 answers, and limits the time itself
                patience.is_over(str(said["wait"]))
            break
        except socket.gaierror as error:
            why = f"{endpoint.host} is not known here: {error.strerror}"
        except (OSError, ValueError) as error:
            why = f"{address}: {(isinstance(error, OSError) and error.strerror) or error}"
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
        raise UserError(*said["error"], on_all_ranks=said.get("of_all", False), code=said["code"])
    return {0: root, **_meet_others(listener, said["places"], said["secret"], report["rank"], patience)}


def _meet_others(
    listener: socket.socket, places: Sequence[tuple[str, int]], secret: str, own: int, patience: _Patience
) -> Peers:
    """Connect to the ranks from 1 up to this one, and wait for those above it."""
    peers, above, rank = Peers(), range(own + 1, len(places)), 0
    try:
        for rank in range(1, own):
            peers[rank] = socket.create_connection(places[rank], REQUEST_SECONDS)
            _tell(peers[rank], {"rank": own, "secret": secret})
        patience.renew()
        for arrived in arrivals(listener, above):
            if arrived and arrived[1].get("secret") == secret:
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


def arrivals(listener: socket.socket, ranks: range) -> Iterator[tuple[socket.socket, Message] | None]:
    """Yield callers of a listening socket who say in their first message which of the ranks they are.

    It yields ``None`` first and at least every ``LOOK_SECONDS``, and lets go of strangers. Its end closes the socket.
    """
    with listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        silent: list[socket.socket] = []
        while True:
            yield None
            for key, _ in selector.select(LOOK_SECONDS):
                caller: Any = key.fileobj
                if caller is listener:
                    silent.append(listener.accept()[0])
                    selector.register(silent[-1], selectors.EVENT_READ)
                    caller = silent[0] if len(silent) > len(ranks) + STRANGERS else None
                if caller in silent:
                    silent.remove(caller)
                    selector.unregister(caller)
                    with suppress(OSError, ValueError):
                        said = _hear(caller, FIRST_BYTES)
                        if type(said.get("rank")) is int and said["rank"] in ranks:
                            yield caller, said
                            continue
                    caller.close()


def _tell(peer: socket.socket, message: Message) -> bool:
    """Send a message; return whether the connection stands."""
    data = json.dumps(message).encode()
    with suppress(OSError):
        peer.sendall(LENGTH.pack(len(data)) + data)
        return True
    return False


def _hear(peer: socket.socket, most: int = MOST_BYTES) -> Message:
    """Receive a message that begins now.

    Raises:
        OSError, ValueError: the peer has ended, or another program speaks in its place.
    """
    due = time.monotonic() + REQUEST_SECONDS
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
    peer.setblocking(False)
    try:
        return bool(peer.recv(1, socket.MSG_PEEK))
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        peer.settimeout(REQUEST_SECONDS)


class _Patience:
    """Time limit of a waiting rank."""

    def __init__(self, rank: int, seconds: float) -> None:
        self._rank = rank
        self._seconds = seconds
        self._noted = False
        self._began = time.monotonic()
        self.renew()

    def renew(self) -> None:
        self._since = time.monotonic()

    def is_over(self, why: str) -> bool:
        """Return whether the time is over; print once, after ``NOTE_SECONDS``, what is waited for."""
        now = time.monotonic()
        if now - self._began >= NOTE_SECONDS and not self._noted:
            self._noted = True
            print(f"[rank {self._rank}] waiting, {self._seconds:g} s at most: {why}", file=sys.stderr, flush=True)
        return now - self._since >= self._seconds
