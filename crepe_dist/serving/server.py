"""HTTP server: uvicorn with limits on connections and a graceful shutdown."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from contextlib import ExitStack
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from crepe_dist.errors import UserError

BACKLOG = 128
MAX_CONNECTIONS = 256
MAX_HEAD_BYTES = 16_384  # of a request's headers
KEEP_ALIVE_S = 30
TCP = (socket.SOCK_STREAM, socket.IPPROTO_TCP)


def listen(host: str, port: int) -> socket.socket:
    """Open a socket on which clients can connect; they wait until ``serve`` answers.

    Raises:
        UserError: the address does not belong to this machine, or the port is in use or not permitted.
    """
    with ExitStack() as on_error:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, socket.AF_UNSPEC, *TCP)[0]
            # asyncio only sets TCP_NODELAY if the protocol is given; else each answer waits 40 ms to be acknowledged.
            listener = on_error.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except (OSError, UnicodeError) as error:
            remedy = "choose a --host of this machine, such as 127.0.0.1, and a --port from 1024; 0 picks a free one"
            raise UserError(f"cannot listen on {host}, port {port}: {error}", remedy=remedy) from error
        on_error.pop_all()
    return listener


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def serve(app: ASGIApp, listener: socket.socket, timeout: float) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish the requests in progress and call the signal's handler.

    Args:
        timeout: seconds for the head of a request to arrive, for a client to read what was sent, and for the requests
            in progress at the end.
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
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(timeout)),
    )
    uvicorn.Server(config).run(sockets=[listener])


def _protocol(timeout: float) -> type[H11Protocol]:
    class Connection(H11Protocol):
        """Protocol with limits that uvicorn lacks: time to send the head of a request, and to read an answer."""

        _head_timeout: asyncio.TimerHandle | None = None
        _reader_timeout: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # pause_writing as soon as the client does not read
            self._watch_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_head()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._reader_timeout = self.loop.call_later(timeout, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._reader_timeout is not None:
                self._reader_timeout.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._head_timeout, self._reader_timeout):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def _watch_head(self) -> None:
            is_waiting = self.conn.their_state is h11.IDLE
            if is_waiting and self._head_timeout is None:
                self._head_timeout = self.loop.call_later(timeout, self.transport.close)
            elif not is_waiting and self._head_timeout is not None:
                self._head_timeout.cancel()
                self._head_timeout = None

    return Connection
