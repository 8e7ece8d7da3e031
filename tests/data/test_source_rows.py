"""Source of each row of a data set: file, line, id, and a hash of the text."""

from hashlib import blake2b

import numpy as np
import pandas as pd
import pytest

import crepe_dist
from crepe_dist.data.dataset import open_dataset
from crepe_dist.data.verification import verify
from crepe_dist.errors import UserError
from tests.conftest import write_frame

ROWS = [(f"T-{number:03}", "ab"[number % 2], f"text {number} ü") for number in range(40)]
NAMES = ("ticket", "label", "text")


def make(folder, form):
    """Write the rows in one format; return the source and the line of each row."""
    frame = pd.DataFrame(ROWS, columns=NAMES)
    first = 2 if form in ("csv", "tsv") else 1
    lines = range(first, first + len(ROWS))
    return frame if form == "frame" else write_frame(frame, folder / f"rows.{form}"), lines


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet", "frame"])
def test_every_row_of_every_format(tmp_path, form):
    source, lines = make(tmp_path, form)
    crepe_dist.prepare(source, tmp_path / "out", id="ticket", validation=0.2, feature_len=40)
    data = open_dataset(tmp_path / "out")
    verify(data)
    assert data.manifest["id"] == "ticket"
    line_of = dict(zip((id_ for id_, *_ in ROWS), lines))
    text_of = {id_: text for id_, _, text in ROWS}
    seen = []
    for name, part in data.splits.items():
        for row in range(len(part)):
            origin = data.origin(name, row)
            text = text_of[origin.id]
            assert part.text(row) in (None, text)
            assert (part.char_ids(np.array([row])) == data.encoder.encode([text])).all()
            assert origin.line == line_of[origin.id]
            assert origin.file == ("table" if form == "frame" else f"rows.{form}")
            assert origin.hash == f"x{int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), 'little'):016x}"
            assert str(origin) == f"{origin.file}:{origin.line} ({origin.id})"
            seen.append(origin.id)
    assert sorted(seen) == sorted(text_of)


def test_ids_that_cannot_be(tmp_path):
    source, _ = make(tmp_path, "csv")
    with pytest.raises(UserError, match="no column 'tickt'") as caught:
        crepe_dist.prepare(source, tmp_path / "out", id="tickt")
    assert "did you mean 'ticket'" in caught.value.remedy


def test_an_origin_that_cannot_be_is_an_altered_file(tmp_path):
    source, _ = make(tmp_path, "csv")
    crepe_dist.prepare(source, tmp_path / "out")
    data = open_dataset(tmp_path / "out")
    path = tmp_path / "out" / "test.origins.npy"
    np.save(path, np.full((len(data.splits["test"]), 3), 7, np.uint64))
    with pytest.raises(UserError, match=r"test\.origins\.npy was altered"):
        open_dataset(tmp_path / "out").origin("test", 0)
    np.save(path, np.zeros((len(data.splits["test"]), 3), np.int64))
    with pytest.raises(UserError, match="is damaged"):
        open_dataset(tmp_path / "out")
