"""Messages between supervisor, agents and workers: JSON objects, one per line, of bounded length."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

LIMIT = 64 * 1024  # bytes of a line, with its end
TEXT_LIMIT = 8 * 1024  # bytes of a piece of output; a byte may take six in JSON

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


def read_messages(stream: IO[bytes]) -> Iterator[Message | str]:
    """Yield the messages of a stream until it ends; instead of a malformed one, the reason as text."""
    while line := stream.readline(LIMIT):
        if len(line) == LIMIT and not line.endswith(b"\n"):
            while (rest := stream.readline(LIMIT)) and not rest.endswith(b"\n"):
                pass
            yield f"a line of more than {LIMIT} bytes"
        elif line.strip():
            yield _decode(line)


def _decode(line: bytes) -> Message | str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return f"not JSON: {line[:60]!r}"
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return f"not a message: {line[:60]!r}"
    return value


def read_text(stream: IO[bytes]) -> Iterator[str]:
    """Yield the lines of a stream until it ends; a line longer than ``TEXT_LIMIT`` comes in pieces."""
    while piece := stream.readline(TEXT_LIMIT):
        yield piece.removesuffix(b"\n").decode("utf-8", "replace")
