"""Mutual authentication of two processes by a shared secret, and their first messages.

The caller sends a greeting: its rank, the world size and a nonce. The listener answers with a nonce of its own. From
these, both ranks and the secret, each end derives a key for this connection. Every later message carries an HMAC-SHA256
of its sender's role, its number and its content, so each end proves that it has the secret, and a message cannot be
changed, repeated or sent back. Nothing is encrypted. Without a secret the protocol is the same, and proves nothing.

A message is a length, JSON, and the MAC if there is one. An empty message refuses a caller whose MAC is wrong. Each
function that receives is a generator, which yields while nothing has arrived: a listener runs many of them at a time.
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
from dataclasses import dataclass
from typing import Any, TypeVar

from crepe_dist.errors import UserError

SECRET_ENV = "CREPE_DIST_SECRET"
MIN_SECRET_LENGTH = 16  # characters
MAX_RANKS = 1 << 20
HANDSHAKE_SECONDS = 5.0  # for the greeting and the first message of a caller, who may be a stranger
MAX_MESSAGE_BYTES = 1 << 12  # of each of these
MAX_UNKNOWN_CALLERS = 64  # callers beside the expected ones that a listener hears at a time
POLL_SECONDS = 0.1
LENGTH_STRUCT = struct.Struct("<I")
KEY_CONTEXT_STRUCT = struct.Struct(
    "<16sIII"
)  # of a key: this protocol, the ranks of listener and caller, and the world size
PROTOCOL = b"crepe_dist 1"
MAC_PREFIX_STRUCT = struct.Struct("<?I")  # before the content of a message in its MAC: sent by the caller; its number
DIGEST = "sha256"
MAC_BYTES = 32
# Errors of accept that belong to the connection, according to Linux's manual: the caller has gone.
CALLER_GONE_ERRNOS = (
    errno.ECONNABORTED, errno.EINTR, errno.EAGAIN, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP,
    errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET,
)  # fmt: skip
Message = dict[str, Any]
Schema = Mapping[str, Callable[[Any], bool]]
T = TypeVar("T")
Steps = Generator[None, None, T]


class UnknownPeerError(ValueError):
    """The other end is no process of this job, or has ended."""


class WrongSecretError(UnknownPeerError):
    """The other end does not prove that it has the same secret."""


class RefusedError(UnknownPeerError):
    """A listener refuses this process, which has not proved that it has the same secret."""


def string_check(most: int) -> Callable[[Any], bool]:
    """Return a check for a string of at most ``most`` characters."""
    return lambda value: isinstance(value, str) and len(value) <= most


def int_check(first: int, last: int) -> Callable[[Any], bool]:
    """Return a check for an integer from ``first`` to ``last``."""
    return lambda value: type(value) is int and first <= value <= last


def is_token(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


GREETING_SCHEMA: Schema = {"rank": int_check(0, MAX_RANKS - 1), "size": int_check(1, MAX_RANKS), "nonce": is_token}
ANSWER_SCHEMA: Schema = {"nonce": is_token}


def read_secret(environment: Mapping[str, str]) -> bytes:
    """Read the shared secret from the environment; empty if there is none.

    Raises:
        UserError: it is too short.
    """
    secret = environment.get(SECRET_ENV, "").strip()
    if 0 < len(secret) < MIN_SECRET_LENGTH:
        raise UserError(
            f"{SECRET_ENV} has {len(secret)} characters",
            "someone who records the start of a job can try all short secrets",
            f"give all processes the same {MIN_SECRET_LENGTH} characters or more, as `openssl rand -hex 32` prints "
            f"them",
        )
    return secret.encode(errors="surrogateescape")


def raise_resource_error(error: BaseException) -> None:
    """Raise ``UserError`` if an error means that this process or its host has no file descriptor or memory left."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        raise UserError(
            "this process cannot open a connection to another one",
            f"{error.strerror}: each process has a connection to every other one",
            "raise the limit before the command, to more than the number of processes: ulimit -n 65536",
        ) from error
    if isinstance(error, OSError) and error.errno in (errno.ENOBUFS, errno.ENOMEM):
        raise UserError(
            "this process cannot open a connection to another one", str(error.strerror), "free memory on this host"
        ) from error


@dataclass(frozen=True)
class LocalProcess:
    """This process: its rank, the world size, and the secret of the connections that it takes part in."""

    rank: int
    size: int
    secret: bytes


