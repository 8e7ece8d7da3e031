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
from contextlib import closing
from fractions import Fraction
from functools import partial
from http import HTTPStatus
from typing import Any

from crepe_dist.distributed.endpoint import ADDRESS, PORT, SECONDS, Where
from crepe_dist.distributed.environment import group_variables
from crepe_dist.distributed.interfaces import INTERFACE, is_loopback
from crepe_dist.distributed.launch import HOROVODRUN, THREADS, Launch
from crepe_dist.distributed.store import Store
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
        store: the store, on rank 0.
    """

    def __init__(self, variables: Mapping[str, str], threads: int, store: Store | None) -> None:
        self._before = {name: os.environ.get(name) for name in variables}
        self._store = store
        os.environ.update(variables)
        if not os.environ.get(THREADS, "").strip():
            os.environ[THREADS] = str(threads)

    def end(self) -> None:
        """Close the store, once the group is formed."""
        if self._store is not None:
            self._store.close()

    def leave(self) -> None:
        """Restore the environment, so that the processes can meet again."""
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def is_needed(launch: Launch, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a rendezvous is needed; horovodrun and MPI form the group themselves."""
    return launch.size > 1 and launch.launcher != HOROVODRUN and environment.get("HOROVOD_CONTROLLER") != "mpi"


def meet(launch: Launch, environment: Mapping[str, str] = os.environ) -> Meeting:
    """Wait for all processes of the job.

    Raises:
        UserError: the address is unusable, or a process does not arrive; ``on_all_ranks`` where all raise the same.
    """
    where = Where.of(launch, environment)
    return (_Leader if launch.rank == 0 else _Follower)(launch, where).meet()


class _Follower:
    """A rank other than 0."""

    def __init__(self, launch: Launch, where: Where) -> None:
        self._launch = launch
        self._where = where
        self._report = _describe(launch)
        self._own_address = ""
        self._address = ""

    def meet(self) -> Meeting:
        rank = str(self._launch.rank)
        reported = False
        patience = _Patience(self._launch.rank, self._where.seconds)
        while True:
            try:
                if not reported:
                    self._ask("PUT", rank, self._report)
                stored = self._ask("GET", rank)
                reported = stored is not None  # else rank 0 has restarted
                if stored not in (None, self._report):
                    error = _same_rank(self._launch.rank, self._report, stored)
                    self._ask("PUT", OUTCOME, _failed(error))
                    raise error
                outcome = self._ask("GET", OUTCOME)
                if outcome is not None and "error" in outcome:
                    raise _error(outcome["error"])
                if outcome is not None:
                    interface = self._where.listens_on(self._own_address)
                    endpoint = (self._address, self._where.port)
                    return _meeting(self._launch, outcome["places"], endpoint, interface, None)
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

    def _ask(self, method: str, key: str, value: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """Send a request to rank 0's store; return the value of a key.

        Raises:
            OSError, HTTPException, ValueError: rank 0 does not answer, or another program does.
        """
        self._address = ""
        self._address = self._where.address()
        with closing(
            http.client.HTTPConnection(self._address, self._where.port, timeout=REQUEST_SECONDS)
        ) as connection:
            connection.connect()
            self._own_address = connection.sock.getsockname()[0]
            connection.request(method, f"/{SCOPE}/{key}", None if value is None else _encode(value))
            reply = connection.getresponse()
            content = reply.read()
        if reply.status == HTTPStatus.OK and method == "GET":
            stored = json.loads(content)
            if isinstance(stored, dict):
                return stored
        elif reply.status in (HTTPStatus.OK, HTTPStatus.NOT_FOUND):
            return None
        raise ValueError(f"another program answers in place of rank 0 (status {reply.status})")


class _Leader:
    """Rank 0."""

    def __init__(self, launch: Launch, where: Where) -> None:
        self._launch = launch
        self._where = where
        self._patience = _Patience(0, where.seconds)

    def meet(self) -> Meeting:
        store = self._open()
        address = store.endpoint[0]
        try:
            interface = self._where.listens_on(address)
            reports = self._wait_for_all(store)
        except UserError as error:
            store.put(SCOPE, OUTCOME, _encode(_failed(error)))
            time.sleep(LEAVE_SECONDS)
            store.close()
            raise
        places = [(report["host"], threads) for report, threads in zip(reports, _shares(reports))]
        store.put(SCOPE, OUTCOME, _encode({"places": places}))
        return _meeting(self._launch, places, store.endpoint, interface, store)

    def _wait_for_all(self, store: Store) -> list[dict[str, Any]]:
        """Collect the reports of all ranks."""
        size = self._launch.size
        store.put(SCOPE, "0", _encode(_describe(self._launch)))
        while True:
            outcome = store.get(SCOPE, OUTCOME)
            if outcome is not None:  # another rank has published an error
                raise _error(json.loads(outcome)["error"])
            values = [store.get(SCOPE, str(rank)) for rank in range(size)]
            missing = [rank for rank, value in enumerate(values) if value is None]
            if not missing:
                break
            shown = ", ".join(map(str, missing[:SHOWN_RANKS])) + ", …" * (len(missing) > SHOWN_RANKS)
            incomplete = partial(self._incomplete, len(missing), store.endpoint[0])
            self._patience.wait(f"rank {shown} of {size} did not arrive", incomplete)
            time.sleep(LOOK_SECONDS)
        reports = [json.loads(value or b"") for value in values]
        for rank, report in enumerate(reports):
            if report["size"] != size:
                raise UserError(
                    f"rank 0 is one of {size} processes, rank {rank} one of {report['size']}",
                    f"rank {rank} is {_who(report)}",
                    f"start all with one command, and give two jobs on one host different values of {PORT}",
                    on_all_ranks=True,
                )
        return reports

    def _open(self) -> Store:
        """Open the store."""
        while True:
            address = ""
            try:
                address = self._where.address()
                if address == "0.0.0.0":
                    raise OSError(errno.EADDRNOTAVAIL, "")
                return Store(address, self._where.port)
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


def _who(report: Mapping[str, Any]) -> str:
    return f"pid {report['pid']} on {report['host']}"


def _same_rank(rank: int, report: Mapping[str, Any], stored: Mapping[str, Any]) -> UserError:
    return UserError(
        f"two processes are rank {rank}",
        f"one is {_who(report)}, the other {_who(stored)}",
        f"give each process its own rank, and two jobs on one host different values of {PORT}",
        on_all_ranks=True,
    )


def _shares(reports: Sequence[Mapping[str, Any]]) -> list[int]:
    """Compute the threads of each process: its cores, each divided by the number of processes that may use it."""
    users = Counter((report["host"], core) for report in reports for core in report["cores"])
    shares = (sum(Fraction(1, users[report["host"], core]) for core in report["cores"]) for report in reports)
    return [max(1, int(share)) for share in shares]


def _meeting(
    launch: Launch, places: Sequence[Sequence[Any]], endpoint: tuple[str, int], interface: str, store: Store | None
) -> Meeting:
    """Make the meeting from host and number of threads of each rank."""
    variables = group_variables([host for host, _ in places], launch.rank, endpoint, interface, os.environ)
    return Meeting(variables, places[launch.rank][1], store)


def _encode(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _failed(error: UserError) -> dict[str, Any]:
    """Encode an error as the outcome for all ranks."""
    return {"error": [error.what, error.why, error.remedy, int(error.code)]}


def _error(saved: Sequence[Any]) -> UserError:
    *text, code = saved
    return UserError(*map(str, text), on_all_ranks=True, code=ExitCode(code))
