"""World of processes that only know each other's addresses: a TCP connection between each two of them."""

from __future__ import annotations

import socket
import struct
import threading
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from crepe_dist.distributed.world import Bytes, World
from crepe_dist.errors import PeerGone

HEAD = struct.Struct("<IQ")  # before each message: a checksum of the collective's name, and the number of bytes
MOST_BYTES = 1 << 40
LOST_SECONDS = 30  # without an answer, after which a host is gone
OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, LOST_SECONDS // 3),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, LOST_SECONDS // 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * LOST_SECONDS),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


class TcpWorld(World):
    """World over connections.

    A rank sends to the ranks above it in turn, and from the last on to the first; it receives from those below it in
    the same way. So each waits only for what another is about to send to it.

    Args:
        peers: connection to each other rank.

    Raises:
        PeerGone: in each collective, if a process or its host is gone.
    """

    carrier = "TCP"

    def __init__(self, rank: int, peers: Mapping[int, socket.socket]) -> None:
        self._peers = peers
        for peer in peers.values():
            peer.settimeout(None)
            for option in OPTIONS:
                peer.setsockopt(*option)
        super().__init__(rank, len(peers) + 1)

    def _swap(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        tag, starts = zlib.crc32(name.encode()), np.cumsum([0, *sizes]).tolist()
        pieces = [data[start : start + size] for start, size in zip(starts, sizes)]
        sending = threading.Thread(target=self._send, args=(tag, pieces), daemon=True)
        sending.start()
        others = [(self.rank - distance) % self.size for distance in range(1, self.size)]
        counts = [pieces[self.rank].size] * self.size
        for peer in others:
            other, counts[peer] = HEAD.unpack(self._receive(peer, bytearray(HEAD.size)))
            if other != tag or counts[peer] > MOST_BYTES:
                raise RuntimeError(f"rank {peer} is at another point of the program than {name!r}")
        ends = np.cumsum([0, *counts]).tolist()
        received = np.empty(ends[-1], np.uint8)
        received[ends[self.rank] : ends[self.rank + 1]] = pieces[self.rank]
        for peer in others:
            self._receive(peer, received[ends[peer] : ends[peer + 1]].data)
        sending.join()
        return received, counts

    def _send(self, tag: int, pieces: Sequence[Bytes]) -> None:
        for send in (lambda piece: HEAD.pack(tag, piece.size), lambda piece: piece.data):
            for distance in range(1, self.size):
                peer = (self.rank + distance) % self.size
                with suppress(OSError):  # found out in receiving from it
                    self._peers[peer].sendall(send(pieces[peer]))

    def _receive(self, peer: int, into: Any) -> Any:
        """Fill a buffer of bytes, and return it."""
        done, view = 0, memoryview(into)
        try:
            while done < len(view):
                if not (length := self._peers[peer].recv_into(view[done:])):
                    raise PeerGone(f"rank {peer} closed its connection")
                done += length
        except OSError as error:
            raise PeerGone(f"rank {peer}: {error.strerror or error}") from error
        return into

    def close(self) -> None:
        for peer in self._peers.values():
            peer.close()