class Channel:
    """Connection to another process. Both ends have the same key.

    Args:
        peer: the connection, which becomes non-blocking.
        key: key of this connection.
        is_caller: this end has called.
    """

    def __init__(self, peer: socket.socket, key: bytes, is_caller: bool) -> None:
        self.peer = peer
        self._key = key
        self._is_caller = is_caller
        self._sent = self._received = 0

    def send(self, message: Message) -> None:
        """Send a message."""
        data = json.dumps(message).encode()
        _send_message(self.peer, data + self._mac(self._is_caller, self._sent, data))
        self._sent += 1

    def receive(self, checks: Schema, most: int = MAX_MESSAGE_BYTES) -> Steps[Message]:
        """Receive a message of at most ``most`` bytes that passes the checks.

        Raises:
            Stranger: it is malformed, or the other end has ended.
            WrongSecret: its MAC is wrong.
            Refused: the other end says that the MAC of this end's last message is wrong.
            OSError: the connection is broken.
        """
        data = yield from _receive_message(self.peer, most + MAC_BYTES)
        content, mac = data[:-MAC_BYTES], data[-MAC_BYTES:]
        if not data:
            raise RefusedError("this process has not proved that it has the same secret")
        if not hmac.compare_digest(mac, self._mac(not self._is_caller, self._received, content)):
            raise WrongSecretError("it does not prove that it has the secret")
        self._received += 1
        return _parse_message(content, checks)

    def refuse(self) -> None:
        """Tell a caller that its MAC is wrong."""
        _send_message(self.peer, b"")

    def _mac(self, by_caller: bool, number: int, content: bytes) -> bytes:
        return hmac.digest(self._key, MAC_PREFIX_STRUCT.pack(by_caller, number) + content, DIGEST)


def greet(peer: socket.socket, own: LocalProcess, rank: int) -> Steps[Channel]:
    """Greet the listener that should be ``rank``; return the channel. Its first message proves the listener's secret.

    Raises:
        Stranger, OSError: as ``Channel.hear``.
    """
    peer.setblocking(False)
    greeting = {"rank": own.rank, "size": own.size, "nonce": secrets.token_hex(32)}
    _send_message(peer, json.dumps(greeting).encode())
    answer = _parse_message((yield from _receive_message(peer, MAX_MESSAGE_BYTES)), ANSWER_SCHEMA)
    return Channel(peer, _derive_key(own, rank, greeting, answer), is_caller=True)


def _authenticate_caller(
    peer: socket.socket, host: str, own: LocalProcess, checks: Schema, ranks: Sequence[int]
) -> Steps[AuthenticatedCaller]:
    """Answer a caller; return it once it has proved that it has the secret."""
    greeting = _parse_message((yield from _receive_message(peer, MAX_MESSAGE_BYTES)), GREETING_SCHEMA)
    if greeting["rank"] not in ranks:
        raise UnknownPeerError("it has a rank that is not expected")
    answer = {"nonce": secrets.token_hex(32)}
    _send_message(peer, json.dumps(answer).encode())
    channel = Channel(peer, _derive_key(own, own.rank, greeting, answer), is_caller=False)
    try:
        said = yield from channel.receive(checks)
    except WrongSecretError:
        channel.refuse()
        raise
    return AuthenticatedCaller(channel, host, greeting["rank"], greeting["size"], said)


def _derive_key(own: LocalProcess, listener: int, greeting: Message, answer: Message) -> bytes:
    context = KEY_CONTEXT_STRUCT.pack(PROTOCOL, listener, greeting["rank"], greeting["size"])
    nonces = bytes.fromhex(answer["nonce"]) + bytes.fromhex(greeting["nonce"])
    return hmac.digest(own.secret, context + nonces, DIGEST)


@dataclass(frozen=True)
class AuthenticatedCaller:
    """A caller that has proved its secret.

    Attributes:
        host: its address.
        size: the world size that it was given.
        said: its first message.
    """

    channel: Channel
    host: str
    rank: int
    size: int
    message: Message


