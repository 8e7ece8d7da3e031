"""Download of one file over several attempts, each of which resumes the last."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from crepe_dist.errors import UserError
from crepe_dist.files import read_json, sync, write_json

RECORDS = "downloads.json"
PIECE = 1 << 16  # bytes; a connection reset loses the current piece
MAX_REDIRECTS = 5
MAX_PAUSE = 30.0  # seconds
MAX_RETRY_AFTER = 60
GZIP = b"\x1f\x8b"
NUMBER = re.compile(r"[0-9]{1,18}")
SPAN = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")  # of Content-Range
VALIDATORS = ("ETag", "Last-Modified")
PORTS = {"http": 80, "https": 443}
CHECK_ADDRESS = "check the address given as --url"

Records = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Progress:
    """Progress of one file.

    Attributes:
        file: name of the file.
        received: bytes received or verified so far.
        total: size in bytes; ``None`` while unknown.
    """

    file: str
    received: int
    total: int | None


class _Failed(Exception):
    """A failed attempt that is worth repeating, after ``wait`` seconds if the server asked for a delay."""

    def __init__(self, reason: str, wait: float = 0) -> None:
        super().__init__(reason)
        self.wait = wait


class FileDownload:
    """Download of one file into ``<name>.part``, over several attempts."""

    def __init__(self, session: requests.Session, url: str, path: Path, file: IO[bytes], timeout: float) -> None:
        self.size = 0
        self._session = session
        self._url = url
        self._path = path
        self._file = file
        self._timeout = timeout
        self._part = path.with_name(f"{path.name}.part")
        self._about_path = path.with_name(f"{path.name}.part.json")
        self._about: dict[str, Any] = {}
        self._head = b""
        self._digest = hashlib.sha256()

    def run(self, records: Records, attempts: int, pause: float) -> Iterator[Progress]:
        """Receive the file, record its checksum and rename it to its final name."""
        try:
            complete = yield from self._resume()
            if not complete:
                yield from self._receive(attempts, pause)
            self._finish(records)
        finally:
            self._file.flush()
            if os.fstat(self._file.fileno()).st_size == 0:
                self._discard()
        yield Progress(self._path.name, self.size, self.size)

    def _receive(self, attempts: int, pause: float) -> Iterator[Progress]:
        failures, furthest = 0, self.size
        while True:
            try:
                yield from self._attempt()
                return
            except _Failed as failed:
                # Compare with the furthest byte ever: a server that always restarts must not be retried for ever.
                failures = 0 if self.size > furthest else failures + 1
                furthest = max(furthest, self.size)
                if failures >= attempts:
                    kept = f"{self.size} bytes are kept in {self._part}; " if self._validator() else ""
                    raise UserError(
                        f"{self._url} could not be downloaded",
                        f"{failed} ({attempts} consecutive attempts made no progress)",
                        f"{kept}run the same command again to {'resume' if kept else 'start over'}",
                    ) from failed
                time.sleep(max(failed.wait, min(MAX_PAUSE, pause * 2 ** max(failures - 1, 0))))

    def _finish(self, records: Records) -> None:
        self._check_kind()
        name, sha256 = self._path.name, self._digest.hexdigest()
        if name in records and records[name]["sha256"] != sha256:
            self._discard()
            raise UserError(
                f"the file at {self._url} has changed since it was recorded",
                f"its SHA-256 differs from {self._path.with_name(RECORDS)}",
                f"if this is expected, delete its entry there, or delete {RECORDS}",
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        # Record it before renaming: after a kill in between, only the renaming is missing.
        found = {**self._about, "bytes": self.size, "sha256": sha256}
        write_json(self._path.with_name(RECORDS), {**records, name: found})
        self._part.replace(self._path)
        self._about_path.unlink()
        sync(self._path.parent)

    def _resume(self) -> Generator[Progress, None, bool]:
        """Read the part left by an earlier process; return true if it is the whole file."""
        with suppress(FileNotFoundError, ValueError, TypeError):
            self._about = dict(read_json(self._about_path))
        total = self._about.get("bytes")
        size = os.fstat(self._file.fileno()).st_size
        if self._about.get("url") != self._url or (total is not None and size > total):
            self._start_over({})
        for block in blocks(self._part):
            self._account(block)
            yield self._progress()
        return self.size == self._about.get("bytes")

    def _attempt(self) -> Iterator[Progress]:
        headers = {"Accept-Encoding": "identity"}  # otherwise Content-Length would be the size of compressed data
        validator = self._validator()
        if validator is not None:
            headers.update({"Range": f"bytes={self.size}-", "If-Range": validator[1]})
        with self._get(headers) as response:
            status = response.status_code
            if status == 200:
                self._start(response)
            elif status == 206 and validator is not None:
                self._continue(response, *validator)
            elif status == 416 and validator is not None:
                self._start_over({})
                raise _Failed("the server's file is not longer than the part already received")
            else:
                self._refuse(response)
            yield self._progress()
            # iter_content would decompress a .gz that is sent as Content-Encoding: gzip.
            try:
                for piece in response.raw.stream(PIECE, decode_content=False):
                    self._file.write(piece)
                    self._account(piece)
                    if self.size >= len(GZIP):
                        self._check_kind()
                    yield self._progress()
            except urllib3.exceptions.HTTPError as error:
                raise _Failed(_reason(error)) from error
        total = self._about["bytes"]
        if total is not None and self.size != total:
            reason = f"{self.size} of {total} bytes arrived"
            if self.size > total:
                self._start_over({})
            raise _Failed(reason)

    def _get(self, headers: dict[str, str]) -> requests.Response:
        """Follow redirects and return the final response, with any status."""
        url = self._url
        for _ in range(MAX_REDIRECTS + 1):
            try:
                response = self._session.get(
                    url, headers=headers, stream=True, allow_redirects=False, timeout=self._timeout
                )
            except (requests.ConnectionError, requests.Timeout) as error:
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise UserError(
                        f"the server of {url} cannot be trusted", _reason(error), "choose another --url"
                    ) from error
                raise _Failed(_reason(error)) from error
            except (requests.RequestException, ValueError) as error:
                raise UserError(f"{url} cannot be requested", str(error), CHECK_ADDRESS) from error
            if not response.is_redirect:
                return response
            response.close()
            url = redirected(url, response.headers["Location"])
        why = f"more than {MAX_REDIRECTS} consecutive redirects"
        raise UserError(f"{self._url} could not be downloaded", why, CHECK_ADDRESS)

    def _start(self, response: requests.Response) -> None:
        length = response.headers.get("Content-Length", "")
        kept = {key: response.headers[key] for key in (*VALIDATORS, "Content-Type") if key in response.headers}
        self._start_over({"url": self._url, "bytes": int(length) if NUMBER.fullmatch(length) else None, **kept})

    def _continue(self, response: requests.Response, header: str, value: str) -> None:
        span = SPAN.fullmatch(response.headers.get("Content-Range", ""))
        total = int(span[2]) if span and span[2] != "*" else None
        known = self._about["bytes"]
        # Compare the validator here too, because not every server respects If-Range.
        same = response.headers.get(header, value) == value and (known is None or total in (None, known))
        if span is None or int(span[1]) != self.size or not same:
            self._start_over({})
            raise _Failed("the server's response does not continue the part already received")
        self._about["bytes"] = total if known is None else known

    def _refuse(self, response: requests.Response) -> NoReturn:
        status = response.status_code
        reason = f"the server answered {status} {http.client.responses.get(status, '')}".rstrip()
        if status == 429 or status >= 500:
            wait = response.headers.get("Retry-After", "")
            raise _Failed(reason, min(MAX_RETRY_AFTER, int(wait)) if NUMBER.fullmatch(wait) else 0)
        raise UserError(f"{self._url} could not be downloaded", reason, CHECK_ADDRESS)

    def _validator(self) -> tuple[str, str] | None:
        """Return the header and value that tell the server which version of the file the part belongs to."""
        for header in VALIDATORS:
            value = self._about.get(header)
            if value and not value.startswith("W/") and self.size:
                return header, value
        return None

    def _start_over(self, about: dict[str, Any]) -> None:
        self._file.truncate(0)
        # The old bytes must be gone from disk before the new headers describe the part.
        os.fsync(self._file.fileno())
        write_json(self._about_path, about)
        self.size, self._about, self._head, self._digest = 0, about, b"", hashlib.sha256()

    def _account(self, piece: bytes) -> None:
        self.size += len(piece)
        self._digest.update(piece)
        self._head = (self._head + piece[:60])[:60]

    def _progress(self) -> Progress:
        return Progress(self._path.name, self.size, self._about.get("bytes"))

    def _check_kind(self) -> None:
        if self._path.suffix == ".gz" and not self._head.startswith(GZIP):
            kind = self._about.get("Content-Type", "no Content-Type")
            self._discard()
            raise UserError(
                f"{self._url} is not a gzip file",
                f"the server sent {kind!r} that starts with {self._head!r}",
                CHECK_ADDRESS,
            )

    def _discard(self) -> None:
        self._part.unlink(missing_ok=True)
        self._about_path.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """Return the cause of an error from requests or urllib3, without its wrappers."""
    cause = error.args[0] if error.args else error
    return str(getattr(cause, "reason", None) or cause)


def redirected(url: str, location: str) -> str:
    """Return the target of a redirect if it is on the same server."""
    try:
        target = requests.utils.requote_uri(urljoin(url, location))
        old, new = _place(url), _place(target)
        encrypted = ("https", old[1], 443) if old == ("http", old[1], 80) else old
        if new in (old, encrypted):
            return target
    except ValueError:
        target = repr(location)
    raise UserError(
        f"{url} redirects to {target}",
        "the target is on another server or port, or is not encrypted",
        "if you trust it, give its folder as --url",
    )


def _place(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or PORTS.get(parts.scheme)


def blocks(path: Path) -> Iterator[bytes]:
    """Yield a file in blocks of at most 1 MiB."""
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            yield block
