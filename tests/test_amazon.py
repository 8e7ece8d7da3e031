"""The notebook's seven Amazon categories, from a local server to a prepared folder."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from crepe_dist.data.dataset import open_dataset, verify
from crepe_dist.preparing.amazon import CATEGORIES, FILES
from tests.conftest import command, run
from tests.test_download import Answer, Server, serve

server = pytest.fixture(serve, name="server")


def reviews(category: str, rows: int) -> bytes:
    records = [{"summary": f"{category} {n}", "reviewText": f"I have {n} of them, it's good"} for n in range(rows)]
    # Of old, these files held Python literals.
    lines = [repr(record) if n % 2 else json.dumps(record) for n, record in enumerate(records)]
    return gzip.compress("\n".join(lines).encode())


def test_prepare_amazon7(tmp_path, server: Server):
    for number, (category, file) in enumerate(zip(CATEGORIES, FILES)):
        content = reviews(category, 60 + number)
        dropped = [Answer(content, cut=100)] if number == 3 else []
        server.answers(*dropped, Answer(content), name=file)
    flags = ("amazon7", "--url", server.url, "--downloads", "files", "--max-per-class", 50)
    run(command("prepare", *flags), tmp_path)
    assert next(requested for requested in server.ranges() if requested) == "bytes=100-"
    dataset = open_dataset(tmp_path / "data" / "amazon7")
    verify(dataset)
    assert dataset.classes == sorted(CATEGORIES)
    assert {name: len(part) for name, part in dataset.splits.items()} == {"train": 256, "test": 94}
    labels = np.concatenate([part.labels for part in dataset.splits.values()])
    assert np.bincount(labels).tolist() == [50] * 7
    text = dataset.splits["test"].text(0)
    assert text is not None
    assert " | I have" in text
    assert dataset.manifest["split"]["align"] == 128
    assert dataset.encoding.feature_len == 1014
    requested = len(server.requested)
    run(command("prepare", *flags, "--overwrite"), tmp_path)
    assert len(server.requested) == requested  # the files are there, and are what was recorded
    (tmp_path / "files" / FILES[0]).write_bytes(b"altered")
    printed = run(command("prepare", *flags, "--overwrite"), tmp_path, code=1)
    assert "was altered since it was downloaded" in printed
    assert open_dataset(tmp_path / "data" / "amazon7").fingerprint == dataset.fingerprint
