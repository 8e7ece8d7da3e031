"""Download of sources from URLs, and upload of files to URLs.

fsspec reads URLs such as ``s3://bucket/reviews/``. The library requests reads ``http://`` and ``https://`` URLs,
because it lets this module handle servers that close the connection early, send data without end, or redirect to other
servers.
"""

import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from crepe_dist import extras, invocation
from crepe_dist.errors import UserError
from crepe_dist.preparing.worker_pool import ProgressCallback, no_progress

if TYPE_CHECKING:
    import requests

URL = re.compile(r"[a-z][a-z0-9+.-]*://.")
# Size of a chunk in bytes. Downloads are read in chunks.
CHUNK_BYTES = 1 << 22
# Maximum size of a file in bytes if the server does not report its size.
MAX_BYTES_OF_UNKNOWN_SIZE = 1 << 32
# Maximum number of consecutive redirects.
MAX_REDIRECTS = 5
# Time limit in seconds for the answer of a server, and for each later pause without data.
TIMEOUT_SECONDS = 60

# Schemes of stores without folders. There, a request for a folder could create a bucket.
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "hf")

# Path of the copy of a file, its size in bytes (``None`` if unknown), and its content.
RemoteFile = tuple[Path, int | None, Iterator[bytes]]


def is_url(name: str | None) -> bool:
    """Return True if the name of a source is a URL. Return False for a path and for ``None``."""
    return name is not None and URL.match(name) is not None


def redact_url(text: str) -> str:
    """Remove user names, passwords and query strings from the URLs in a text.

    Query strings may contain secrets such as signatures.
    """
    text = re.sub(r"(://)[^/\s'\"]*@", r"\1", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)


def download(url: str, folder: Path, show_progress: ProgressCallback = no_progress) -> Path:
    """Download a file, or a folder with all its files, into ``folder``.

    fsspec finds credentials in environment variables, in its own configuration files, and in the configuration files of
    the storage service.

    Args:
        show_progress: Function to call with the progress in bytes.

    Returns:
        Path of the copy.

    Raises:
        UserError: The library for this kind of URL is not installed, or the source cannot be read.
    """
    shown = redact_url(url)
    extras.require("remote", shown)
    target, files = (_open_web_address if _is_web_address(url) else _open_storage)(url, folder)
    done, total, free = 0, sum(size or 0 for _, size, _ in files), shutil.disk_usage(folder.parent).free
    if total > free:
        what = f"{shown} does not fit on the disk of {folder.parent}"
        raise UserError(what, f"it has {total:,} bytes, and {free:,} bytes are free", "free disk space there")
    for path, size, chunks in files:
        received = 0
        for received in _write(chunks, path, size, shown):
            show_progress("copying", done + received, total)
        done += received
    return target


def _is_web_address(url: str) -> bool:
    return urlsplit(url).scheme in ("http", "https")


def _open_storage(url: str, folder: Path) -> tuple[Path, list[RemoteFile]]:
    """Find the files of a URL with fsspec. Return the path of the copy, and the files."""
    import fsspec

    with _translate_errors(url):
        system, path = fsspec.core.url_to_fs(url)
        root = PurePosixPath(path)
        if system.isdir(path):
            sizes = {name: info.get("size") for name, info in system.find(path, detail=True).items()}
            names = {name: PurePosixPath(name).relative_to(root) for name in sizes}
        else:
            sizes, names = {path: system.info(path).get("size")}, {path: PurePosixPath()}
    target = _copy_path(url, folder, [root, *names.values()])
    return target, [(target / names[name], size, _iter_chunks(url, system, name)) for name, size in sizes.items()]


def _open_web_address(url: str, folder: Path) -> tuple[Path, list[RemoteFile]]:
    """Request the file of a web address. Return the path of the copy, and a list that contains only this file."""
    shown = redact_url(url)
    # The query string is not a part of the file name. A web address is always a file, never a folder.
    target = _copy_path(url, folder, [PurePosixPath(urlsplit(url).path)])
    with _translate_errors(url):
        response = _request(url, shown)
    if response.status_code != 200:
        remedy = "check the spelling of the URL, and your credentials"
        raise UserError(f"{shown} cannot be read: the server answered {response.status_code}", remedy=remedy)
    length = response.headers.get("Content-Length", "")
    size = int(length) if length.isascii() and length.isdecimal() and len(length) < 19 else None
    pieces = iter(partial(response.raw.read1, CHUNK_BYTES, decode_content=False), b"")
    return target, [(target, size, _iter_translating_errors(url, pieces))]


