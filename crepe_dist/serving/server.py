"""From an ASGI application to a port, and to a good end."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from crepe_dist.errors import UserError

BACKLOG = 128
CONNECTIONS = 512
HEAD_BYTES = 16_384  # of a request's line and headers
KEEP_ALIVE_S = 30


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound and does not listen yet.

    Raises:
        UserError: the address is none of this machine's, or the port is taken or not allowed.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port is {port}", remedy="give a number up to 65535; 0 takes any that is free")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--host {host} cannot be resolved", str(error), "give an address of this machine, as 127.0.0.1"
        ) from error
    # With the protocol named, asyncio sets TCP_NODELAY; without it, each answer waits 40 ms for an acknowledgement.
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _unusable(host, port, error) from error
    return listener


def _unusable(host: str, port: int, error: OSError) -> UserError:
    remedies = {
        errno.EADDRINUSE: "choose another --port (0 takes any that is free), or stop what listens there",
        errno.EADDRNOTAVAIL: "give an address of this machine, as 127.0.0.1",
        errno.EACCES: "choose a --port from 1024 on",
    }
    why = os.strerror(error.errno) if error.errno else str(error)
    return UserError(f"{host}, port {port} cannot be listened on", why, remedies.get(error.errno or 0, ""))


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def listen(listener: socket.socket) -> None:
    """From here on connections are taken; ``UserError`` if another process was quicker."""
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _unusable(host, port, error) from error


def serve(app: ASGIApp, listener: socket.socket, timeout: float) -> None:
    """Answers until SIGTERM or Ctrl-C; then answers what is in hand, and calls the signal's handler.

    Args:
        timeout: that a head may take to arrive, and all that is in hand to be answered in the end.
    """
    config = uvicorn.Config(
        app,
        http=_protocol(timeout),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(timeout)),
    )
    uvicorn.Server(config).run(sockets=[listener])


def _protocol(head_s: float) -> type[H11Protocol]:
    class Connection(H11Protocol):
        """Has an end where uvicorn has none: to connections that begin no request, and to their number."""

        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > CONNECTIONS:
                transport.abort()
            self._watch_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_head()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._late is not None:
                self._late.cancel()
            super().connection_lost(exc)

        def _watch_head(self) -> None:
            is_waiting = self.conn.their_state is h11.IDLE
            if is_waiting and self._late is None:
                self._late = self.loop.call_later(head_s, self.transport.close)
            elif not is_waiting and self._late is not None:
                self._late.cancel()
                self._late = None

    return Connection
