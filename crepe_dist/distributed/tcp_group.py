"""Process group with TCP as the backend. Each pair of processes has one connection."""

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

# Maximum number of bytes of a message that are sent together with its header. The socket buffers of a connection can
# hold this many bytes of two messages, so sending them does not block even if the receiver is late.
EAGER_BYTES = 1 << 14
PEER_TIMEOUT_SECONDS = 30  # A host that has not answered for this number of seconds counts as lost.
SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PEER_TIMEOUT_SECONDS // 3),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PEER_TIMEOUT_SECONDS // 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * PEER_TIMEOUT_SECONDS),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


class TcpProcessGroup(ProcessGroup):
    """Process group over TCP connections.

    Rank r sends to the ranks r + 1, r + 2, …, modulo the number of ranks. It receives from the ranks r - 1, r - 2, …
    in this order. Each rank thus receives first from the rank that sends to it first. Every collective raises
    ``PeerLostError`` if a process or its host is lost.

    Args:
        rank: Rank of this process.
        peers: Connection to each other rank, by rank.
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
        messages = np.split(data, np.cumsum(sizes)[:-1])
        peers = [(self.rank + distance) % self.size for distance in range(1, self.size)]
        self._send_all(
            {
                peer: self._messages.make_header(messages[peer]) + messages[peer][:EAGER_BYTES].tobytes()
                for peer in peers
            }
        )
        headers = {
            peer: self._messages.parse_header(peer, self._receive(peer, HEADER_BYTES)) for peer in reversed(peers)
        }
        # All headers have been received, so all ranks have arrived. Large data must not be sent before this point,
        # because the data would fill the socket buffers of a rank that is only late, and after PEER_TIMEOUT_SECONDS
        # that rank would count as lost.
        rests = {peer: rest for peer in peers if (rest := self._send(peer, messages[peer][EAGER_BYTES:])).size}
        # Another thread sends the rest while this thread receives. If both ranks of a connection first sent their data,
        # full socket buffers could make them wait for each other forever.
        sender = threading.Thread(target=self._send_all, args=(rests,), daemon=True)
        if rests:
            sender.start()
        received = {peer: self._receive(peer, header.size) for peer, header in headers.items()}
        if rests:
            sender.join()
        for peer, header in headers.items():
            self._messages.check_content(peer, received[peer], header)
        in_order = [messages[rank] if rank == self.rank else received[rank] for rank in range(self.size)]
        return np.concatenate(in_order), [message.size for message in in_order]

    def _send(self, peer: int, data: Bytes) -> Bytes:
        """Send as much data as the socket accepts without blocking. Return the rest."""
        try:
            return data[self._peers[peer].send(data.data, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            return data
        except OSError:  # ``_receive`` reports a broken connection.
            return data[:0]

    def _send_all(self, messages: Mapping[int, Any]) -> None:
        for peer, message in messages.items():
            with suppress(OSError):
                self._peers[peer].sendall(message)

    def _receive(self, peer: int, count: int) -> Bytes:
        data, num_received = np.empty(count, np.uint8), 0
        try:
            while num_received < count:
                if not (length := self._peers[peer].recv_into(data[num_received:].data)):
                    raise PeerLostError(f"rank {peer} closed its connection")
                num_received += length
        except OSError as error:
            raise PeerLostError(f"rank {peer}: {error.strerror or error}") from error
        return data

    def close(self) -> None:
        for peer in self._peers.values():
            peer.close()
