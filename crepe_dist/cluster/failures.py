"""How a rank learns that another one is gone, and how it leaves a broken group."""

from __future__ import annotations

import os
import socket

from crepe_dist.errors import PeerGone

# Texts of MXNetError (horovod/common/common.h; Gloo's socket errors). Such an error is raised once; afterwards the
# array reads as if all were well, with wrong contents: what depended on it must be thrown away.
TEXTS = (
    "Horovod has been shut down",
    "Connection reset by peer",
    "Connection closed by peer",
    "Broken pipe",
    "Read error",
    "Write error",
    "Timed out waiting",
    "Application timeout caused pair closure",
    "Read timeout",
    "Write timeout",
)
MOST_ERRORS = 200  # of one broken group; each pending operation may hold one


def is_peer_gone(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, PeerGone) or any(each in text for each in TEXTS)


def drain() -> None:
    """Waits for all of MXNet's pending operations and forgets the errors that they hold."""
    import mxnet as mx

    for _ in range(MOST_ERRORS):
        try:
            mx.nd.waitall()
            return
        except mx.MXNetError:
            continue
    raise PeerGone("MXNet's operations keep failing")


def sockets() -> set[tuple[int, str]]:
    """(descriptor, identity) of the sockets that this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add((int(name), target))
    return found


def hang_up(those: set[tuple[int, str]]) -> None:
    """Ends the connections behind these sockets, if they are still open.

    Horovod keeps those of a broken group until it is initialised again, and a rank that waits for this one, not for
    the one that is gone, would notice nothing before Gloo's time-out.
    """
    for descriptor, _ in those & sockets():
        try:
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                    connection.getpeername()
                    connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue
