"""Limits on requests: host names, size, time and number."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Collection
from typing import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crepe_dist.serving.schemas import Problem
from crepe_dist.settings.options import ServiceOptions

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
            self._check_host(Headers(scope=scope).get("host", ""))
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}  # the server leaves the body out
            if scope["path"] in self.predicting:
                await self._predict(scope, receive, send_with_headers)
            else:
                await self.app(scope, receive, send_with_headers)
        except Problem as problem:
            await problem.response(scope["path"])(scope, receive, send_with_headers)

    def _check_host(self, host: str) -> None:
        """Refuse unknown host names.

        Another site can point its name at this service (DNS rebinding), but the browser then sends that name.
        """
        name, _, port = host.rpartition(":")
        name = (name if port.isdigit() else host).lower()
        if not (name == "localhost" or name in self.options.names or _is_address(name)):
            remedy = "use an IP address or localhost, or start the service with --allow-host NAME"
            raise Problem(403, f"the host name {host[:100]!r} is not allowed", remedy=remedy, closes=True)

    async def _predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        timeout, limit = self.options.timeout, self.options.max_body
        try:
            body = await asyncio.wait_for(_body(receive, limit), timeout)
        except asyncio.TimeoutError:
            what = f"the request was not complete after {timeout:g} seconds"
            raise Problem(408, what, remedy="send it faster, or raise --timeout", closes=True) from None
        if body is None:
            why = f"the limit is {limit:,} bytes"
            raise Problem(413, "the request is too long", why, "send fewer texts at a time, or raise --max-body")
        if self._in_progress >= self.options.queue:
            self.on_overload()
            why = f"{self.options.queue} requests are in progress"
            remedy = "try again in a second, or put several texts into one request"
            raise Problem(503, "too many requests at a time", why, remedy, retry_after=1)
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        self._in_progress += 1
        try:
            await self.app(scope, replay, send)
        finally:
            self._in_progress -= 1


async def _body(receive: Receive, limit: int) -> bytes | None:
    """Receive a body to its end, since a client only reads the answer then; ``None`` if it is too long."""
    body, size, more = bytearray(), 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem(400, "the client disconnected during the request", closes=True)
        piece = message.get("body", b"")
        size += len(piece)
        if size <= limit:
            body += piece
        more = message.get("more_body", False)
    return bytes(body) if size <= limit else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return False
    return "%" not in name  # the zone of an IPv6 address can be any text
