"""How processes find each other whose scheduler tells them their rank and their number, and nothing else.

They meet at ``MASTER_ADDR`` and ``MASTER_PORT``, the names that torchrun uses. Rank 0 opens a rendezvous there; each
rank says on which host it is and which cores it may use; from that rank 0 makes the list of all, and from the list each
rank finds its place. The same rendezvous then serves Gloo, and closes once the group is formed. Values are JSON.
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
from crepe_dist.distributed.hosts import NAME, is_loopback, places, scopes
from crepe_dist.distributed.launch import HOROVODRUN, THREADS, Launch
from crepe_dist.distributed.store import Rendezvous
from crepe_dist.errors import ExitCode, UserError

NOTE_SECONDS = 10.0  # of waiting before it is said for what
LOOK_SECONDS = 0.1
REQUEST_SECONDS = 5.0
LEAVE_SECONDS = 2.0  # for the others to read that there will be no group
SCOPE, OUTCOME = "meeting", "outcome"
SHOWN_RANKS = 16


class Meeting:
    """The place of this process in its group, which stands in the environment until it leaves the group.

    Args:
        variables: the place.
        threads: this process's share of the host's cores; ``OMP_NUM_THREADS`` becomes it, unless it is set.
        rendezvous: of rank 0.
    """

    def __init__(self, variables: Mapping[str, str], threads: int, rendezvous: Rendezvous | None) -> None:
        self._before = {name: os.environ.get(name) for name in variables}
        self._rendezvous = rendezvous
        os.environ.update(variables)
        if not os.environ.get(THREADS, "").strip():
            os.environ[THREADS] = str(threads)

    def end(self) -> None:
        """All have found each other: nothing listens any more."""
        if self._rendezvous is not None:
            self._rendezvous.close()
            self._rendezvous = None

    def leave(self) -> None:
        """The environment is as before, so that the processes can meet anew."""
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def is_needed(launch: Launch, environment: Mapping[str, str] = os.environ) -> bool:
    """Not where the launcher has said everything, as horovodrun and the supervisor do, or where MPI will."""
    return launch.size > 1 and launch.launcher != HOROVODRUN and environment.get("HOROVOD_CONTROLLER") != "mpi"


def meet(launch: Launch, environment: Mapping[str, str] = os.environ) -> Meeting:
    """Waits for all processes of the job.

    Raises:
        UserError: there is no place to meet, or somebody does not come; ``on_all_ranks`` where all raise the same.
    """
    where = Where.of(launch, environment)
    return _Root(launch, where).meet() if launch.rank == 0 else _Guest(launch, where).meet()


class _Guest:
    """Any rank but 0."""

    def __init__(self, launch: Launch, where: Where) -> None:
        self._launch = launch
        self._where = where
        self._me = _describe(launch)
        self._own_address = ""
        self._address = ""

    def meet(self) -> Meeting:
        said = False
        patience = _Patience(self._launch.rank, self._where.seconds)
        while True:
            try:
                if not said:
                    self._ask("PUT", str(self._launch.rank), json.dumps(self._me).encode())
                    said = True
                own = self._ask("GET", str(self._launch.rank))
                if own is None:
                    said = False  # a rank 0 that is new
                elif own != self._me:
                    raise self._complain(own)
                outcome = self._ask("GET", OUTCOME)
                if outcome is not None:
                    return self._take(outcome)
                patience.renew()  # rank 0 is there, and counts the time itself
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
            f"look at what rank 0 says; see to it that {ADDRESS} is its host, and that the network lets TCP through; "
            f"{SECONDS} sets the time",
            code=ExitCode.PEER_GONE,
        )

    def _take(self, outcome: dict[str, Any]) -> Meeting:
        if "error" in outcome:
            raise _error(outcome["error"])
        try:
            listed = [(str(host), int(threads)) for host, threads in outcome["places"]]
        except (KeyError, TypeError) as error:
            raise ValueError("something answers that is not rank 0") from error
        interface = self._where.listens_on(self._own_address)
        return _found(self._launch, listed, (self._address, self._where.port), interface, None)

    def _complain(self, other: dict[str, Any]) -> UserError:
        """Another process says that it has this rank: there will be no group, and all are told."""
        error = UserError(
            f"two processes are rank {self._launch.rank}",
            f"one is {_who(self._me)}, the other {_who(other)}",
            f"see to it that each gets its own rank; where two jobs use one host, give each another {PORT}",
            on_all_ranks=True,
        )
        self._ask("PUT", OUTCOME, _failed(error))
        return error

    def _ask(self, method: str, key: str, body: bytes | None = None) -> dict[str, Any] | None:
        """What rank 0's rendezvous has of that name.

        Raises:
            OSError, HTTPException, ValueError: rank 0 is not there, or what answers is not rank 0.
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
            raise ValueError(f"something answers that is not rank 0 (status {reply.status})")
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
        rendezvous.store.expect(scopes(places([host for host, _ in listed])))
        rendezvous.store.put(SCOPE, OUTCOME, json.dumps({"places": listed}).encode())
        return _found(self._launch, listed, (rendezvous.address, rendezvous.port), interface, rendezvous)

    def _wait_for_all(self, rendezvous: Rendezvous) -> list[dict[str, Any]]:
        """What all ranks say of themselves.

        Raises:
            UserError: one does not come, or is none of this job.
        """
        store, ranks = rendezvous.store, range(self._launch.size)
        store.put(SCOPE, "0", json.dumps(_describe(self._launch)).encode())
        while True:
            outcome = store.get(SCOPE, OUTCOME)
            if outcome is not None:  # a rank has found that there can be no group
                raise _error(_object(outcome)["error"])
            found = [store.get(SCOPE, str(rank)) for rank in ranks]
            missing = [rank for rank in ranks if found[rank] is None]
            if not missing:
                return [_entry(rank, found[rank] or b"", self._launch) for rank in ranks]
            shown = ", ".join(map(str, missing[:SHOWN_RANKS])) + ", …" * (len(missing) > SHOWN_RANKS)
            incomplete = partial(self._incomplete, len(missing), rendezvous.address)
            self._patience.wait(f"rank {shown} of {self._launch.size} did not come", incomplete)
            time.sleep(LOOK_SECONDS)

    def _open(self) -> Rendezvous:
        """
        Raises:
            UserError: the place cannot be opened, or is not on this host.
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
                        f"another program listens there (torchrun's own store, another job), or a second process takes "
                        f"itself for rank 0: give another {PORT}, or see to it that each has its own rank",
                    ) from error
                why = f"{address} is not an address of this host, {socket.gethostname()}"
            self._patience.wait(why, lambda why: self._unopened(why, f"set {ADDRESS} to a name of rank 0's host"))
            time.sleep(LOOK_SECONDS)

    def _unopened(self, why: str, remedy: str) -> UserError:
        return UserError(f"rank 0 cannot listen at {self._where} ({ADDRESS}, {PORT})", why, remedy)

    def _incomplete(self, missing: int, address: str, why: str) -> UserError:
        alone = is_loopback(address)
        return UserError(
            f"{missing} of {self._launch.size} processes did not come within {self._where.seconds:g} s",
            f"{why}; rank 0 waited for them on {socket.gethostname()} at {address}:{self._where.port}"
            + ", which no other host can reach" * alone,
            f"look at what these ranks say; give all the same {ADDRESS} and {PORT}; "
            + f"with several hosts set {INTERFACE} to their network; " * alone
            + f"{SECONDS} sets the time",
            on_all_ranks=True,
            code=ExitCode.PEER_GONE,
        )


class _Patience:
    """Of a rank that waits."""

    def __init__(self, rank: int, seconds: float) -> None:
        self._rank = rank
        self._seconds = seconds
        self._noted = False
        self.renew()

    def renew(self) -> None:
        self._since = time.monotonic()

    def wait(self, why: str, error: Callable[[str], UserError]) -> None:
        """
        Raises:
            UserError: what ``error`` makes of ``why``, once it has lasted too long.
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
        "id": secrets.token_hex(8),  # of two processes of one rank, which is which
        "size": launch.size,
        "cores": sorted(os.sched_getaffinity(0)),
    }


