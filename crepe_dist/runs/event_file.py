"""Event files of TensorBoard, in the formats of TensorFlow's ``record_writer.h`` and ``event.proto``."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from functools import reduce
from pathlib import Path

# CRC-32C of each byte (Castagnoli et al. 1993).
CHECKSUMS = [
    reduce(lambda sum_, _: (sum_ >> 1) ^ (0x82F63B78 if sum_ & 1 else 0), range(8), byte) for byte in range(256)
]
# Tags of fields: their number, and the type of their value.
TIME, STEP, VERSION, SUMMARY, SESSION = b"\x09", b"\x10", b"\x1a", b"\x2a", b"\x3a"
VALUE, NAME, NUMBER = b"\x0a", b"\x0a", b"\x15"
STARTED = b"\x08\x01"


class EventFile:
    """An event file in a folder, written immediately.

    Args:
        purge_step: first step whose events in earlier files TensorBoard ignores.
    """

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._stream = (folder / name).open("ab", buffering=0)
        self._write(0, _sized(VERSION, b"brain.Event:2"))
        if purge_step is not None:
            self._write(purge_step, _sized(SESSION, STARTED))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add numbers by name."""
        numbers = (_sized(NAME, name.encode()) + NUMBER + struct.pack("<f", value) for name, value in values.items())
        self._write(step, _sized(SUMMARY, b"".join(_sized(VALUE, number) for number in numbers)))

    def _write(self, step: int, content: bytes) -> None:
        event = TIME + struct.pack("<d", time.time()) + STEP + _varint(step) + content
        size = struct.pack("<Q", len(event))
        self._stream.write(size + _checksum(size) + event + _checksum(event))


def _sized(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Encode a number in groups of seven bits, the lowest first."""
    groups = [number >> shift & 127 for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def _checksum(content: bytes) -> bytes:
    """Return the checksum of a record, masked as the format wants it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = CHECKSUMS[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
