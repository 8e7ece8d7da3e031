"""Heads of the messages between ranks. They show that a message is intact, and that it is the expected one.

A message of a collective has a head with the number of the collective in this world, checksums of its name and of the
content, and lengths. The checksum is zlib's CRC-32. Checksums detect faults of memory and networks, not attacks.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crepe_dist.errors import ExitCode, UserError

Bytes = npt.NDArray[np.uint8]
HEADER_FIELDS = struct.Struct("<QQQII")  # see ``Head``
HEADER_CHECKSUM = struct.Struct("<I")  # of the fields
HEADER_BYTES = HEADER_FIELDS.size + HEADER_CHECKSUM.size
MAX_BYTES = 1 << 40  # of a message


class Header(NamedTuple):
    """Head of a message.

    Attributes:
        number: number of the collective in this world.
        size: bytes of the message.
        largest: bytes of the largest message that its sender sends in this collective.
        name: CRC-32 of the name of the collective.
        checksum: checksum of the message.
    """

    number: int
    size: int
    largest: int
    name: int
    checksum: int


class MessageChecker:
    """Heads of the messages of one rank. It makes heads for what it sends, and checks the heads of what it receives.

    Attributes:
        hosts: host of each rank, for errors; empty while they are unknown.
    """

    def __init__(self, rank: int) -> None:
        self.hosts: Sequence[str] = ()
        self._rank = rank
        self._number = 0
        self._name = ""

    def start_collective(self, name: str) -> None:
        """Begin the next collective."""
        self._number += 1
        self._name = name

    def make_header(self, message: Bytes, largest: int = 0) -> bytes:
        """Return the head of a message of the current collective."""
        head = Header(self._number, message.size, largest, zlib.crc32(self._name.encode()), zlib.crc32(message.data))
        fields = HEADER_FIELDS.pack(*head)
        return fields + HEADER_CHECKSUM.pack(zlib.crc32(fields))

    def parse_header(self, peer: int, head: Bytes) -> Header:
        """Read the head of a message from ``peer``.

        Raises:
            UserError: it was damaged.
            RuntimeError: it belongs to another collective.
        """
        fields = head[: HEADER_FIELDS.size].tobytes()
        read = Header(*HEADER_FIELDS.unpack(fields))
        if (
            HEADER_CHECKSUM.unpack(head[HEADER_FIELDS.size :].tobytes())[0] != zlib.crc32(fields)
            or read.size > MAX_BYTES
        ):
            raise self._damaged_error(peer)
        if read.name != zlib.crc32(self._name.encode()):
            raise RuntimeError(f"rank {peer} is at another point of the program than {self._name!r}")
        if read.number != self._number:
            expected = f"rank {self._rank} expects message {self._number} ({self._name!r})"
            raise RuntimeError(f"rank {peer} sent message {read.number}, and {expected}")
        return read

    def check_content(self, peer: int, message: Bytes, head: Header) -> None:
        """Check a message from ``peer``, which has all its bytes.

        Raises:
            UserError: it was damaged.
        """
        if message.size != head.size or zlib.crc32(message.data) != head.checksum:
            raise self._damaged_error(peer)

    def _damaged_error(self, peer: int) -> UserError:
        return UserError(
            f"message {self._number} ({self._name}) was damaged on its way from {self._describe_rank(peer)} to "
            f"{self._describe_rank(self._rank)}",
            "its checksum is wrong: the memory or the network of one of these hosts is faulty",
            "run the same command again to resume; if it happens again, test the memory of these hosts, or use others",
            code=ExitCode.FAILURE,
        )

    def _describe_rank(self, rank: int) -> str:
        return f"rank {rank}" + (f" (host {self.hosts[rank]})" if self.hosts else "")
