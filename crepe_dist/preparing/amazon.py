"""The notebook's data: seven categories of the Amazon 5-core reviews (He & McAuley, WWW 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from crepe_dist.preparing.download import download
from crepe_dist.preparing.file_download import Progress

URL = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
CATEGORIES = (
    "Home_and_Kitchen", "Books", "CDs_and_Vinyl", "Movies_and_TV", "Cell_Phones_and_Accessories",
    "Sports_and_Outdoors", "Clothing_Shoes_and_Jewelry",
)  # fmt: skip
FILES = tuple(f"reviews_{category}_5.json.gz" for category in CATEGORIES)
MAX_PER_CLASS = 250_000
BATCH_SIZE = 128  # the notebook's; its number of training rows is a multiple of it
FEATURE_LEN = 1014


def fetch(url: str, folder: Path) -> Iterator[Progress]:
    """Download the files into ``folder``; see ``download``."""
    yield from download(url, FILES, folder)
