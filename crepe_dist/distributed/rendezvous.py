"""Rendezvous of processes whose scheduler sets only their rank and the world size.

The processes meet at ``MASTER_ADDR`` and ``MASTER_PORT``, torchrun's names. Rank 0 opens a store there. Each rank
reports its host and the cores it may use; rank 0 publishes the list of all ranks, from which each finds its place. The
same store then serves Gloo and closes once the group is formed. Values are JSON.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from http import HTTPStatus
from typing import Any

from crepe_dist.distributed.endpoint import ADDRESS, INTERFACE, PORT, SECONDS, Where
from crepe_dist.distributed.environment import group_variables
from crepe_dist.distributed.horovod_internals import rendezvous_scopes
from crepe_dist.distributed.hosts import NAME, is_loopback, places
from crepe_dist.distributed.launch import HOROVODRUN, THREADS, Launch
from crepe_dist.distributed.store import Rendezvous
from crepe_dist.errors import ExitCode, UserError

NOTE_SECONDS = 10.0  # time before a waiting rank prints what it waits for
LOOK_SECONDS = 0.1
REQUEST_SECONDS = 5.0
LEAVE_SECONDS = 2.0  # time for the other ranks to read the error
SCOPE, OUTCOME = "meeting", "outcome"
SHOWN_RANKS = 16


class Meeting:
    """Place of this process in its group, set in the environment until it leaves the group.

    Args:
        variables: Horovod's variables for this place.
        threads: this process's share of the host's cores, for ``OMP_NUM_THREADS`` unless that is set.
        rendezvous: the store, on rank 0.
    """

    def __init__(self, variables: Mapping[str, str], threads: int, rendezvous: Rendezvous | None) -> None:
        self._before = {name: os.environ.get(name) for name in variables}
        self._rendezvous = rendezvous
        os.environ.update(variables)
        if not os.environ.get(THREADS, "").strip():
            os.environ[THREADS] = str(threads)

    def end(self) -> None:
        """Close the store, once the group is formed."""
        if self._rendezvous is not None:
            self._rendezvous.close()
            self._rendezvous = None

    def leave(self) -> None:
        """Restore the environment, so that the processes can meet again."""
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def is_needed(launch: Launch, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a rendezvous is needed; horovodrun, the supervisor and MPI form the group themselves."""
    return launch.size > 1 and launch.launcher != HOROVODRUN and environment.get("HOROVOD_CONTROLLER") != "mpi"


def meet(launch: Launch, environment: Mapping[str, str] = os.environ) -> Meeting:
    """Wait for all processes of the job.

    Raises:
        UserError: the address is unusable, or a process does not arrive; ``on_all_ranks`` where all raise the same.
    """
    where = Where.of(launch, environment)
    return _Root(launch, where).meet() if launch.rank == 0 else _Client(launch, where).meet()