def _request(url: str, shown: str) -> "requests.Response":
    """Request a file. The request and all redirects together may take at most ``TIMEOUT_SECONDS``.

    The request runs in a thread, because the timeout of the library requests has no effect on a server that sends its
    headers byte by byte. Redirects to other hosts, such as mirrors, are followed. Redirects to another scheme are
    refused, except from http to https. This function follows redirects itself, because the library would read the body
    of a redirect, which may never end.
    """
    import requests  # Importing requests takes 0.1 s.

    future: Future[requests.Response] = Future()

    def send_request() -> None:
        address = url
        headers = {"Accept-Encoding": "identity"}  # Otherwise, Content-Length could be a compressed size.
        try:
            with requests.Session() as session:
                session.get_redirect_target = lambda resp: None  # type: ignore[method-assign]
                for _ in range(1 + MAX_REDIRECTS):
                    response = session.get(
                        address, headers=headers, stream=True, allow_redirects=False, timeout=TIMEOUT_SECONDS
                    )
                    if not response.is_redirect:
                        return future.set_result(response)
                    response.close()
                    target = urljoin(address, response.headers["Location"])
                    if (scheme := urlsplit(target).scheme) not in ("https", urlsplit(address).scheme):
                        remedy = "if you trust this address, download the file yourself and name the copy"
                        raise UserError(f"{shown} redirects to an address of {scheme or 'no scheme'}", remedy=remedy)
                    address = target
            what = f"{shown} cannot be read: more than {MAX_REDIRECTS} consecutive redirects"
            raise UserError(what, remedy="name the address of the file itself")
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=send_request, daemon=True).start()
    try:
        return future.result(TIMEOUT_SECONDS)
    except FutureTimeout:
        what = f"{shown} cannot be read: the server did not answer in {TIMEOUT_SECONDS} seconds"
        raise UserError(what, remedy="try again later") from None


def _copy_path(url: str, folder: Path, names: list[PurePosixPath]) -> Path:
    """Return the destination of the first name in ``folder``. Raise ``UserError`` if a name would leave ``folder``."""
    if any(".." in name.parts for name in names):
        raise UserError(f"{redact_url(url)} cannot be copied", "the path of a file contains ..", "rename this file")
    return folder / re.sub(r"\W+", "-", urlsplit(url).scheme) / (str(names[0]).strip("/") or "index")


def _write(chunks: Iterator[bytes], copy: Path, size: int | None, shown: str) -> Iterator[int]:
    """Write chunks to a file. After each chunk, yield the number of bytes written so far.

    Args:
        size: Expected number of bytes; ``None`` if unknown.
        shown: URL to show in messages.

    Raises:
        UserError: The number of bytes differs from ``size``, or exceeds ``MAX_BYTES_OF_UNKNOWN_SIZE``.
    """
    copy.parent.mkdir(parents=True, exist_ok=True)
    limit, received = MAX_BYTES_OF_UNKNOWN_SIZE if size is None else size, 0
    with copy.open("wb") as stream:
        for chunk in chunks:
            received += len(chunk)
            if received > limit:
                break
            stream.write(chunk)
            yield received
    if size is None and received > limit:
        remedy = "if the file really is so large, download it yourself and name the copy"
        raise UserError(f"the download of {shown} does not end: more than {limit:,} bytes received", remedy=remedy)
    if size is not None and received != size:
        arrived = f"{received:,}" if received < size else "more"
        why = f"{copy.name} has {size:,} bytes, and {arrived} arrived"
        raise UserError(f"{shown} has changed or was cut off", why, "repeat the command")


def _iter_chunks(url: str, system: Any, name: str) -> Iterator[bytes]:
    with _translate_errors(url):
        stream = system.open(name, "rb", block_size=CHUNK_BYTES)
    with stream:
        yield from _iter_translating_errors(url, iter(partial(stream.read, CHUNK_BYTES), b""))


def _iter_translating_errors(url: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    while True:
        with _translate_errors(url):
            chunk = next(chunks, b"")
        if not chunk:
            return
        yield chunk


def check_writable(url: str) -> None:
    """Check that ``upload`` can write to a URL.

    Raises:
        UserError: The library for this kind of URL is not installed, or the scheme of the URL is http or https.
    """
    shown = redact_url(url)
    if _is_web_address(url):
        raise UserError(
            f"{shown} cannot be written", "addresses on the web are read-only", "give a file, or a URL such as s3://…"
        )
    extras.require("remote", shown)
    import fsspec

    with _translate_errors(url, "written"):
        fsspec.core.url_to_fs(url)


def upload(path: Path, url: str) -> None:
    """Copy a file to a URL.

    Raises:
        UserError: The file cannot be written there.
    """
    import fsspec

    with _translate_errors(url, "written"):
        system, name = fsspec.core.url_to_fs(url)
        if urlsplit(url).scheme not in OBJECT_STORES:
            system.makedirs(str(PurePosixPath(name).parent), exist_ok=True)
        system.put_file(str(path), name)


def _install_command(message: str) -> str:
    """Return the command that installs the library named in an error of fsspec, such as "Install s3fs to access S3"."""
    if not (named := re.search(r"\binstall ([a-z][a-z0-9_-]*) ", message, re.IGNORECASE)):
        return "install that library"
    # With the pins of a clone, uv selects a version of s3fs from 2019, which cannot be imported.
    in_clone = f"uv pip install --no-config {named[1]}"
    return in_clone if invocation.uv_prefix() else f"pip install {named[1]}; in a clone of the repository: {in_clone}"


@contextmanager
def _translate_errors(url: str, action: str = "read") -> Iterator[None]:
    """Convert any error of the download libraries to ``UserError``. The message contains no secrets of the URL."""
    shown = redact_url(url)
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        # The cause says whether the library is missing, or cannot be imported.
        raise UserError(
            f"{shown} cannot be {action}", str(error.__cause__ or error), _install_command(str(error))
        ) from error
    except Exception as error:  # Each library has its own exceptions.
        if isinstance(error, FileNotFoundError) and action == "read":
            raise UserError(f"{shown} does not exist", remedy="check the spelling of the URL") from error
        why = redact_url(f"{type(error).__name__}: {error}".replace(url, shown))[:300]
        raise UserError(f"{shown} cannot be {action}", why, "check the URL, the network and your credentials") from None
