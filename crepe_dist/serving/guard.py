"""What stands between the network and the application: the name that is asked, how much, how long, how many."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from typing import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crepe_dist.serving.problems import Problem
from crepe_dist.settings.serving_options import ServiceOptions

PREDICT = "/predict"
# The rest of a body that is too long is read and thrown away, so that its sender gets to read the answer, up to:
DISCARDED = 8  # times max_body
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """ASGI middleware. The application behind it gets bodies that are whole, and within the limits.

    Args:
        refused: told of each request for which there was no room.
    """

    def __init__(self, app: ASGIApp, options: ServiceOptions, refused: Callable[[], None]) -> None:
        self.app = app
        self.options = options
        self.refused = refused
        self._in_hand = 0

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
            self._check_host(headers)
            if scope["path"] == PREDICT:
                await self._with_room(scope, headers, receive, send_with_headers)
            else:
                await self.app(scope, _nothing, send_with_headers)
        except Problem as problem:
            await problem.response()(scope, receive, send_with_headers)

    def _check_host(self, headers: Headers) -> None:
        """A page of another site can have its name point here (DNS rebinding), but then the browser sends that name."""
        given = headers.get("host", "")
        name = given.rpartition(":")[0] if given.rpartition(":")[2].isdigit() else given
        name = name.lower()
        if name == "localhost" or name in self.options.names or _is_address(name):
            return
        raise Problem(
            403,
            f"the service is not known as {given[:100]!r}",
            "it answers to IP addresses, localhost and the names that it was started with",
            "use one of them, or start it with --allow-host NAME",
            closes=True,
        )

    async def _with_room(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        if self._in_hand >= self.options.queue:
            self.refused()
            raise Problem(
                503,
                "too many requests at a time",
                f"{self.options.queue} are in hand already",
                "ask again in a second, or put several texts into one request",
                retry_after=1,
                closes=True,
            )
        self._in_hand += 1
        try:
            body = await self._body(headers, receive)
            await self.app(scope, _once(body, receive), send)
        finally:
            self._in_hand -= 1

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        limit = self.options.max_body
        due = time.monotonic() + self.options.timeout
        declared = headers.get("content-length", "0")
        length = int(declared) if declared.isdecimal() and len(declared) < 19 else 0
        pieces: list[bytes] = []
        read, more = 0, length <= limit * DISCARDED
        while more:
            try:
                message = await asyncio.wait_for(receive(), due - time.monotonic())
            except asyncio.TimeoutError:
                raise Problem(
                    408,
                    "the request did not arrive in time",
                    f"its body was not complete after {self.options.timeout:g} seconds",
                    "send it faster, or start the service with a longer --timeout",
                    closes=True,
                ) from None
            if message["type"] == "http.disconnect":
                raise Problem(400, "the request broke off", closes=True)
            piece = message.get("body", b"")
            read += len(piece)
            if read <= limit:
                pieces.append(piece)
            else:
                pieces.clear()
            more = message.get("more_body", False) and read <= limit * DISCARDED
        if max(read, length) > limit:
            raise Problem(
                413,
                "the request is too long",
                f"a request has at most {limit:,} bytes",
                "send fewer texts at a time, or start the service with a larger --max-body",
                closes=True,
            )
        return b"".join(pieces)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return False
    return True


async def _nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def _once(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body, then what comes after it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
