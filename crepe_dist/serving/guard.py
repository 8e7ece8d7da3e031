"""Limits on requests: host names, size, time and number."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Collection
from typing import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crepe_dist.serving.problems import Problem
from crepe_dist.settings.serving_options import ServiceOptions

# A client only reads the answer after it has sent its body, so an overlong body is read and discarded up to this limit.
DISCARD_LIMIT = 8  # multiple of max_body
MAX_HEAD_BYTES = 16_384  # of a request's headers
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """ASGI middleware that only passes complete bodies within the limits on to the application.

    A request takes a place in the queue once its body is complete, so slow clients cannot fill the queue.

    Args:
        predicting: paths of predictions, the only ones that take a body and a place in the queue.
        on_overload: called for each request that is refused because too many are in progress.
    """

    def __init__(
        self, app: ASGIApp, options: ServiceOptions, predicting: Collection[str], on_overload: Callable[[], None]
    ) -> None:
        self.app = app
        self.options = options
        self.predicting = predicting
        self.on_overload = on_overload
        self._in_progress = 0
        self._is_stopping = False

    def stop(self) -> None:
        """Refuse requests that begin from now on."""
        self._is_stopping = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            headers = Headers(scope=scope)
            _check_length(headers)
            self._check_host(headers)
            _check_framing(headers)
            if self._is_stopping:
                raise Problem(503, "the service is stopping", remedy="try again later", retry_after=1, closes=True)
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}  # the server leaves the body out
            if scope["path"] in self.predicting:
                await self._predict(scope, headers, receive, send_with_headers)
            else:
                await self.app(scope, _replaying(b"", receive), send_with_headers)
        except Problem as problem:
            await problem.response(scope["path"])(scope, receive, send_with_headers)

    def _check_host(self, headers: Headers) -> None:
        """Refuse unknown host names.

        Another site can point its name at this service (DNS rebinding), but the browser then sends that name.
        """
        host = headers.get("host", "")
        name, _, port = host.rpartition(":")
        name = (name if port.isdigit() else host).lower()
        if name == "localhost" or name in self.options.names or _is_address(name):
            return
        raise Problem(
            403,
            f"the host name {host[:100]!r} is not allowed",
            "the service accepts IP addresses, localhost and the names given by --allow-host",
            "use one of them, or start the service with --allow-host NAME",
            closes=True,
        )

    async def _predict(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        body = await self._body(headers, receive)
        if self._in_progress >= self.options.queue:
            self.on_overload()
            raise Problem(
                503,
                "too many requests at a time",
                f"{self.options.queue} requests are in progress",
                "try again in a second, or put several texts into one request",
                retry_after=1,
            )
        self._in_progress += 1
        try:
            await self.app(scope, _replaying(body, receive), send)
        finally:
            self._in_progress -= 1

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """Receive a body that is within the limits; the server limits the number of connections that send one."""
        limit = self.options.max_body
        deadline = time.monotonic() + self.options.timeout
        declared = headers.get("content-length", "0")
        length = int(declared) if declared.isdecimal() and len(declared) < 19 else 0
        pieces: list[bytes] = []
        read, more = 0, length <= limit * DISCARD_LIMIT
        while more:
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                raise Problem(
                    408,
                    "the request did not arrive in time",
                    f"its body was not complete after {self.options.timeout:g} seconds",
                    "send it faster, or start the service with a longer --timeout",
                    closes=True,
                ) from None
            if message["type"] == "http.disconnect":
                raise Problem(400, "the client disconnected during the request", closes=True)
            piece = message.get("body", b"")
            read += len(piece)
            if read <= limit:
                pieces.append(piece)
            else:
                pieces.clear()
            more = message.get("more_body", False) and read <= limit * DISCARD_LIMIT
        if max(read, length) > limit:
            raise Problem(
                413,
                "the request is too long",
                f"the limit is {limit:,} bytes",
                "send fewer texts at a time, or start the service with a larger --max-body",
                closes=True,
            )
        return b"".join(pieces)


def _check_length(headers: Headers) -> None:
    """Refuse long headers that arrived at once: h11 only limits what it has to wait for."""
    length = sum(len(name) + len(value) for name, value in headers.raw)
    if length > MAX_HEAD_BYTES:
        raise Problem(
            431, "the headers are too long", f"the limit is {MAX_HEAD_BYTES:,} bytes", "send fewer headers", closes=True
        )


def _check_framing(headers: Headers) -> None:
    """Refuse a request whose length is given twice: a proxy may have read another one (RFC 9112, 6.1)."""
    if "content-length" in headers and "transfer-encoding" in headers:
        raise Problem(
            400,
            "the length of the request is ambiguous",
            "it has both Content-Length and Transfer-Encoding",
            "send one of them",
            closes=True,
        )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return False
    return "%" not in name  # the zone of an IPv6 address can be any text


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that yields the body first, and later messages after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
