"""Messages between supervisor, agents and workers: JSON objects, one per line, of bounded length."""

from __future__ import annotations

import json
import os
from typing import Any

LIMIT = 64 * 1024  # bytes of a line, with its end
TEXT_LIMIT = 8 * 1024  # bytes of a piece of output; a byte may take six in JSON
OUTBOX_LIMIT = 4 * 1024 * 1024  # unread bytes above which messages are dropped

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """Encode a message as one line.

    Raises:
        ValueError: the line is longer than ``LIMIT``.
    """
    line = json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"
    if len(line) > LIMIT:
        raise ValueError(f"a message of {len(line)} bytes; {LIMIT} are allowed")
    return line


def decode(line: bytes) -> Message | str:
    """Decode a line; return the reason as text if it is not a message."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return f"not JSON: {line[:60]!r}"
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return f"not a message: {line[:60]!r}"
    return value


class Messages:
    """Parser of a stream of bytes into messages; a malformed one becomes a string with the reason."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._skipping = False  # inside a line that is too long

    def feed(self, data: bytes) -> list[Message | str]:
        found: list[Message | str] = []
        self._rest += data
        while True:
            end = self._rest.find(b"\n")
            if end < 0:
                break
            line = bytes(self._rest[:end])
            del self._rest[: end + 1]
            if self._skipping:
                self._skipping = False
            elif len(line) >= LIMIT:
                found.append(f"a line of more than {LIMIT} bytes")
            elif line.strip():
                found.append(decode(line))
        if len(self._rest) >= LIMIT:
            if not self._skipping:
                found.append(f"a line of more than {LIMIT} bytes")
            self._skipping = True
            self._rest.clear()
        return found


class Text:
    """Parser of a stream of bytes into lines of text; a long line comes in pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > TEXT_LIMIT:
            cut = len(self._rest) - len(self._rest) % TEXT_LIMIT
            lines.append(self._rest[:cut])
            self._rest = self._rest[cut:]
        return [
            line[begin : begin + TEXT_LIMIT].decode("utf-8", "replace")
            for line in lines
            for begin in range(0, max(1, len(line)), TEXT_LIMIT)
        ]

    def end(self) -> list[str]:
        """Return the text after the last line end."""
        rest, self._rest = self._rest, b""
        return [rest.decode("utf-8", "replace")] if rest else []


class Outbox:
    """Buffer in front of a non-blocking descriptor, so that a lost or slow reader never blocks the writer."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._waiting = bytearray()
        self.broken = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: Message, always: bool = False) -> bool:
        """Send as much as possible; return false if the message is dropped.

        A message is dropped if the reader is gone, the message is too long, or too many bytes are unread.

        Args:
            message: the message.
            always: send it even if too many bytes are unread.
        """
        if self.broken or (len(self._waiting) > OUTBOX_LIMIT and not always):
            return False
        try:
            self._waiting += encode(message)
        except ValueError:
            return False
        self.flush()
        return not self.broken

    def flush(self) -> None:
        try:
            while self._waiting:
                sent = os.write(self._descriptor, self._waiting)
                del self._waiting[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.broken = True
            self._waiting.clear()
