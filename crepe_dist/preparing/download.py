"""Resumable, checksummed downloads of files into a folder.

``downloads.json``     size, SHA-256 and origin of each file
``<name>.part``        incomplete file
``<name>.part.json``   the server's headers for it, needed to resume
``.lock``              locked by the downloading process
"""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import requests

from crepe_dist.errors import UserError
from crepe_dist.files import read_json, write_json
from crepe_dist.preparing.file_download import CHECK_ADDRESS, PORTS, RECORDS, FileDownload, Progress, Records, blocks

NAME = re.compile(r"\w[\w.+-]*")


def download(
    base_url: str, names: Sequence[str], folder: Path, *, attempts: int = 8, pause: float = 1.0, timeout: float = 60
) -> Iterator[Progress]:
    """Download files into ``folder`` while the iterator is consumed; resume incomplete files.

    Existing files are compared with their recorded checksums. An existing file without a record is accepted as it is
    and recorded.

    Args:
        base_url: http or https address of the folder on the server; the files are ``base_url/name``.
        names: file names.
        folder: folder to download to; created if missing.
        attempts: number of consecutive attempts that may fail without receiving anything new.
        pause: delay before the second attempt, in seconds; doubled for each further attempt, up to 30.
        timeout: maximum time without a response or a byte, in seconds.

    Raises:
        UserError: The address or a name is invalid; the server is unreachable, lacks a file, sends something other than
            gzip for ``.gz`` or redirects to another place; a file differs from its record; the folder cannot be
            written; or another process is downloading into it.
    """
    _check_address(base_url)
    for name in names:
        if not NAME.fullmatch(name) or name == RECORDS or name.endswith((".part", ".part.json")):
            raise UserError(
                f"{name!r} cannot be downloaded",
                "it is not a plain file name, or it is reserved",
                "use another name",
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder), requests.Session() as session:
            for name in names:
                records = _read_records(folder)
                if (folder / name).exists():
                    yield from _check(folder / name, records)
                    continue
                with (folder / f"{name}.part").open("a+b") as file:
                    transfer = FileDownload(session, f"{base_url.rstrip('/')}/{name}", folder / name, file, timeout)
                    yield from transfer.run(records, attempts, pause)
    except OSError as error:
        raise UserError(
            f"the download to {folder} stopped",
            str(error),
            "solve that (is the disk full?) and run the same command again to resume",
        ) from error


def _check_address(base_url: str) -> None:
    try:
        parts = urlsplit(base_url)
        good = parts.scheme in PORTS and parts.hostname and parts.port != 0 and parts.username is None
    except ValueError:
        good = False
    if not good or "?" in base_url or "#" in base_url:
        raise UserError(
            f"{base_url!r} is not an address to download from",
            "it must have http:// or https://, a host and a folder, but no user name, ? or #",
            CHECK_ADDRESS,
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is downloading to {folder}", remedy="wait until it ends") from error
        yield


def _read_records(folder: Path) -> Records:
    path = folder / RECORDS
    if not path.exists():
        return {}
    try:
        records: Records = read_json(path)
        if not all({"bytes", "sha256"} <= about.keys() for about in records.values()):
            raise ValueError("every file needs bytes and sha256")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read",
            f"{type(error).__name__}: {error}",
            "delete it; the files in the folder are then accepted as they are",
        ) from error
    return records


def _check(path: Path, records: Records) -> Iterator[Progress]:
    size, received, digest = path.stat().st_size, 0, hashlib.sha256()
    for block in blocks(path):
        digest.update(block)
        received += len(block)
        yield Progress(path.name, received, size)
    found = {"bytes": received, "sha256": digest.hexdigest()}
    if path.name not in records:
        write_json(path.parent / RECORDS, {**records, path.name: found})
    elif found != {key: records[path.name][key] for key in found}:
        raise UserError(
            f"{path} was altered since it was downloaded",
            f"its size or SHA-256 differs from {RECORDS}",
            "delete the file to download it again",
        )
