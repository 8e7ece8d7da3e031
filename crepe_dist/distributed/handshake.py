"""Mutual authentication of two processes by a shared secret.

The client is the process that opens the connection. The names in this package call the client the caller. The listener
is the process that accepts the connection.

1. The client sends a greeting: the protocol, the ranks of both processes, the world size and a nonce.
2. The listener answers with its own nonce.
3. Each end derives a key for this connection from the secret, the greeting and the answer.
4. The key authenticates every later message (``channel.py``).

The greeting and the answer are not authenticated. The listener sends an empty message to a client whose first message
has a wrong MAC. If there is no secret, the protocol is the same, but the MAC proves nothing.
"""

import hmac
import secrets
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from crepe_dist.distributed import channel
from crepe_dist.distributed.channel import MAX_BYTES, Channel, Message, Schema
from crepe_dist.errors import UserError

SECRET_ENV = "CREPE_DIST_SECRET"
MIN_SECRET_LENGTH = 16  # Minimum length of the secret, in characters.
MAX_PLACE_BYTES = 32  # Maximum size of the address of a rank in JSON.
PROTOCOL = b"crepe_dist 2"
NONCE_BYTES = 32
GREETING_STRUCT = struct.Struct(f"<12sIII{NONCE_BYTES}s")  # Protocol, rank of the listener, rank, world size and nonce.


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

    def log(self, text: str) -> None:
        """Print a line about this process to stderr."""
        print(f"[{self}] {text}", file=sys.stderr, flush=True)

    def derive(self, token: str) -> "LocalProcess":
        """Return the same process with a secret that is derived from the secret and a token of its rank 0."""
        return replace(self, secret=hmac.digest(self.secret, token.encode(), channel.DIGEST))


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


def introduce(
    peer: socket.socket, own: LocalProcess, rank: int, message: Message, schema: Schema, seconds: float
) -> tuple[Channel, Message]:
    """Authenticate both ends of a connection to a listener, send a message, and receive the answer.

    Args:
        peer: Connection to the listener. It is closed if an error is raised.
        rank: Rank of the listener.
        schema: Schema of the answer, which may contain the addresses of all ranks.
        seconds: Time limit for each message of the listener.

    Returns:
        The channel and the answer.

    Raises:
        TimeoutError: The listener does not answer.
        UnknownPeerError, OSError: For the same reasons as in ``Channel.receive``.
    """
    try:
        opened = greet(peer, own, rank, seconds)
        opened.send(message)
        return opened, opened.receive(schema, seconds, MAX_BYTES + MAX_PLACE_BYTES * own.size)
    except BaseException:
        peer.close()
        raise


def greet(peer: socket.socket, own: LocalProcess, rank: int, seconds: float) -> Channel:
    """Send the greeting to the listener, whose rank is ``rank``, and return the channel.

    When this function returns, the listener is not authenticated yet. The listener's first message on the channel
    proves that the listener has the secret.

    Raises:
        UnknownPeerError, OSError: For the same reasons as in ``Channel.receive``.
    """
    greeting = GREETING_STRUCT.pack(PROTOCOL, rank, own.rank, own.size, secrets.token_bytes(NONCE_BYTES))
    channel.send_bytes(peer, greeting)
    nonce = channel.receive_bytes(peer, NONCE_BYTES, seconds)
    return Channel(peer, hmac.digest(own.secret, greeting + nonce, channel.DIGEST), is_caller=True)


def authenticate_caller(
    peer: socket.socket, host: str, own: LocalProcess, schema: Schema, ranks: Sequence[int]
) -> AuthenticatedCaller:
    """Answer a client, and return it after it has proved that it has the secret.

    Args:
        peer: Connection to the client.
        host: IP address of the client.
        schema: Schema of the first message of the client.
        ranks: Expected ranks.

    Raises:
        UnknownPeerError, OSError: For the same reasons as in ``Channel.receive``.
    """
    greeting = channel.receive_bytes(peer, GREETING_STRUCT.size)
    if len(greeting) != GREETING_STRUCT.size:
        raise channel.UnknownPeerError("its greeting is too short")
    protocol, listener, rank, size, _ = GREETING_STRUCT.unpack(greeting)
    if protocol != PROTOCOL or listener != own.rank or rank not in ranks:
        raise channel.UnknownPeerError("its rank or its protocol is not expected")
    nonce = secrets.token_bytes(NONCE_BYTES)
    channel.send_bytes(peer, nonce)
    opened = Channel(peer, hmac.digest(own.secret, greeting + nonce, channel.DIGEST), is_caller=False)
    try:
        return AuthenticatedCaller(opened, host, rank, size, opened.receive(schema))
    except channel.WrongSecretError:
        opened.refuse()
        raise
