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
from collections.abc import Mapping, Sequence
from contextlib import closing
from fractions import Fraction
from http import HTTPStatus
from typing import Any

from crepe_dist.distributed.endpoint import ADDRESS, INTERFACE, PORT, SECONDS, Endpoint, is_loopback
from crepe_dist.distributed.launch import THREADS, Launch, group_variables
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
        places: host, number of threads and id of each rank.
        endpoint: address and port of the store.
        interface: network interface of this process.
        store: the store itself, on rank 0.
    """

    def __init__(
        self,
        rank: int,
        places: Sequence[Sequence[Any]],
        endpoint: tuple[str, int],
        interface: str,
        store: Store | None = None,
    ) -> None:
        variables = group_variables([host for host, *_ in places], rank, endpoint, interface, os.environ)
        self._before = {name: os.environ.get(name) for name in variables}
        self._store = store
        os.environ.update(variables)
        if not os.environ.get(THREADS, "").strip():
            os.environ[THREADS] = str(places[rank][1])

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


def meet(launch: Launch, environment: Mapping[str, str] = os.environ) -> Meeting:
    """Wait for all processes of the job.

    Raises:
        UserError: the address is unusable, or a process does not arrive; ``on_all_ranks`` where all raise the same.
    """
    endpoint = Endpoint.of(launch, environment)
    report = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "id": secrets.token_hex(8),  # tells two processes of one rank apart
        "size": launch.size,
        "cores": sorted(os.sched_getaffinity(0)),
    }
    return (_lead if launch.rank == 0 else _follow)(launch, endpoint, report)


def _lead(launch: Launch, endpoint: Endpoint, report: Mapping[str, Any]) -> Meeting:
    """Open the store, wait for the reports of all ranks, and publish their places or an error."""
    patience = _Patience(0, endpoint.seconds)
    store = _open(endpoint, patience)
    store.put(SCOPE, "0", json.dumps(report).encode())
    try:
        interface = endpoint.listens_on(store.address)
        while missing := [rank for rank in range(launch.size) if store.get(SCOPE, str(rank)) is None]:
            shown = ", ".join(map(str, missing[:SHOWN_RANKS])) + ", …" * (len(missing) > SHOWN_RANKS)
            why = f"rank {shown} of {launch.size} did not arrive"
            if not patience.wait(why):
                alone = is_loopback(store.address)
                raise UserError(
                    f"{len(missing)} of {launch.size} processes did not arrive within {endpoint.seconds:g} s",
                    f"{why}; rank 0 waited for them on {socket.gethostname()} at {store.address}:{endpoint.port}"
                    + ", which no other host can reach" * alone,
                    f"check the output of these ranks; give all the same {ADDRESS} and {PORT}; "
                    + f"with several hosts set {INTERFACE} to their network; " * alone
                    + f"{SECONDS} sets the time limit",
                    on_all_ranks=True,
                    code=ExitCode.PEER_GONE,
                )
        reports = [json.loads(store.get(SCOPE, str(rank)) or b"") for rank in range(launch.size)]
        for rank, other in enumerate(reports):
            if other["size"] != launch.size:
                raise UserError(
                    f"rank 0 is one of {launch.size} processes, rank {rank} one of {other['size']}",
                    f"rank {rank} is pid {other['pid']} on {other['host']}",
                    f"start all with one command, and give two jobs on one host different values of {PORT}",
                    on_all_ranks=True,
                )
    except UserError as error:
        saved = [error.what, error.why, error.remedy, int(error.code)]
        store.put(SCOPE, OUTCOME, json.dumps({"error": saved}).encode())
        time.sleep(LEAVE_SECONDS)
        store.close()
        raise
    places = [(each["host"], threads, each["id"]) for each, threads in zip(reports, shares(reports))]
    store.put(SCOPE, OUTCOME, json.dumps({"places": places}).encode())
    return Meeting(launch.rank, places, (store.address, store.port), interface, store)


def _open(endpoint: Endpoint, patience: _Patience) -> Store:
    what = f"rank 0 cannot listen at {endpoint} ({ADDRESS}, {PORT})"
    while True:
        try:
            address = endpoint.address()
            if address == "0.0.0.0":
                raise OSError(errno.EADDRNOTAVAIL, "")
            return Store(address, endpoint.port)
        except socket.gaierror as error:
            why = f"{endpoint.host} is not known here: {error.strerror}"
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                why = f"{address}: {error.strerror}; another program listens there, or another process is rank 0"
                raise UserError(what, why, f"choose another {PORT}, or give each process its own rank") from error
            why = f"{address} is not an address of this host, {socket.gethostname()}"
        if not patience.wait(why):
            raise UserError(what, why, f"set {ADDRESS} to a name of rank 0's host")


def _follow(launch: Launch, endpoint: Endpoint, report: Mapping[str, Any]) -> Meeting:
    """Report to rank 0, anew in each round in case it has restarted, until it publishes the outcome."""
    patience = _Patience(launch.rank, endpoint.seconds)
    address, why = "", ""
    while True:
        try:
            address = endpoint.address()
            _ask((address, endpoint.port), "PUT", str(launch.rank), report)
            outcome, own_address = _ask((address, endpoint.port), "GET", OUTCOME)
            if outcome is not None:
                break
            patience.renew()  # rank 0 answers, and limits the time itself
        except socket.gaierror as error:
            why = f"{endpoint.host} is not known here: {error.strerror}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = f"{address}: {error.strerror if isinstance(error, OSError) else error}"
        if not patience.wait(why or f"rank 0 answers at {endpoint}, other ranks are missing"):
            raise UserError(
                f"rank 0 did not answer at {endpoint} ({ADDRESS}, {PORT}) within {endpoint.seconds:g} s",
                why,
                f"check rank 0's output, that {ADDRESS} is its host, and that the network permits TCP; "
                f"{SECONDS} sets the time limit",
                code=ExitCode.PEER_GONE,
            )
    if "error" in outcome:
        what, why, remedy, code = outcome["error"]
        raise UserError(what, why, remedy, on_all_ranks=True, code=code)
    places = outcome["places"]
    if places[launch.rank][2] != report["id"]:
        raise UserError(
            f"two processes are rank {launch.rank}",
            f"the other is on {places[launch.rank][0]}",
            f"give each process its own rank, and two jobs on one host different values of {PORT}",
        )
    return Meeting(launch.rank, places, (address, endpoint.port), endpoint.listens_on(own_address))


def _ask(
    store: tuple[str, int], method: str, key: str, value: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any] | None, str]:
    """Send a request to rank 0's store; return the value of a key, and this process's address.

    Raises:
        OSError, HTTPException, ValueError: rank 0 does not answer, or another program does.
    """
    with closing(http.client.HTTPConnection(*store, timeout=REQUEST_SECONDS)) as connection:
        connection.connect()
        own_address = connection.sock.getsockname()[0]
        connection.request(method, f"/{SCOPE}/{key}", None if value is None else json.dumps(value))
        reply = connection.getresponse()
        content = reply.read()
    if reply.status == HTTPStatus.OK and method == "GET":
        stored = json.loads(content)
        if isinstance(stored, dict):
            return stored, own_address
    elif reply.status in (HTTPStatus.OK, HTTPStatus.NOT_FOUND):
        return None, own_address
    raise ValueError(f"another program answers in place of rank 0 (status {reply.status})")


class _Patience:
    """Time limit of a waiting rank."""

    def __init__(self, rank: int, seconds: float) -> None:
        self._rank = rank
        self._seconds = seconds
        self._noted = False
        self.renew()

    def renew(self) -> None:
        self._since = time.monotonic()

    def wait(self, why: str) -> bool:
        """Wait a moment, and print a note once after ``NOTE_SECONDS``; return False once the time is over."""
        waited = time.monotonic() - self._since
        if waited >= NOTE_SECONDS and not self._noted:
            self._noted = True
            print(f"[rank {self._rank}] waiting, {self._seconds:g} s at most: {why}", file=sys.stderr, flush=True)
        time.sleep(LOOK_SECONDS)
        return waited < self._seconds


def shares(reports: Sequence[Mapping[str, Any]]) -> list[int]:
    """Compute the threads of each process: its cores, each divided by the number of processes that may use it."""
    users = Counter((report["host"], core) for report in reports for core in report["cores"])
    shares = (sum(Fraction(1, users[report["host"], core]) for core in report["cores"]) for report in reports)
    return [max(1, int(share)) for share in shares]
