"""Rendezvous of processes whose launcher sets only their rank and the world size.

Each rank listens at a port of its own, in the network that ``CREPE_DIST_SOCKET_IFNAME`` selects. Rank 0 also listens at
``MASTER_ADDR`` and ``MASTER_PORT``, where each other rank reports its address. When all ranks have reported, rank 0
sends each of them the addresses of all ranks and a token, and the ranks connect to each other. ``CREPE_DIST_SECRET``
authenticates both ends of each report, and the token authenticates the other connections. After the rendezvous, no
process listens any more.
"""

import os
import secrets
import socket
from collections.abc import Mapping, Sequence

from crepe_dist.distributed import endpoint as rank0
from crepe_dist.distributed.caller_listener import CallerListener, raise_resource_error
from crepe_dist.distributed.channel import REQUEST_SECONDS, Schema, UnknownPeerError
from crepe_dist.distributed.endpoint import Deadline, Endpoint, is_unspecific
from crepe_dist.distributed.handshake import SECRET_ENV, AuthenticatedCaller, LocalProcess, introduce, read_secret
from crepe_dist.distributed.launch import LauncherEnv
from crepe_dist.distributed.network_interface import INTERFACE_ENV, find_address
from crepe_dist.errors import ExitCode, UserError

MAX_SHOWN_RANKS = 16  # Maximum number of missing ranks in a message.
REPORT_SCHEMA: Schema = {"place": rank0.is_place}
EMPTY_SCHEMA: Schema = {}
Peers = dict[int, socket.socket]


def rendezvous(launch: LauncherEnv, environment: Mapping[str, str] = os.environ) -> Peers:
    """Wait for all processes of the job, and connect to them. Return the connection to each other rank.

    Raises:
        UserError: The address or the network cannot be used, a process does not arrive, or the secrets differ. The
            attribute ``on_all_ranks`` of the error is True if all processes raise the same error.
    """
    endpoint = Endpoint.from_environment(launch, environment)
    own = LocalProcess(launch.rank, launch.size, read_secret(environment))
    # The processes of one host need no other network.
    network = "" if endpoint.is_local else environment.get(INTERFACE_ENV, "").strip()

    def listen(rank0_address: str) -> socket.socket:
        return endpoint.listen(find_address(network, rank0_address), 0, own.size)

    if own.rank == 0:
        rank0_listener = rank0.listen_as_rank0(endpoint, own)
        listener = listen(rank0_listener.getsockname()[0])
        places, token = _gather_reports(endpoint, own, rank0_listener, _place(listener))
    else:
        listener, places, token = rank0.retry(endpoint, own, lambda at: _report(endpoint, own, at, listen(at)))
    return _connect_to_peers(listener, places, own.derive(token), endpoint.seconds)


def _place(listener: socket.socket) -> str:
    return "{}:{}".format(*listener.getsockname())


def _replace_unspecific(place: str, host: str) -> str:
    """Replace an address that only its own host can use by ``host``."""
    return f"{host}:{place.partition(':')[2]}" if is_unspecific(place) else place


