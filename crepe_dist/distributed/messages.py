"""Headers of the messages between ranks. The receiver uses a header to verify that its message is intact and expected.

A header contains the number of the collective in this process group, the length of the message, the length of the
sender's largest message, a checksum of the name of the collective, and a checksum of the message. Checksums detect
errors of the memory and the network, but not attacks.
"""

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crepe_dist.errors import ExitCode, UserError

Bytes = npt.NDArray[np.uint8]
# Size of a line in 64-bit words, and size in bytes of the messages that are divided into lines; see ``checksum``. The
# number of words is prime, so that two pages of memory in exchanged order change the sums.
LINE_WORDS, MIN_BYTES_FOR_LINES = 509, 1 << 14
HEADER_FIELDS = struct.Struct("<QQQII")  # Fields of ``Header``.
HEADER_CHECKSUM = struct.Struct("<I")  # CRC-32 of the fields. It follows the fields.
HEADER = struct.Struct("<QQQIII")  # The fields and their checksum.
HEADER_BYTES = HEADER.size
MAX_BYTES = 1 << 40  # Maximum number of bytes of a message.


class Header(NamedTuple):
    """Header of a message.

    Attributes:
        number: Number of the collective in this process group, counted from 1.
        size: Length of the message in bytes.
        largest: Length in bytes of the largest message that the sender sends in this collective.
        name: CRC-32 of the name of the collective.
        checksum: ``checksum`` of the message.
    """

    number: int
    size: int
    largest: int
    name: int
    checksum: int


def checksum(message: Bytes) -> int:
    """Return a checksum of 32 bits. A long message is divided into lines, and the checksum covers the columns' sums.

    The sums are computed at the speed of memory. CRC-32 of all bytes would take 10 % of a training step on two hosts.
    """
    if message.size < MIN_BYTES_FOR_LINES:
        return zlib.crc32(message.data)
    end = message.size // (8 * LINE_WORDS) * (8 * LINE_WORDS)
    sums = message[:end].view(np.uint64).reshape(-1, LINE_WORDS).sum(axis=0)
    return zlib.crc32(message[end:].data, zlib.crc32(sums.data))


class MessageChecker:
    """Checker of messages. It creates the headers of a rank's outgoing messages, and verifies its incoming messages.

    Attributes:
        hosts: Host name of each rank, for error messages. The sequence is empty while the host names are unknown.
    """

    def __init__(self, rank: int) -> None:
        self.hosts: Sequence[str] = ()
        self._rank = rank
        self._number = 0
        self._name, self._name_checksum = "", 0

    def start_collective(self, name: str) -> None:
        """Start the next collective. All messages belong to it until the next call of this method."""
        self._number += 1
        self._name, self._name_checksum = name, zlib.crc32(name.encode())

    def make_header(self, message: Bytes, largest: int = 0) -> bytes:
        """Return the header of a message of the current collective."""
        fields = HEADER_FIELDS.pack(self._number, message.size, largest, self._name_checksum, checksum(message))
        return fields + HEADER_CHECKSUM.pack(zlib.crc32(fields))

    def parse_header(self, peer: int, data: bytes | bytearray) -> Header:
        """Parse the header of a message from ``peer``.

        Raises:
            UserError: The header is damaged.
            RuntimeError: The message belongs to another collective.
        """
        *fields, header_checksum = HEADER.unpack(data)
        header = Header(*fields)
        if header_checksum != zlib.crc32(data[: HEADER_FIELDS.size]) or header.size > MAX_BYTES:
            raise self._damaged_error(peer)
        if header.name != self._name_checksum:
            raise RuntimeError(f"rank {peer} is at another point of the program than {self._name!r}")
        if header.number != self._number:
            expected = f"rank {self._rank} expects message {self._number} ({self._name!r})"
            raise RuntimeError(f"rank {peer} sent message {header.number}, and {expected}")
        return header

    def check_content(self, peer: int, message: Bytes, header: Header) -> None:
        """Check a complete message from ``peer`` against its header.

        Raises:
            UserError: The message is damaged.
        """
        if message.size != header.size or checksum(message) != header.checksum:
            raise self._damaged_error(peer)

    def _damaged_error(self, peer: int) -> UserError:
        return UserError(
            f"message {self._number} ({self._name}) was damaged on its way from {self._describe_rank(peer)} to "
            f"{self._describe_rank(self._rank)}",
            "its checksum is wrong: the memory or the network of one of these hosts is faulty",
            "run the same command again to resume; if the error repeats, test the memory of these hosts, "
            "or use other hosts",
            code=ExitCode.FAILURE,
        )

    def _describe_rank(self, rank: int) -> str:
        return f"rank {rank}" + (f" (host {self.hosts[rank]})" if self.hosts else "")