class CallerListener:
    """Callers of a listening socket. All of them are served at the same time.

    Iteration yields an ``Arrival`` for each that is one of ``ranks`` and has the secret, and ``None`` whenever it has
    looked for callers. Strangers are let go after ``FIRST_SECONDS``, or earlier if there are too many. The end of the
    iteration closes the socket.

    Args:
        checks: checks of the first message of a caller.

    Attributes:
        refused: address of the last caller with another secret; empty if there was none.

    Raises:
        UserError: this process has no file descriptor left for a caller.
    """

    def __init__(self, listener: socket.socket, own: LocalProcess, ranks: Sequence[int], checks: Schema) -> None:
        self.refused_host = ""
        self._listener = listener
        self._own = own
        self._ranks = ranks
        self._checks = checks
        self._heard: dict[
            socket.socket, tuple[Steps[AuthenticatedCaller], str, float]
        ] = {}  # in the order of their calls

    def __iter__(self) -> Iterator[AuthenticatedCaller | None]:
        with self._listener, selectors.DefaultSelector() as look:
            self._listener.setblocking(False)
            look.register(self._listener, selectors.EVENT_READ)
            try:
                while True:
                    yield None
                    for ready, _ in look.select(POLL_SECONDS):
                        if ready.fileobj is self._listener:
                            self._accept(look)
                        elif arrival := self._hear(ready.fileobj, look):
                            yield arrival
                    now = time.monotonic()
                    for peer in [peer for peer, (_, _, due) in self._heard.items() if due < now]:
                        self._let_go(peer, look)
            finally:
                for peer in list(self._heard):
                    self._let_go(peer, look)

    def _accept(self, look: selectors.BaseSelector) -> None:
        try:
            peer, (host, _) = self._listener.accept()
        except OSError as error:
            if error.errno in CALLER_GONE_ERRNOS:
                return
            if not self._heard:
                raise_resource_error(error)
                raise
            self._let_go(next(iter(self._heard)), look)  # perhaps a stranger has them; a process of the job calls again
            return
        peer.setblocking(False)
        if len(self._heard) >= MAX_UNKNOWN_CALLERS + len(
            self._ranks
        ):  # a process of the job would have finished long ago
            self._let_go(next(iter(self._heard)), look)
        steps = _authenticate_caller(peer, host, self._own, self._checks, self._ranks)
        self._heard[peer] = steps, host, time.monotonic() + HANDSHAKE_SECONDS
        look.register(peer, selectors.EVENT_READ)

    def _hear(self, peer: Any, look: selectors.BaseSelector) -> AuthenticatedCaller | None:
        if peer not in self._heard:  # let go after it had become ready
            return None
        try:
            next(self._heard[peer][0])
        except StopIteration as end:
            look.unregister(peer)
            del self._heard[peer]
            arrival: AuthenticatedCaller = end.value
            return arrival
        except WrongSecretError:
            self.refused_host = self._heard[peer][1]
            self._let_go(peer, look)
        except (OSError, ValueError):
            self._let_go(peer, look)
        return None

    def _let_go(self, peer: socket.socket, look: selectors.BaseSelector) -> None:
        look.unregister(peer)
        del self._heard[peer]
        peer.close()


def run_with_timeout(seconds: float, peer: socket.socket, steps: Steps[T]) -> T:
    """Run a generator of this module to its end, waiting for the other end of a connection.

    Raises:
        OSError: the time is over; and what ``steps`` raises.
    """
    due = time.monotonic() + seconds
    look = select.poll()
    look.register(peer, select.POLLIN)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        if not look.poll(max(0.0, 1000 * (due - time.monotonic()))):
            raise TimeoutError("it does not answer")


def _send_message(peer: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # found out in hearing from it
        timeout = peer.gettimeout()
        peer.settimeout(HANDSHAKE_SECONDS)
        peer.sendall(LENGTH_STRUCT.pack(len(data)) + data)
        peer.settimeout(timeout)


def _receive_message(peer: socket.socket, most: int) -> Steps[bytes]:
    """Receive a message of at most ``most`` bytes."""
    data, length = bytearray(), LENGTH_STRUCT.size
    while len(data) < length:
        try:
            piece = peer.recv(length - len(data))
        except BlockingIOError:
            yield
            continue
        if not piece:
            raise UnknownPeerError("another program answers, or the process has ended")
        data += piece
        if len(data) == LENGTH_STRUCT.size and length == LENGTH_STRUCT.size:
            length += LENGTH_STRUCT.unpack(data)[0]
            if length > LENGTH_STRUCT.size + most:
                raise UnknownPeerError("another program answers")
    return bytes(data[LENGTH_STRUCT.size :])


def _parse_message(content: bytes, checks: Schema) -> Message:
    """Parse a message: a JSON object with the keys of ``checks``. Each value passes the check of its key."""
    message: Any = None
    with suppress(ValueError, RecursionError):
        message = json.loads(content)
    if not isinstance(message, dict) or message.keys() != checks.keys():
        raise UnknownPeerError("another program answers, or another version of crepe_dist")
    if wrong := [name for name, check in checks.items() if not check(message[name])]:
        raise UnknownPeerError(f"another program answers, with a wrong {wrong[0]}")
    return message
