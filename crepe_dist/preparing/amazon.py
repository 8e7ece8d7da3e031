"""The notebook's data: seven categories of the Amazon 5-core reviews (He & McAuley, WWW 2016)."""

from __future__ import annotations

from pathlib import Path

from crepe_dist.errors import UserError
from crepe_dist.preparing import remote
from crepe_dist.preparing.progress import Show

URL = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
CATEGORIES = (
    "Home_and_Kitchen", "Books", "CDs_and_Vinyl", "Movies_and_TV", "Cell_Phones_and_Accessories",
    "Sports_and_Outdoors", "Clothing_Shoes_and_Jewelry",
)  # fmt: skip
FILES = tuple(f"reviews_{category}_5.json.gz" for category in CATEGORIES)
MAX_PER_CLASS = 250_000
FEATURE_LEN = 1014
GZIP = b"\x1f\x8b"


def fetch(url: str, folder: Path, show: Show) -> None:
    """Download the files that are not in ``folder`` yet.

    Args:
        url: address of the folder of the files; see ``remote``.
        folder: folder to download to; created if missing.
        show: function that is called with the progress.

    Raises:
        UserError: a file cannot be read or written, or is not a gzip file.
    """
    if not remote.is_url(url):
        raise UserError(f"--url {url!r} is not an address", remedy="write it with https:// or http://")
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        path = folder / name
        if not path.exists():
            with remote.folder_beside(path) as copies:
                copy = remote.copy(f"{url.rstrip('/')}/{name}", copies, name, show)
                _check_kind(copy, url)
                copy.replace(path)


def _check_kind(path: Path, url: str) -> None:
    with path.open("rb") as stream:
        head = stream.read(60)
    if not head.startswith(GZIP):
        raise UserError(
            f"{remote.without_secrets(url)} did not send a gzip file", f"it starts with {head!r}", "check --url"
        )
