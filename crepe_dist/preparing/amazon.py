"""The notebook's data: seven categories of the Amazon 5-core reviews (He & McAuley, WWW 2016)."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from pathlib import Path

from crepe_dist.errors import UserError
from crepe_dist.files import read_json, write_json
from crepe_dist.preparing import remote
from crepe_dist.preparing.preparation import Progress

URL = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
CATEGORIES = (
    "Home_and_Kitchen", "Books", "CDs_and_Vinyl", "Movies_and_TV", "Cell_Phones_and_Accessories",
    "Sports_and_Outdoors", "Clothing_Shoes_and_Jewelry",
)  # fmt: skip
FILES = tuple(f"reviews_{category}_5.json.gz" for category in CATEGORIES)
MAX_PER_CLASS = 250_000
BATCH_SIZE = 128  # the notebook's; its number of training rows is a multiple of it
FEATURE_LEN = 1014
RECORDS = "downloads.json"  # size and SHA-256 of each file
GZIP = b"\x1f\x8b"


def fetch(url: str, folder: Path) -> Generator[Progress, None, None]:
    """Download the files that are not in ``folder`` yet, and compare all with the recorded checksums.

    A file without a record, which someone may have put there, is recorded as it is.

    Args:
        url: address of the folder of the files; see ``remote``.
        folder: folder to download to; created if missing.

    Raises:
        UserError: a file cannot be read or written, is not a gzip file, or differs from its record.
    """
    if not remote.is_url(url):
        raise UserError(f"--url {url!r} is not an address", remedy="write it with https:// or http://")
    folder.mkdir(parents=True, exist_ok=True)
    records = _read(folder / RECORDS)
    for name in FILES:
        path = folder / name
        if not path.exists():
            with remote.folder_beside(path) as copies:
                copy = yield from remote.copy_in_steps(f"{url.rstrip('/')}/{name}", copies, name)
                _check_kind(copy, url)
                copy.replace(path)
        record = yield from _describe(path)
        if name not in records:
            records[name] = record
            write_json(folder / RECORDS, records)
        elif record != {key: records[name][key] for key in record}:
            raise UserError(
                f"{path} is not the file that was recorded",
                f"its size or SHA-256 differs from {RECORDS}",
                f"delete the file to download it again, or its entry in {RECORDS} if you expect the change",
            )


def _read(path: Path) -> dict[str, dict[str, object]]:
    if not path.exists():
        return {}
    try:
        records: dict[str, dict[str, object]] = read_json(path)
        if not all({"bytes", "sha256"} <= record.keys() for record in records.values()):
            raise ValueError("every file needs bytes and sha256")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read", str(error), "delete it; the files in the folder are then accepted as they are"
        ) from error
    return records


def _check_kind(path: Path, url: str) -> None:
    with path.open("rb") as stream:
        head = stream.read(60)
    if not head.startswith(GZIP):
        raise UserError(
            f"{remote.without_secrets(url)} did not send a gzip file", f"it starts with {head!r}", "check --url"
        )


def _describe(path: Path) -> Generator[Progress, None, dict[str, object]]:
    size, received, digest = path.stat().st_size, 0, hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            received += len(block)
            yield Progress(f"checking {path.name}", received, size)
    return {"bytes": received, "sha256": digest.hexdigest()}
