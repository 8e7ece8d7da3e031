"""Files on the web, from servers that may break off, never end, or send elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from functools import partial
from threading import Thread
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from crepe_dist.errors import UserError

SCHEMES = ("http", "https")
MAX_REDIRECTS = 5
RETRIES = 4  # of a server that cannot be reached or is busy, after pauses
BUSY = (429, 500, 502, 503, 504)
PIECE = 1 << 16  # bytes
TIMEOUT = 60  # seconds for the answer to begin, with all redirects and retries
SLOWEST = 1000  # bytes per second of the body, over TIMEOUT
Value = TypeVar("Value")


class _Session(requests.Session):
    """Session that does not look for redirects, because requests reads their bodies, which may never end."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        pass


def open_url(url: str, shown: str) -> tuple[Iterator[bytes], int | None]:
    """Request a file, and follow redirects to other hosts, as to a mirror, but not to other schemes or without TLS.

    Args:
        shown: URL for messages, without secrets.

    Returns:
        The body, as it arrives and without decompressing it, and its size in bytes, ``None`` if the server does not
        say it.

    Raises:
        UserError: a redirect is refused, or the server answers with an error.
        TimeoutError: the server does not answer in time; from the body, it arrives too slowly.
        requests.RequestException: the server cannot be reached.
        urllib3.exceptions.HTTPError: from the body, it breaks off.
    """
    response = _within(TIMEOUT, f"no answer within {TIMEOUT} s", partial(_answer, url, shown))
    if response.status_code != 200:
        remedy = "check the spelling of the URL, and your credentials"
        raise UserError(f"{shown} cannot be read", f"the server answered {response.status_code}", remedy)
    length = response.headers.get("Content-Length", "")
    return _pieces(response), int(length) if length.isascii() and length.isdecimal() and len(length) < 19 else None


def _answer(url: str, shown: str) -> requests.Response:
    address, redirects, pauses = url, MAX_REDIRECTS, [2**retry for retry in range(RETRIES)]
    # Not urllib3's retries of a busy server: it reads the whole answer first, and waits as long as Retry-After says.
    unreachable = Retry(RETRIES, backoff_factor=1, respect_retry_after_header=False)
    with _Session() as session:
        for scheme in SCHEMES:
            session.mount(f"{scheme}://", HTTPAdapter(max_retries=unreachable))
        while True:
            headers = {"Accept-Encoding": "identity"}  # otherwise Content-Length would be the size of compressed data
            response = session.get(address, headers=headers, stream=True, allow_redirects=False, timeout=TIMEOUT)
            if response.status_code in BUSY and pauses:
                time.sleep(pauses.pop(0))
            elif response.is_redirect:
                address, redirects = _redirected(response, shown, redirects), redirects - 1
            else:
                return response
            response.close()


def _redirected(response: requests.Response, shown: str, redirects: int) -> str:
    before, after = response.url, urljoin(response.url, requests.Session().get_redirect_target(response))
    scheme = urlsplit(after).scheme
    if scheme not in (("https",) if urlsplit(before).scheme == "https" else SCHEMES):
        raise UserError(
            f"{shown} redirects to an address of {scheme or 'no scheme'}",
            "only https is followed, and http from http",
            "if you trust it, download the file yourself and name the copy",
        )
    if not redirects:
        why = f"more than {MAX_REDIRECTS} consecutive redirects"
        raise UserError(f"{shown} cannot be read", why, "name the address of the file itself")
    return after


def _pieces(response: requests.Response) -> Iterator[bytes]:
    started, received = time.monotonic(), 0
    read = partial(response.raw.read1, PIECE, decode_content=False)
    while True:
        late = f"only {received:,} bytes arrived in {TIMEOUT} s"
        piece = _within(started + TIMEOUT - time.monotonic(), late, read)
        if not piece:
            break
        yield piece
        received += len(piece)
        if received >= TIMEOUT * SLOWEST:
            started, received = time.monotonic(), 0
    response.close()


def _within(seconds: float, late: str, call: Callable[[], Value]) -> Value:
    """Call a function in a thread, which is left behind if it takes longer.

    The time limits of sockets are those of one byte, and a server can send them one by one.
    """
    outcome: Future[Value] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=work, daemon=True).start()
    if wait([outcome], seconds).not_done:
        raise TimeoutError(late)
    return outcome.result()
