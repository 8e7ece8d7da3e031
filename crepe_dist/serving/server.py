"""HTTP server: uvicorn with connection limits and graceful shutdown."""

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

BACKLOG = 128  # Maximum number of connections that wait to be accepted.
MAX_CONNECTIONS = 256  # Maximum number of connections that are served at the same time.
MAX_HEAD_BYTES = 16_384  # Maximum size of the headers of a request, in bytes.
KEEP_ALIVE_S = 30  # An idle connection is closed after this number of seconds.
TCP = (socket.SOCK_STREAM, socket.IPPROTO_TCP)


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket. Clients can connect immediately, but get responses only once ``serve`` runs.

    Raises:
        UserError: The address does not belong to this machine, or the port is in use or not permitted.
    """
    with ExitStack() as on_error:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, socket.AF_UNSPEC, *TCP)[0]
            # The protocol is passed explicitly, because asyncio sets TCP_NODELAY only if the socket's protocol number
            # is IPPROTO_TCP. Without TCP_NODELAY, each response would wait 40 ms for an acknowledgement.
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
    """Serve until SIGTERM or Ctrl-C. Then finish the requests in progress, and call the previous signal handler.

    Args:
        app: Application.
        listener: Listening socket.
        timeout: Time limit in seconds. It applies separately to sending the headers of a request, to reading a
            response, and to finishing the requests in progress during the shutdown.
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
        """HTTP protocol with two timeouts that uvicorn lacks: clients must send headers and read responses in time."""

        _head_timeout: asyncio.TimerHandle | None = None
        _reader_timeout: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # If the limit is 0, asyncio calls pause_writing as soon as the socket buffer is full.
            transport.set_write_buffer_limits(high=0)
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