class _Client:
    """A rank other than 0."""

    def __init__(self, launch: Launch, where: Where) -> None:
        self._launch = launch
        self._where = where
        self._me = _describe(launch)
        self._own_address = ""
        self._address = ""

    def meet(self) -> Meeting:
        reported = False
        patience = _Patience(self._launch.rank, self._where.seconds)
        while True:
            try:
                if not reported:
                    self._ask("PUT", str(self._launch.rank), json.dumps(self._me).encode())
                    reported = True
                own = self._ask("GET", str(self._launch.rank))
                if own is None:
                    reported = False  # rank 0 has restarted
                elif own != self._me:
                    raise self._complain(own)
                outcome = self._ask("GET", OUTCOME)
                if outcome is not None:
                    return self._take(outcome)
                patience.renew()  # rank 0 answers, and limits the time itself
            except socket.gaierror as error:
                patience.wait(f"{self._where.host} is not known here: {error.strerror}", self._absent)
            except (OSError, ValueError, http.client.HTTPException) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                patience.wait(f"{self._address}: {why or type(error).__name__}", self._absent)
            time.sleep(LOOK_SECONDS)

    def _absent(self, why: str) -> UserError:
        return UserError(
            f"rank 0 did not answer at {self._where} ({ADDRESS}, {PORT}) within {self._where.seconds:g} s",
            why,
            f"check rank 0's output, that {ADDRESS} is its host, and that the network permits TCP; "
            f"{SECONDS} sets the time limit",
            code=ExitCode.PEER_GONE,
        )

    def _take(self, outcome: dict[str, Any]) -> Meeting:
        if "error" in outcome:
            raise _error(outcome["error"])
        try:
            listed = [(str(host), int(threads)) for host, threads in outcome["places"]]
        except (KeyError, TypeError) as error:
            raise ValueError("another program answers in place of rank 0") from error
        interface = self._where.listens_on(self._own_address)
        return _found(self._launch, listed, (self._address, self._where.port), interface, None)

    def _complain(self, other: dict[str, Any]) -> UserError:
        """Publish and return the error that another process has this rank."""
        error = UserError(
            f"two processes are rank {self._launch.rank}",
            f"one is {_who(self._me)}, the other {_who(other)}",
            f"give each process its own rank, and two jobs on one host different values of {PORT}",
            on_all_ranks=True,
        )
        self._ask("PUT", OUTCOME, _failed(error))
        return error

    def _ask(self, method: str, key: str, body: bytes | None = None) -> dict[str, Any] | None:
        """Send a request to rank 0's store; return the value of a key.

        Raises:
            OSError, HTTPException, ValueError: rank 0 does not answer, or another program does.
        """
        self._address = ""
        self._address = self._where.address()
        connection = http.client.HTTPConnection(self._address, self._where.port, timeout=REQUEST_SECONDS)
        try:
            connection.connect()
            self._own_address = connection.sock.getsockname()[0]
            connection.request(method, f"/{SCOPE}/{key}", body)
            reply = connection.getresponse()
            content = reply.read()
        finally:
            connection.close()
        if reply.status == HTTPStatus.OK and method == "GET":
            return _object(content)
        if reply.status not in (HTTPStatus.OK, HTTPStatus.NOT_FOUND):
            raise ValueError(f"another program answers in place of rank 0 (status {reply.status})")
        return None


class _Root:
    """Rank 0."""

    def __init__(self, launch: Launch, where: Where) -> None:
        self._launch = launch
        self._where = where
        self._patience = _Patience(0, where.seconds)

    def meet(self) -> Meeting:
        rendezvous = self._open()
        try:
            interface = self._where.listens_on(rendezvous.address)
            entries = self._wait_for_all(rendezvous)
        except UserError as error:
            rendezvous.store.put(SCOPE, OUTCOME, _failed(error))
            time.sleep(LEAVE_SECONDS)
            rendezvous.close()
            raise
        listed = [(entry["host"], threads) for entry, threads in zip(entries, _shares(entries))]
        rendezvous.store.expect(rendezvous_scopes(places([host for host, _ in listed])))
        rendezvous.store.put(SCOPE, OUTCOME, json.dumps({"places": listed}).encode())
        return _found(self._launch, listed, (rendezvous.address, rendezvous.port), interface, rendezvous)

    def _wait_for_all(self, rendezvous: Rendezvous) -> list[dict[str, Any]]:
        """Collect the reports of all ranks.

        Raises:
            UserError: a rank does not arrive, or belongs to another job.
        """
        store, ranks = rendezvous.store, range(self._launch.size)
        store.put(SCOPE, "0", json.dumps(_describe(self._launch)).encode())
        while True:
            outcome = store.get(SCOPE, OUTCOME)
            if outcome is not None:  # another rank has published an error
                raise _error(_object(outcome)["error"])
            found = [store.get(SCOPE, str(rank)) for rank in ranks]
            missing = [rank for rank in ranks if found[rank] is None]
            if not missing:
                return [_entry(rank, found[rank] or b"", self._launch) for rank in ranks]
            shown = ", ".join(map(str, missing[:SHOWN_RANKS])) + ", …" * (len(missing) > SHOWN_RANKS)
            incomplete = partial(self._incomplete, len(missing), rendezvous.address)
            self._patience.wait(f"rank {shown} of {self._launch.size} did not arrive", incomplete)
            time.sleep(LOOK_SECONDS)

    def _open(self) -> Rendezvous:
        """Open the store.

        Raises:
            UserError: the address cannot be bound to, or is not on this host.
        """
        while True:
            address = ""
            try:
                address = self._where.address()
                if address == "0.0.0.0":
                    raise OSError(errno.EADDRNOTAVAIL, "")
                return Rendezvous(address, {}, self._where.port)
            except socket.gaierror as error:
                why = f"{self._where.host} is not known here: {error.strerror}"
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise self._unopened(
                        f"{address}: {error.strerror}",
                        "another program (torchrun's store, another job) listens there, or another process is rank 0; "
                        f"choose another {PORT}, or give each process its own rank",
                    ) from error
                why = f"{address} is not an address of this host, {socket.gethostname()}"
            self._patience.wait(why, lambda why: self._unopened(why, f"set {ADDRESS} to a name of rank 0's host"))
            time.sleep(LOOK_SECONDS)

    def _unopened(self, why: str, remedy: str) -> UserError:
        return UserError(f"rank 0 cannot listen at {self._where} ({ADDRESS}, {PORT})", why, remedy)

    def _incomplete(self, missing: int, address: str, why: str) -> UserError:
        alone = is_loopback(address)
        return UserError(
            f"{missing} of {self._launch.size} processes did not arrive within {self._where.seconds:g} s",
            f"{why}; rank 0 waited for them on {socket.gethostname()} at {address}:{self._where.port}"
            + ", which no other host can reach" * alone,
            f"check the output of these ranks; give all the same {ADDRESS} and {PORT}; "
            + f"with several hosts set {INTERFACE} to their network; " * alone
            + f"{SECONDS} sets the time limit",
            on_all_ranks=True,
            code=ExitCode.PEER_GONE,
        )


