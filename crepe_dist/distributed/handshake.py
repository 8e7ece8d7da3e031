"""Mutual authentication of two processes by a shared secret, and their first messages.

The client is the process that opens the connection. The names in this module call the client the caller. The listener
is the process that accepts the connection.

1. The client sends a greeting: its rank, the world size and a nonce.
2. The listener answers with its own nonce.
3. Each end derives a key for this connection from the nonces, the ranks, the world size and the secret.
4. Every later message carries a message authentication code (MAC): an HMAC-SHA256 of the sender's role, the number of
   the message and its content. The MAC proves that the sender has the secret. The MAC also protects the message from
   modification, from replay, and from being reflected to its sender.

Nothing is encrypted. If there is no secret, the protocol is the same, but the MAC proves nothing.

A message consists of a length, JSON, and the MAC. The greeting and the answer have no MAC. The listener sends an empty
message to a client whose MAC is wrong. Each function that receives messages is a generator that yields while it waits
for data. A listener can therefore serve many clients concurrently.
"""

from __future__ import annotations

import errno
import hmac
import json
import re
import secrets
import select
import selectors
import socket
import struct
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from crepe_dist.errors import UserError

SECRET_ENV = "CREPE_DIST_SECRET"
MIN_SECRET_LENGTH = 16  # Minimum length of the secret, in characters.
MAX_RANKS = 1 << 20  # Maximum number of ranks.
HANDSHAKE_SECONDS = 5.0  # Time limit for the greeting and the first message of a client, which may be an attacker.
MAX_MESSAGE_BYTES = 1 << 12  # Maximum size of the greeting, and default maximum size of later messages.
MAX_UNKNOWN_CALLERS = 64  # Maximum number of clients that a listener serves in addition to the expected processes.
POLL_SECONDS = 0.1  # Time limit of one poll for clients and their messages.
LENGTH_STRUCT = struct.Struct("<I")  # Length of a message, in bytes.
# Input of the key derivation: the protocol, the ranks of the listener and the client, and the world size.
KEY_CONTEXT_STRUCT = struct.Struct("<16sIII")
PROTOCOL = b"crepe_dist 1"
# The MAC covers two fields and the content. The fields are a flag, which is True if the client is the sender, and the
# number of the message.
MAC_PREFIX_STRUCT = struct.Struct("<?I")
DIGEST = "sha256"
MAC_BYTES = 32  # Length of a MAC.
# Errors of accept(2) that concern only one connection, according to the Linux manual. The client has disconnected, for
# example.
CALLER_GONE_ERRNOS = (
    errno.ECONNABORTED, errno.EINTR, errno.EAGAIN, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP,
    errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET,
)  # fmt: skip
Message = dict[str, Any]
Schema = Mapping[str, Callable[[Any], bool]]
T = TypeVar("T")
Steps = Generator[None, None, T]


class UnknownPeerError(ValueError):
    """The peer is not a process of this job, or it has closed the connection."""


class WrongSecretError(UnknownPeerError):
    """The peer has not proved that it has the same secret."""


class RefusedError(UnknownPeerError):
    """The listener refuses this process because this process has not proved that it has the same secret."""


def string_check(max_length: int) -> Callable[[Any], bool]:
    """Return a check for a string of at most ``max_length`` characters."""
    return lambda value: isinstance(value, str) and len(value) <= max_length


def int_check(minimum: int, maximum: int) -> Callable[[Any], bool]:
    """Return a check for an integer from ``minimum`` to ``maximum``."""
    return lambda value: type(value) is int and minimum <= value <= maximum


