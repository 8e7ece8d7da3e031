"""Copies of sources that are named by a URL, such as ``s3://bucket/reviews/``, made through fsspec."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from crepe_dist.errors import UserError
from crepe_dist.invocation import extra
from crepe_dist.preparing.preparation import Progress

URL = re.compile(r"[a-z][a-z0-9+.-]*://.")
CHUNK = 1 << 22  # bytes read at once


def is_url(name: str | None) -> bool:
    """Tell whether a source is named by a URL rather than a path."""
    return name is not None and URL.match(name) is not None


def without_secrets(text: str) -> str:
    """Remove user names, passwords and queries, which may hold a signature, from the URLs in a text."""
    text = re.sub(r"(://)[^/\s'\"]*@", r"\1", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)


@contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """Provide a temporary folder for copies on the disk of ``out``; ``preparation`` removes one that was left."""
    folder = out.absolute().with_name(f".{out.name}.copies-{os.getpid()}")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def copy_in_steps(url: str, folder: Path) -> Generator[Progress, None, Path]:
    """Copy a file, or a folder with all that is in it, below ``folder``.

    fsspec finds the credentials, as its documentation says: in the environment, and in its and the service's own files.

    Yields:
        The progress, in bytes.

    Returns:
        Path of the copy.

    Raises:
        UserError: The library for this kind of URL is not installed, or the source cannot be read.
    """
    shown = without_secrets(url)
    try:
        import fsspec
    except ImportError as error:
        raise UserError(
            f"{shown} cannot be read", "URLs are read with the library fsspec", extra("remote", "'fsspec[http]'")
        ) from error
    with _explained(url):
        system, path = fsspec.core.url_to_fs(url)
        # The name of a web page may come with a query. Pages that link to others are no folders.
        on_the_web = urlsplit(url).scheme in ("http", "https")
        root = PurePosixPath(urlsplit(path).path if on_the_web else path)
        if not on_the_web and system.isdir(path):
            sizes = {name: about.get("size") for name, about in system.find(path, detail=True).items()}
            names = {name: PurePosixPath(name).relative_to(root) for name in sizes}
        else:
            sizes, names = {path: system.info(path).get("size")}, {path: PurePosixPath()}
    if any(".." in name.parts for name in (root, *names.values())):
        raise UserError(f"{shown} cannot be copied", "a name in it has the part ..", "rename that file")
    target = folder / re.sub(r"\W+", "-", urlsplit(url).scheme) / str(root).strip("/")
    done, total = 0, sum(size or 0 for size in sizes.values())
    for name, size in sizes.items():
        copy = target / names[name]
        copy.parent.mkdir(parents=True, exist_ok=True)
        with copy.open("wb") as stream:
            for chunk in _chunks(url, system, name):
                stream.write(chunk)
                done += len(chunk)
                yield Progress("copying", done, total)
        if size is not None and copy.stat().st_size != size:
            raise UserError(
                f"{shown} has changed or was cut off",
                f"{PurePosixPath(name).name} has {size:,} bytes, and {copy.stat().st_size:,} arrived",
                "run the command again",
            )
    return target


def _chunks(url: str, system: Any, name: str) -> Iterator[bytes]:
    with _explained(url):
        stream = system.open(name, "rb", block_size=CHUNK)
    with stream:
        while True:
            with _explained(url):
                chunk = stream.read(CHUNK)
            if not chunk:
                return
            yield chunk


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn any error of fsspec's many libraries into one for the user, without the secrets of the URL."""
    shown = without_secrets(url)
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{shown} does not exist", remedy="check the spelling of the URL") from error
    except ImportError as error:
        raise UserError(f"{shown} cannot be read", str(error), "install that library") from error
    except Exception as error:  # every library has its own
        why = without_secrets(f"{type(error).__name__}: {error}".replace(url, shown))[:300]
        raise UserError(f"{shown} cannot be read", why, "check the URL, the network and your credentials") from None
