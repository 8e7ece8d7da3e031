"""The notebook's seven Amazon categories, from a local server to a prepared folder."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from crepe_dist.data.dataset import open_dataset
from crepe_dist.data.verification import verify
from crepe_dist.errors import UserError
from crepe_dist.preparing import amazon
from crepe_dist.preparing.amazon import CATEGORIES, FILES, fetch
from crepe_dist.preparing.progress import ignored
from tests.conftest import command, run
from tests.preparing.test_remote import website  # noqa: F401 (a fixture)


def reviews(category: str, rows: int) -> bytes:
    records = [{"summary": f"{category} {n}", "reviewText": f"I have {n} of them, it's good"} for n in range(rows)]
    # Of old, these files held Python literals.
    lines = [repr(record) if n % 2 else json.dumps(record) for n, record in enumerate(records)]
    return gzip.compress("\n".join(lines).encode())


@pytest.fixture
def site(website, tmp_path):  # noqa: F811
    """The address of a server that has the seven files, in the folder ``site``."""
    for number, (category, name) in enumerate(zip(CATEGORIES, FILES)):
        (tmp_path / "site" / name).write_bytes(reviews(category, 60 + number))
    return website


def test_prepare_amazon7(site, tmp_path):
    flags = ("amazon7", "--url", site, "--downloads", "files", "--max-per-class", 50)
    run(command("prepare", *flags), tmp_path)
    dataset = open_dataset(tmp_path / "data" / "amazon7")
    verify(dataset)
    assert dataset.classes == sorted(CATEGORIES)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 280, "test": 70}
    labels = np.concatenate([split.labels for split in dataset.splits.values()])
    assert np.bincount(labels).tolist() == [50] * 7
    text = dataset.splits["test"].text(0)
    assert text is not None
    assert " | I have" in text
    assert dataset.encoding.feature_len == 1014
    for path in (tmp_path / "site").iterdir():
        path.unlink()
    run(command("prepare", *flags, "--overwrite"), tmp_path)  # the files are there
    assert open_dataset(tmp_path / "data" / "amazon7").fingerprint == dataset.fingerprint


@pytest.fixture
def one(site, tmp_path, monkeypatch):
    """The address of a server, for downloads of one file."""
    monkeypatch.setattr(amazon, "FILES", FILES[:1])
    return site


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_page_in_place_of_the_file_is_refused_and_removed(one, tmp_path):
    (tmp_path / "site" / FILES[0]).write_bytes(b"<html>\x1b[2J")
    with pytest.raises(UserError, match="did not send a gzip file") as caught:
        fetch(one, tmp_path / "files", ignored)
    assert r"\x1b" in caught.value.why
    assert names(tmp_path / "files") == []


def test_an_interrupted_download_leaves_nothing(one, tmp_path):
    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(one, tmp_path / "files", interrupt)
    assert names(tmp_path / "files") == []


@pytest.mark.parametrize(("url", "why"), [("host/files", "not an address"), ("http://127.0.0.1:1", "refused")])
def test_addresses_that_lead_nowhere(one, tmp_path, monkeypatch, url, why):
    monkeypatch.setattr("crepe_dist.preparing.web.RETRIES", 0)
    with pytest.raises(UserError, match=why):
        fetch(url, tmp_path, ignored)