def is_token(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


GREETING_SCHEMA: Schema = {"rank": int_check(0, MAX_RANKS - 1), "size": int_check(1, MAX_RANKS), "nonce": is_token}
ANSWER_SCHEMA: Schema = {"nonce": is_token}


def read_secret(environment: Mapping[str, str]) -> bytes:
    """Read the shared secret from the environment. Return an empty secret if none is set.

    Raises:
        UserError: The secret is too short.
    """
    secret = environment.get(SECRET_ENV, "").strip()
    if 0 < len(secret) < MIN_SECRET_LENGTH:
        raise UserError(
            f"{SECRET_ENV} has {len(secret)} characters",
            "an attacker who records the start of a job can find a short secret by trying all of them",
            f"set the same secret of at least {MIN_SECRET_LENGTH} characters for all processes; "
            f"`openssl rand -hex 32` prints one",
        )
    return secret.encode(errors="surrogateescape")


def raise_resource_error(error: BaseException) -> None:
    """Raise ``UserError`` if ``error`` means that this process or host has run out of file descriptors or memory."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        raise UserError(
            "this process cannot open a connection to another process",
            f"{error.strerror}: each process needs one connection per other process",
            "raise the limit above the number of processes before you start the command: ulimit -n 65536",
        ) from error
    if isinstance(error, OSError) and error.errno in (errno.ENOBUFS, errno.ENOMEM):
        raise UserError(
            "this process cannot open a connection to another process", str(error.strerror), "free memory on this host"
        ) from error


@dataclass(frozen=True)
class LocalProcess:
    """Rank of this process, the world size, and the secret that authenticates the connections of this process.

    Attributes:
        kind: Word for the processes, for messages. A supervisor is a "node", and its rank is the rank of its node.
    """

    rank: int
    size: int
    secret: bytes
    kind: str = "rank"

    def __str__(self) -> str:
        return f"{self.kind} {self.rank}"

    def derive(self, token: str) -> LocalProcess:
        """Return the same process with a secret that is derived from the secret and a token of its rank 0."""
        return replace(self, secret=hmac.digest(self.secret, token.encode(), DIGEST))


class Channel:
    """Connection to another process, with messages that are authenticated by a shared key.

    Args:
        peer: Connected non-blocking socket.
        key: Key of this connection.
        is_caller: True if this process is the client, which opened the connection.
    """

    def __init__(self, peer: socket.socket, key: bytes, is_caller: bool) -> None:
        self.peer = peer
        self._key = key
        self._is_caller = is_caller
        self._num_sent = self._num_received = 0

    def send(self, message: Message) -> None:
        """Send a message."""
        data = json.dumps(message).encode()
        _send_message(self.peer, data + self._mac(self._is_caller, self._num_sent, data))
        self._num_sent += 1

    def receive(self, schema: Schema, max_bytes: int = MAX_MESSAGE_BYTES) -> Steps[Message]:
        """Receive a message of at most ``max_bytes`` bytes that matches the schema.

        Raises:
            UnknownPeerError: The message is malformed or too large, or the peer has closed the connection.
            WrongSecretError: The MAC of the message is wrong.
            RefusedError: The peer reports that the MAC of this process's last message was wrong.
            OSError: The connection is broken.
        """
        data = yield from _receive_message(self.peer, max_bytes + MAC_BYTES)
        content, mac = data[:-MAC_BYTES], data[-MAC_BYTES:]
        if not data:
            raise RefusedError("this process has not proved that it has the same secret")
        if not hmac.compare_digest(mac, self._mac(not self._is_caller, self._num_received, content)):
            raise WrongSecretError("the other process does not prove that it has the same secret")
        self._num_received += 1
        return _parse_message(content, schema)

    def refuse(self) -> None:
        """Report to a client that its MAC is wrong."""
        _send_message(self.peer, b"")

    def _mac(self, by_caller: bool, number: int, content: bytes) -> bytes:
        return hmac.digest(self._key, MAC_PREFIX_STRUCT.pack(by_caller, number) + content, DIGEST)


def greet(peer: socket.socket, own: LocalProcess, rank: int) -> Steps[Channel]:
    """Send the greeting to the listener, whose rank is ``rank``, and return the channel.

    When this function returns, the listener is not authenticated yet. The listener's first message on the channel
    proves that the listener has the secret.

    Raises:
        UnknownPeerError, OSError: For the same reasons as in ``Channel.receive``.
    """
    peer.setblocking(False)
    greeting = {"rank": own.rank, "size": own.size, "nonce": secrets.token_hex(32)}
    _send_message(peer, json.dumps(greeting).encode())
    answer = _parse_message((yield from _receive_message(peer, MAX_MESSAGE_BYTES)), ANSWER_SCHEMA)
    return Channel(peer, _derive_key(own, rank, greeting, answer), is_caller=True)


def _authenticate_caller(
    peer: socket.socket, host: str, own: LocalProcess, schema: Schema, ranks: Sequence[int]
) -> Steps[AuthenticatedCaller]:
    """Answer a client, and return it after it has proved that it has the secret."""
    greeting = _parse_message((yield from _receive_message(peer, MAX_MESSAGE_BYTES)), GREETING_SCHEMA)
    if greeting["rank"] not in ranks:
        raise UnknownPeerError("its rank is not expected")
    answer = {"nonce": secrets.token_hex(32)}
    _send_message(peer, json.dumps(answer).encode())
    channel = Channel(peer, _derive_key(own, own.rank, greeting, answer), is_caller=False)
    try:
        message = yield from channel.receive(schema)
    except WrongSecretError:
        channel.refuse()
        raise
    return AuthenticatedCaller(channel, host, greeting["rank"], greeting["size"], message)


def _derive_key(own: LocalProcess, listener: int, greeting: Message, answer: Message) -> bytes:
    """Derive the key of a connection from its handshake. ``listener`` is the rank of the listener."""
    context = KEY_CONTEXT_STRUCT.pack(PROTOCOL, listener, greeting["rank"], greeting["size"])
    nonces = bytes.fromhex(answer["nonce"]) + bytes.fromhex(greeting["nonce"])
    return hmac.digest(own.secret, context + nonces, DIGEST)


@dataclass(frozen=True)
class AuthenticatedCaller:
    """Client that has proved that it has the secret.

    Attributes:
        channel: Channel to the client.
        host: IP address of the client.
        rank: Rank of the client.
        size: World size that the client reported.
        message: First message of the client.
    """

    channel: Channel
    host: str
    rank: int
    size: int
    message: Message


class CallerListener:
    """Iterable of the clients that connect to a listening socket. The iterable serves all clients concurrently.

    The iteration yields an ``AuthenticatedCaller`` for each client that has an expected rank and proves that it has the
    secret. It yields ``None`` before each poll, so that the loop body can check a deadline. A client that does not
    authenticate itself within ``HANDSHAKE_SECONDS`` is disconnected. If there are too many clients, the oldest one is
    disconnected before this time limit. The socket is closed at the end of the iteration.

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
        self._listener = listener
        self._own = own
        self._ranks = ranks
        self._schema = schema
        # Handshake, host and deadline of each client that is not authenticated yet, with the oldest client first.
        self._pending: dict[socket.socket, tuple[Steps[AuthenticatedCaller], str, float]] = {}

    def __iter__(self) -> Iterator[AuthenticatedCaller | None]:
        with self._listener, selectors.DefaultSelector() as selector:
            self._listener.setblocking(False)
            selector.register(self._listener, selectors.EVENT_READ)
            try:
                while True:
                    yield None
                    for ready, _ in selector.select(POLL_SECONDS):
                        if ready.fileobj is self._listener:
                            self._accept(selector)
                        elif caller := self._continue_handshake(ready.fileobj, selector):
                            yield caller
                    now = time.monotonic()
                    for peer in [peer for peer, (_, _, deadline) in self._pending.items() if deadline < now]:
                        self._disconnect(peer, selector)
            finally:
                for peer in list(self._pending):
                    self._disconnect(peer, selector)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            peer, (host, _) = self._listener.accept()
        except OSError as error:
            if error.errno in CALLER_GONE_ERRNOS:
                return
            if not self._pending:
                raise_resource_error(error)
                raise
            # Clients that do not belong to the job may have used up the file descriptors, so the oldest client is
            # disconnected. If this client does belong to the job, it connects again.
            self._disconnect(next(iter(self._pending)), selector)
            return
        peer.setblocking(False)
        if len(self._pending) >= MAX_UNKNOWN_CALLERS + len(self._ranks):
            # A process of the job finishes its handshake quickly, so the oldest client probably does not belong to the
            # job.
            self._disconnect(next(iter(self._pending)), selector)
        handshake = _authenticate_caller(peer, host, self._own, self._schema, self._ranks)
        self._pending[peer] = handshake, host, time.monotonic() + HANDSHAKE_SECONDS
        selector.register(peer, selectors.EVENT_READ)

    def _continue_handshake(self, peer: Any, selector: selectors.BaseSelector) -> AuthenticatedCaller | None:
        if peer not in self._pending:  # The client was disconnected after the poll.
            return None
        try:
            next(self._pending[peer][0])
        except StopIteration as end:
            selector.unregister(peer)
            del self._pending[peer]
            caller: AuthenticatedCaller = end.value
            return caller
        except WrongSecretError:
            self.refused_host = self._pending[peer][1]
            self._disconnect(peer, selector)
        except (OSError, ValueError):
            self._disconnect(peer, selector)
        return None

    def _disconnect(self, peer: socket.socket, selector: selectors.BaseSelector) -> None:
        selector.unregister(peer)
        del self._pending[peer]
        peer.close()


def run_with_timeout(seconds: float, peer: socket.socket, steps: Steps[T]) -> T:
    """Run a generator of this module to its end, and return its result. After each yield, wait for data from ``peer``.

    Raises:
        TimeoutError: The time limit has passed. Errors of ``steps`` are not caught.
    """
    deadline = time.monotonic() + seconds
    poller = select.poll()
    poller.register(peer, select.POLLIN)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        if not poller.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
            raise TimeoutError("the other process does not answer")


def _send_message(peer: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # The caller of this function detects a broken connection when it receives the answer.
        timeout = peer.gettimeout()
        peer.settimeout(HANDSHAKE_SECONDS)
        peer.sendall(LENGTH_STRUCT.pack(len(data)) + data)
        peer.settimeout(timeout)


def _receive_message(peer: socket.socket, max_bytes: int) -> Steps[bytes]:
    """Receive a message, including its MAC if it has one, of at most ``max_bytes`` bytes."""
    data, length = bytearray(), LENGTH_STRUCT.size
    while len(data) < length:
        try:
            chunk = peer.recv(length - len(data))
        except BlockingIOError:
            yield
            continue
        if not chunk:
            raise UnknownPeerError("another program answers, or the process has ended")
        data += chunk
        if len(data) == LENGTH_STRUCT.size and length == LENGTH_STRUCT.size:
            length += LENGTH_STRUCT.unpack(data)[0]
            if length > LENGTH_STRUCT.size + max_bytes:
                raise UnknownPeerError("another program answers")
    return bytes(data[LENGTH_STRUCT.size :])


def _parse_message(content: bytes, schema: Schema) -> Message:
    """Parse a JSON object, and validate it against a schema.

    Raises:
        UnknownPeerError: The content is not a JSON object, its keys differ from the keys of ``schema``, or a value
            fails the check of its key.
    """
    message: Any = None
    with suppress(ValueError, RecursionError):
        message = json.loads(content)
    if not isinstance(message, dict) or message.keys() != schema.keys():
        raise UnknownPeerError("another program answers, or another version of crepe_dist")
    if wrong := [name for name, check in schema.items() if not check(message[name])]:
        raise UnknownPeerError(f"another program answers, with a wrong {wrong[0]}")
    return message
