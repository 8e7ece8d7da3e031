"""Files on the web, from servers that may break off, never end, or send elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from crepe_dist.errors import UserError

SCHEMES = ("http", "https")
MAX_REDIRECTS = 5
RETRIES = Retry(total=4, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False)
PIECE = 1 << 16  # bytes
TIMEOUT = 60  # seconds without a response or a byte
SLOWEST = 1000  # bytes per second, over TIMEOUT


def open_url(session: requests.Session, url: str, shown: str) -> tuple[requests.Response, int | None]:
    """Request a file, and follow redirects to other hosts, as to a mirror, but not to other schemes or without TLS.

    A server that cannot be reached or is busy is asked again, after pauses.

    Args:
        shown: URL for messages, without secrets.

    Returns:
        The response, whose body has not been read, and its size in bytes, ``None`` if the server does not say it.

    Raises:
        UserError: a redirect is refused, or the server answers with an error.
        requests.RequestException: the server cannot be reached.
    """
    for scheme in SCHEMES:
        session.mount(f"{scheme}://", HTTPAdapter(max_retries=RETRIES))
    address = url
    for _ in range(MAX_REDIRECTS + 1):
        headers = {"Accept-Encoding": "identity"}  # otherwise Content-Length would be the size of compressed data
        response = session.get(address, headers=headers, stream=True, allow_redirects=False, timeout=TIMEOUT)
        if not response.is_redirect:
            break
        response.close()
        before, address = address, (response.next and response.next.url) or ""
        if urlsplit(address).scheme not in (("https",) if urlsplit(before).scheme == "https" else SCHEMES):
            raise UserError(
                f"{shown} redirects to an address of {urlsplit(address).scheme or 'no scheme'}",
                "only https is followed, and http from http",
                "if you trust it, download the file yourself and name the copy",
            )
    else:
        why = f"more than {MAX_REDIRECTS} consecutive redirects"
        raise UserError(f"{shown} cannot be read", why, "name the address of the file itself")
    if response.status_code != 200:
        remedy = "check the spelling of the URL, and your credentials"
        raise UserError(f"{shown} cannot be read", f"the server answered {response.status_code}", remedy)
    length = response.headers.get("Content-Length", "")
    return response, int(length) if length.isascii() and length.isdecimal() and len(length) < 19 else None


def pieces(response: requests.Response) -> Iterator[bytes]:
    """Yield the body as it arrives, without decompressing it.

    Raises:
        urllib3.exceptions.HTTPError: it breaks off, or arrives too slowly.
    """
    started, received = time.monotonic(), 0
    while piece := response.raw.read1(PIECE, decode_content=False):
        yield piece
        received += len(piece)
        if time.monotonic() - started > TIMEOUT:
            if received < TIMEOUT * SLOWEST:
                raise urllib3.exceptions.HTTPError(f"only {received:,} bytes arrived in {TIMEOUT} s")
            started, received = time.monotonic(), 0
