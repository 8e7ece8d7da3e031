"""Listener that authenticates many clients at the same time, of which some may be attackers."""

import errno
import queue
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress

from crepe_dist.distributed.channel import Schema, WrongSecretError
from crepe_dist.distributed.handshake import AuthenticatedCaller, LocalProcess, authenticate_caller
from crepe_dist.errors import UserError

MAX_UNKNOWN_CALLERS = 64  # Maximum number of unauthenticated clients in addition to the expected processes.
POLL_SECONDS = 0.1  # Time limit of one poll for clients.
# Time limit of one poll while clients are authenticated. Each rank waits for the rank before it, so the delays add up.
PENDING_SECONDS = 0.002
OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def raise_resource_error(error: BaseException) -> None:
    """Raise ``UserError`` if ``error`` means that this process or host has run out of file descriptors or memory."""
    if isinstance(error, OSError) and error.errno in OUT_OF_RESOURCES:
        raise UserError(
            "this process cannot open a connection to another process",
            f"{error.strerror}: each process needs one connection per other process",
            "free memory on this host"
            if error.errno in (errno.ENOBUFS, errno.ENOMEM)
            else "raise the limit above the number of processes before you start the command: ulimit -n 65536",
        ) from error


class CallerListener:
    """Iterable of the clients that connect to a listening socket. The iterable authenticates all clients concurrently.

    The iteration yields an ``AuthenticatedCaller`` for each client that has an expected rank and proves that it has the
    secret. It yields ``None`` about every ``POLL_SECONDS``, so that the loop body can check a deadline. A client that
    does not authenticate itself in time is disconnected. If there are too many clients, the oldest one is disconnected
    before. The socket is closed at the end of the iteration.

    Args:
        listener: Listening socket.
        own: This process.
        ranks: Expected ranks.
        schema: Schema of the first message of a client.

    Attributes:
        refused_host: IP address of the last client with a wrong secret. It is empty if there was none.

    Raises:
        UserError: This process or this host has run out of file descriptors or memory.
    """

    def __init__(self, listener: socket.socket, own: LocalProcess, ranks: Sequence[int], schema: Schema) -> None:
        self.refused_host = ""
        self._listener, self._own, self._ranks, self._schema = listener, own, ranks, schema
        self._pending: dict[socket.socket, bool] = {}  # Clients that are not authenticated yet, the oldest first.
        self._arrived: queue.SimpleQueue[AuthenticatedCaller] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[AuthenticatedCaller | None]:
        with self._listener:
            try:
                while True:
                    yield None
                    self._listener.settimeout(PENDING_SECONDS if self._pending else POLL_SECONDS)
                    self._accept()
                    while not self._arrived.empty():
                        yield self._arrived.get()
            finally:
                while self._pending:
                    self._disconnect_oldest()

    def _accept(self) -> None:
        """Wait for a client, and authenticate it in a thread."""
        try:
            peer, (host, _) = self._listener.accept()
        except OSError as error:
            # Clients that do not belong to the job may have used up the file descriptors. If the oldest client does
            # belong to the job, it connects again.
            if not self._pending:
                raise_resource_error(error)
            elif error.errno in OUT_OF_RESOURCES:
                self._disconnect_oldest()
            return  # The time limit has passed, or the error concerns only the new client.
        if len(self._pending) >= MAX_UNKNOWN_CALLERS + len(self._ranks):
            # A process of the job finishes its handshake quickly, so the oldest client probably does not belong to the
            # job.
            self._disconnect_oldest()
        self._pending[peer] = True
        threading.Thread(target=self._authenticate, args=(peer, host), daemon=True).start()

    def _authenticate(self, peer: socket.socket, host: str) -> None:
        caller = None
        try:
            caller = authenticate_caller(peer, host, self._own, self._schema, self._ranks)
        except (OSError, ValueError) as error:
            if isinstance(error, WrongSecretError):
                self.refused_host = host
        is_pending = self._pending.pop(peer, False)
        if caller and is_pending:
            self._arrived.put(caller)
        else:
            peer.close()

    def _disconnect_oldest(self) -> None:
        for oldest in list(self._pending)[:1]:
            self._pending.pop(oldest, None)
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # This ends the handshake, and its thread closes the connection.
