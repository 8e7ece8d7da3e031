"""Connection to another process, with messages that are authenticated by a shared key.

A message consists of a length, JSON, and a message authentication code (MAC): an HMAC-SHA256 of the sender's role, the
number of the message and its content. The MAC proves that the sender has the key. The MAC also protects the message
from modification, from replay, and from being reflected to its sender. Nothing is encrypted.
"""

import hmac
import json
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

MAX_BYTES = 1 << 12  # Default maximum size of a message.
REQUEST_SECONDS = 5.0  # Time limit for connecting to another process, for sending a message, and for the answer.
LENGTH_STRUCT = struct.Struct("<I")  # Length of a message, in bytes.
# The MAC covers two fields and the content. The fields are a flag, which is True if the process that opened the
# connection is the sender, and the number of the message.
MAC_PREFIX_STRUCT = struct.Struct("<?I")
DIGEST = "sha256"
MAC_BYTES = 32  # Length of a MAC.
Message = dict[str, Any]
Schema = Mapping[str, Callable[[Any], bool]]


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


class Channel:
    """Connection to another process, with messages that are authenticated by a shared key.

    Args:
        peer: Connected socket.
        key: Key of this connection.
        is_caller: True if this process is the client, which opened the connection.
    """

    def __init__(self, peer: socket.socket, key: bytes, is_caller: bool) -> None:
        self.peer, self._key, self._is_caller = peer, key, is_caller
        self._num_sent = self._num_received = 0

    def send(self, message: Message) -> None:
        """Send a message."""
        data = json.dumps(message).encode()
        send_bytes(self.peer, data + self._mac(self._is_caller, self._num_sent, data))
        self._num_sent += 1

    def receive(self, schema: Schema, seconds: float = REQUEST_SECONDS, max_bytes: int = MAX_BYTES) -> Message:
        """Receive a message of at most ``max_bytes`` bytes that matches the schema.

        Raises:
            UnknownPeerError: The message is malformed or too large, or the peer has closed the connection.
            WrongSecretError: The MAC of the message is wrong.
            RefusedError: The peer reports that the MAC of this process's last message was wrong.
            OSError: The connection is broken, or the message does not arrive in time (``TimeoutError``).
        """
        data = receive_bytes(self.peer, max_bytes + MAC_BYTES, seconds)
        content, mac = data[:-MAC_BYTES], data[-MAC_BYTES:]
        if not data:
            raise RefusedError("this process has not proved that it has the same secret")
        if not hmac.compare_digest(mac, self._mac(not self._is_caller, self._num_received, content)):
            raise WrongSecretError("the other process does not prove that it has the same secret")
        self._num_received += 1
        return parse_message(content, schema)

    def is_readable(self, seconds: float = 0.0) -> bool:
        """Wait until a message arrives or the peer closes the connection. Return ``False`` after the time limit."""
        poller = select.poll()
        poller.register(self.peer, select.POLLIN)
        return bool(poller.poll(1000 * seconds))

    def refuse(self) -> None:
        """Report to a client that its MAC is wrong."""
        send_bytes(self.peer, b"")

    def _mac(self, by_caller: bool, number: int, content: bytes) -> bytes:
        return hmac.digest(self._key, MAC_PREFIX_STRUCT.pack(by_caller, number) + content, DIGEST)


def send_bytes(peer: socket.socket, data: bytes) -> None:
    """Send data and its length."""
    with suppress(OSError):  # The caller of this function detects a broken connection when it receives the answer.
        peer.settimeout(REQUEST_SECONDS)
        peer.sendall(LENGTH_STRUCT.pack(len(data)) + data)


def receive_bytes(peer: socket.socket, max_bytes: int, seconds: float = REQUEST_SECONDS) -> bytes:
    """Receive the data of one call of ``send_bytes``, at most ``max_bytes`` bytes.

    Raises:
        UnknownPeerError: The data are too long, or the peer has closed the connection.
        OSError: The connection is broken, or the data do not arrive in time (``TimeoutError``).
    """
    deadline = time.monotonic() + seconds
    (length,) = LENGTH_STRUCT.unpack(_receive_exactly(peer, LENGTH_STRUCT.size, deadline))
    if length > max_bytes:
        raise UnknownPeerError("another program answers")
    return _receive_exactly(peer, length, deadline)


def _receive_exactly(peer: socket.socket, length: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < length:
        peer.settimeout(max(0.001, deadline - time.monotonic()))  # With 0, the socket would be non-blocking.
        if not (chunk := peer.recv(length - len(data))):
            raise UnknownPeerError("another program or another version of crepe_dist answers, or the process has ended")
        data += chunk
    return bytes(data)


def parse_message(content: bytes, schema: Schema) -> Message:
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