def _who(entry: Mapping[str, Any]) -> str:
    return f"pid {entry.get('pid')} on {entry.get('host')}"


def _entry(rank: int, value: bytes, launch: Launch) -> dict[str, Any]:
    """What a rank said of itself.

    Raises:
        UserError: it is none of this job, or of none.
    """
    try:
        entry = _object(value)
        fits = NAME.fullmatch(entry["host"]) and all(isinstance(core, int) for core in entry["cores"])
    except (ValueError, KeyError, TypeError):
        entry, fits = {}, None
    if not fits:
        raise UserError(
            f"what came as rank {rank} is no process of this program", remedy=f"give another {PORT}", on_all_ranks=True
        )
    if entry["size"] != launch.size:
        raise UserError(
            f"rank 0 is one of {launch.size} processes, rank {rank} one of {entry['size']}",
            f"rank {rank} is {_who(entry)}",
            f"start all with one command; where two jobs use one host, give each another {PORT}",
            on_all_ranks=True,
        )
    return entry


def _shares(entries: list[dict[str, Any]]) -> list[int]:
    """Threads of each process: the cores that it may use, each divided by the processes that may use it, too."""
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
    return Meeting(group_variables(slot, address, interface), listed[launch.rank][1], rendezvous)


def _object(value: bytes) -> dict[str, Any]:
    """
    Raises:
        ValueError: it is no JSON object.
    """
    found = json.loads(value)
    if not isinstance(found, dict):
        raise ValueError("something answers that is not rank 0")
    return found


def _failed(error: UserError) -> bytes:
    """The outcome for all ranks."""
    return json.dumps({"error": [error.what, error.why, error.remedy, int(error.code)]}).encode()


def _error(told: Sequence[Any]) -> UserError:
    *text, code = told
    return UserError(*map(str, text), on_all_ranks=True, code=ExitCode(code))