def _gather_reports(
    endpoint: Endpoint, own: LocalProcess, rank0_listener: socket.socket, own_place: str
) -> tuple[list[str], str]:
    """As rank 0, wait for the reports of all ranks. Then send each of them the places of all ranks, or an error.

    A place is the address and the port at which a rank listens, such as ``10.0.0.1:40000``.

    Returns:
        The place of each rank, and a token that authenticates the connections between the ranks.
    """
    arrived: dict[int, AuthenticatedCaller] = {}
    deadline = Deadline(own, endpoint.seconds)
    callers = CallerListener(rank0_listener, own, range(1, own.size), REPORT_SCHEMA)
    for new_caller in callers:
        # A waiting process sends nothing. If its connection is readable, the connection is closed, and the process has
        # ended. It may be restarted, and its new connection is then accepted.
        arrived = {rank: caller for rank, caller in arrived.items() if not caller.channel.is_readable()}
        if new_caller is not None:
            if error := _duplicate_rank_error(new_caller, own, arrived):
                new_caller.channel.send(rank0.make_verdict(error, ExitCode.ERROR))
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
                + ", which no other host can reach" * endpoint.is_local,
                f"check the output of these ranks; install the same crepe_dist, and set the same {rank0.ADDRESS_ENV}, "
                f"{rank0.PORT_ENV} and {SECRET_ENV}, for all ranks; {rank0.SECONDS_ENV} sets the time limit",
            )
            for caller in arrived.values():
                caller.channel.send(rank0.make_verdict(lines, ExitCode.PEER_GONE))
            raise UserError(*lines, on_all_ranks=True, code=ExitCode.PEER_GONE)
    others = [_replace_unspecific(caller.message["place"], caller.host) for _, caller in sorted(arrived.items())]
    verdict = rank0.make_verdict(places=[own_place, *others], token=secrets.token_hex(32))
    for caller in arrived.values():
        caller.channel.send(verdict)
        caller.channel.peer.close()
    rank0.warn_without_secret(own, others)
    return verdict["places"], verdict["token"]


def _duplicate_rank_error(
    caller: AuthenticatedCaller, own: LocalProcess, arrived: Mapping[int, AuthenticatedCaller]
) -> tuple[str, str, str] | None:
    """Return the lines of an error if the client has another world size, or if its rank has already arrived."""
    rank = caller.rank
    if caller.size != own.size:
        what = f"rank 0 is one of {own.size} processes, rank {rank} one of {caller.size}"
        why = f"rank 0 is pid {os.getpid()} on {socket.gethostname()}"
    elif rank in arrived:
        what, why = f"two processes are rank {rank}", f"the other process is on {arrived[rank].host}"
    else:
        return None
    return what, why, f"set a different rank for each process, and another {rank0.PORT_ENV} for each job on one host"


def _report(
    endpoint: Endpoint, own: LocalProcess, rank0_address: str, listener: socket.socket
) -> tuple[socket.socket, list[str], str]:
    """Report to rank 0, and wait until all ranks have arrived. Return the listener, all places and the token."""
    try:
        # Rank 0 sends its verdict at its time limit at the latest, so wait a little longer than this limit.
        seconds = endpoint.seconds + REQUEST_SECONDS
        channel, verdict = rank0.report_to_rank0(endpoint, rank0_address, own, {"place": _place(listener)}, seconds)
        channel.peer.close()
        if len(verdict["places"]) != own.size:
            raise UnknownPeerError("another program answers, with a wrong number of places")
    except BaseException:
        listener.close()
        raise
    # Processes on rank 0's host may have loopback addresses. They are reached by the address that leads to rank 0.
    return listener, [_replace_unspecific(place, rank0_address) for place in verdict["places"]], verdict["token"]


def _connect_to_peers(listener: socket.socket, places: Sequence[str], own: LocalProcess, seconds: float) -> Peers:
    """Connect to the lower ranks, and accept the connections of the higher ranks."""
    peers, above, rank = Peers(), range(own.rank + 1, own.size), 0
    deadline = Deadline(own, seconds)
    try:
        for rank in range(own.rank):
            host, port = places[rank].split(":")
            peers[rank] = socket.create_connection((host, int(port)), REQUEST_SECONDS)
            # The other rank may answer late, because it connects to all lower ranks before it accepts connections.
            introduce(peers[rank], own, rank, {}, EMPTY_SCHEMA, seconds)
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
        raise_resource_error(error)
        raise UserError(
            f"rank {own.rank} on {socket.gethostname()} has no connection to rank {rank} at {places[rank]}",
            str((isinstance(error, OSError) and error.strerror) or error),
            "check the output of that rank, and allow TCP connections between the hosts at all ports",
            code=ExitCode.PEER_GONE,
        ) from error
    return peers
