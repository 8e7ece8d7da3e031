"""World of processes that only know each other's addresses: a TCP connection between each two of them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from crepe_dist.distributed.messages import HEADER_BYTES, Bytes
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.errors import PeerLostError

EAGER_BYTES = 1 << 14  # sent with the head; a connection takes those of two messages from a process that is behind
PEER_TIMEOUT_SECONDS = 30  # without an answer, after which a host is gone
SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PEER_TIMEOUT_SECONDS // 3),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PEER_TIMEOUT_SECONDS // 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * PEER_TIMEOUT_SECONDS),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


class TcpProcessGroup(ProcessGroup):
    """World over connections.

    A rank sends to the ranks above it in turn, and from the last on to the first; it receives from those below it in
    the same way. So each waits only for what another is about to send to it.

    Args:
        peers: connection to each other rank.

    Raises:
        PeerGone: in each collective, if a process or its host is gone.
    """

    backend = "TCP"

    def __init__(self, rank: int, peers: Mapping[int, socket.socket]) -> None:
        self._peers = peers
        for peer in peers.values():
            peer.settimeout(None)
            for option in SOCKET_OPTIONS:
                peer.setsockopt(*option)
        super().__init__(rank, len(peers) + 1)

    def _all_to_all_bytes(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        self._messages.start_collective(name)
        pieces = np.split(data, np.cumsum(sizes)[:-1])
        above = [(self.rank + distance) % self.size for distance in range(1, self.size)]
        self._send_all(
            {peer: self._messages.make_header(pieces[peer]) + pieces[peer][:EAGER_BYTES].tobytes() for peer in above}
        )
        heads = {peer: self._messages.parse_header(peer, self._receive(peer, HEADER_BYTES)) for peer in reversed(above)}
        # All are here. If one were only late, its connection, full for LOST_SECONDS, would count as lost.
        rests = {peer: rest for peer in above if (rest := self._send(peer, pieces[peer][EAGER_BYTES:])).size}
        sending = threading.Thread(target=self._send_all, args=(rests,), daemon=True)
        if rests:
            sending.start()
        received = {peer: self._receive(peer, head.size) for peer, head in heads.items()}
        if rests:
            sending.join()
        for peer, head in heads.items():
            self._messages.check_content(peer, received[peer], head)
        in_order = [pieces[rank] if rank == self.rank else received[rank] for rank in range(self.size)]
        return np.concatenate(in_order), [piece.size for piece in in_order]

    def _send(self, peer: int, piece: Bytes) -> Bytes:
        """Send as much as the connection takes without a wait; return the rest."""
        try:
            return piece[self._peers[peer].send(piece.data, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            return piece
        except OSError:  # found out in receiving from it
            return piece[:0]

    def _send_all(self, messages: Mapping[int, Any]) -> None:
        for peer, message in messages.items():
            with suppress(OSError):
                self._peers[peer].sendall(message)

    def _receive(self, peer: int, count: int) -> Bytes:
        data, done = np.empty(count, np.uint8), 0
        try:
            while done < count:
                if not (length := self._peers[peer].recv_into(data[done:].data)):
                    raise PeerLostError(f"rank {peer} closed its connection")
                done += length
        except OSError as error:
            raise PeerLostError(f"rank {peer}: {error.strerror or error}") from error
        return data

    def close(self) -> None:
        for peer in self._peers.values():
            peer.close()
