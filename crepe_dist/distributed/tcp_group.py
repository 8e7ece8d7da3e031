"""Process group with TCP as the backend. Each pair of processes has one connection."""

import itertools
import os
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from io import BufferedReader
from typing import Any, cast

import numpy as np

from crepe_dist.distributed.messages import HEADER_BYTES, Bytes
from crepe_dist.distributed.network_interface import INTERFACE_ENV
from crepe_dist.distributed.process_group import NO_BYTES, ProcessGroup
from crepe_dist.errors import PeerLostError
from crepe_dist.formatting import join_head

# Maximum number of bytes of a message that are sent together with its header. The socket buffers of a connection can
# hold this many bytes of two messages, so sending them does not block even if the receiver is late.
EAGER_BYTES = 1 << 14
PEER_TIMEOUT_SECONDS = 30  # A host that has not answered for this number of seconds counts as lost.
MAX_SHOWN_HOSTS = 16  # Maximum number of hosts in the line of addresses.
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
        # The reader of a connection receives a short message together with its header.
        self._readers = {
            rank: cast("BufferedReader", peer.makefile("rb", HEADER_BYTES + EAGER_BYTES))
            for rank, peer in peers.items()
        }
        super().__init__(rank, len(peers) + 1)
        if len(self.hosts) == 1:
            return
        networks = self.all_gather_json(os.environ.get(INTERFACE_ENV, "").strip(), INTERFACE_ENV)
        if self.is_root:
            others = [self._peers[ranks[0]] for ranks in self.hosts[1:]]
            addresses = [others[0].getsockname(), *(peer.getpeername() for peer in others)]
            used = [f"{self.host_names[ranks[0]]} {host}" for ranks, (host, _) in zip(self.hosts, addresses)]
            print(f"[rank 0] TCP addresses: {join_head(used, MAX_SHOWN_HOSTS)}", file=sys.stderr, flush=True)
            unset = [host for host, network in dict(zip(self.host_names, networks)).items() if not network]
            if any(networks) and unset:
                what = f"note: {INTERFACE_ENV} is set on other hosts, but not on {join_head(unset, MAX_SHOWN_HOSTS)}"
                print(f"[rank 0] {what}\n  do:  set it on every host", file=sys.stderr, flush=True)

    def _exchange(self, messages: Mapping[int, Bytes], name: str) -> tuple[Bytes, list[int]]:
        checker = self._messages
        checker.start_collective(name)
        ring = [(self.rank + distance) % self.size for distance in range(1, self.size)]
        peers = [peer for peer in ring if peer in messages]
        self._send_all(
            {peer: b"".join([checker.make_header(messages[peer]), messages[peer][:EAGER_BYTES].data]) for peer in peers}
        )
        headers, data = {}, bytearray(HEADER_BYTES)
        for peer in reversed(peers):
            self._receive(peer, memoryview(data))
            headers[peer] = checker.parse_header(peer, data)
        # All headers have been received, so these ranks have arrived. Large data must not be sent before this point,
        # because the data would fill the socket buffers of a rank that is only late, and after PEER_TIMEOUT_SECONDS
        # that rank would count as lost.
        long_messages = {peer: messages[peer][EAGER_BYTES:] for peer in peers if messages[peer].size > EAGER_BYTES}
        rests = {peer: rest for peer, part in long_messages.items() if (rest := self._send(peer, part)).size}
        # Another thread sends the rest while this thread receives. If both ranks of a connection first sent their data,
        # full socket buffers could make them wait for each other forever.
        sender = threading.Thread(target=self._send_all, args=(rests,), daemon=True)
        if rests:
            sender.start()
        own = messages.get(self.rank, NO_BYTES)
        sizes = [0] * self.size
        sizes[self.rank] = own.size
        for peer, header in headers.items():
            sizes[peer] = header.size
        received, ends = np.empty(sum(sizes), np.uint8), list(itertools.accumulate(sizes))
        received[ends[self.rank] - own.size : ends[self.rank]] = own
        for peer, header in headers.items():
            content = received[ends[peer] - header.size : ends[peer]]
            self._receive(peer, content.data)
            checker.check_content(peer, content, header)
        if rests:
            sender.join()
        return received, sizes

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

    def _receive(self, peer: int, buffer: memoryview) -> None:
        """Fill a buffer with data from a peer."""
        self.late_rank = peer
        try:
            length = self._readers[peer].readinto(buffer)
        except OSError as error:
            raise PeerLostError(f"rank {peer}: {error.strerror or error}") from error
        self.late_rank = None
        if length < len(buffer):
            raise PeerLostError(f"rank {peer} closed its connection")

    def close(self) -> None:
        for peer, reader in self._readers.items():
            reader.close()  # The connection stays open as long as its reader is open.
            self._peers[peer].close()