class _Patience:
    """Time limit of a waiting rank."""

    def __init__(self, rank: int, seconds: float) -> None:
        self._rank = rank
        self._seconds = seconds
        self._noted = False
        self.renew()

    def renew(self) -> None:
        self._since = time.monotonic()

    def wait(self, why: str, error: Callable[[str], UserError]) -> None:
        """Print a note once, after ``NOTE_SECONDS``.

        Raises:
            UserError: the result of ``error(why)``, once the time is over.
        """
        waited = time.monotonic() - self._since
        if waited >= self._seconds:
            raise error(why)
        if waited >= NOTE_SECONDS and not self._noted:
            self._noted = True
            print(f"[rank {self._rank}] waiting, {self._seconds:g} s at most: {why}", file=sys.stderr, flush=True)


def _describe(launch: Launch) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "id": secrets.token_hex(8),  # tells two processes of one rank apart
        "size": launch.size,
        "cores": sorted(os.sched_getaffinity(0)),
    }


def _who(entry: Mapping[str, Any]) -> str:
    return f"pid {entry.get('pid')} on {entry.get('host')}"


def _entry(rank: int, value: bytes, launch: Launch) -> dict[str, Any]:
    """Validate the report of a rank.

    Raises:
        UserError: malformed, or of another job.
    """
    try:
        entry = _object(value)
        fits = NAME.fullmatch(entry["host"]) and all(isinstance(core, int) for core in entry["cores"])
    except (ValueError, KeyError, TypeError):
        entry, fits = {}, None
    if not fits:
        raise UserError(f"another program answered as rank {rank}", remedy=f"choose another {PORT}", on_all_ranks=True)
    if entry["size"] != launch.size:
        raise UserError(
            f"rank 0 is one of {launch.size} processes, rank {rank} one of {entry['size']}",
            f"rank {rank} is {_who(entry)}",
            f"start all with one command, and give two jobs on one host different values of {PORT}",
            on_all_ranks=True,
        )
    return entry


def _shares(entries: list[dict[str, Any]]) -> list[int]:
    """Compute the threads of each process: its cores, each divided by the number of processes that may use it."""
    users = Counter((entry["host"], core) for entry in entries for core in entry["cores"])
    shares = (sum(Fraction(1, users[entry["host"], core]) for core in entry["cores"]) for entry in entries)
    return [max(1, int(share)) for share in shares]


def _found(
    launch: Launch,
    listed: Sequence[tuple[str, int]],
    address: tuple[str, int],
    interface: str,
    rendezvous: Rendezvous | None,
) -> Meeting:
    slot = places([host for host, _ in listed])[launch.rank]
    return Meeting(group_variables(slot, address, interface, os.environ), listed[launch.rank][1], rendezvous)


def _object(value: bytes) -> dict[str, Any]:
    """Decode a JSON object.

    Raises:
        ValueError: it is not one.
    """
    found = json.loads(value)
    if not isinstance(found, dict):
        raise ValueError("another program answers in place of rank 0")
    return found


def _failed(error: UserError) -> bytes:
    """Encode an error as the outcome for all ranks."""
    return json.dumps({"error": [error.what, error.why, error.remedy, int(error.code)]}).encode()


def _error(saved: Sequence[Any]) -> UserError:
    *text, code = saved
    return UserError(*map(str, text), on_all_ranks=True, code=ExitCode(code))
