"""Quarantine: every invalid row is reported with its file, line and reason, and too many invalid rows are an error."""

import gzip
import json

import pytest

from crepe_dist.data.dataset import QUARANTINE
from crepe_dist.errors import UserError
from crepe_dist.preparing.preparation import prepare
from crepe_dist.preparing.sources import find_sources
from crepe_dist.preparing.spec import PreparationSpec
from tests.preparing.test_preparation import ENCODING, prepared

FLAWS = {
    3: ("a,b,c", "wrong columns: 3 instead of 2"),
    50: ("a", "wrong columns: 1 instead of 2"),
    77: (",no label here", "no label"),
    78: ("b,caf\udce9", "not UTF-8"),
    120: ("a,   ", "empty text"),
    200: ("b," + "long" * 300_000, "longer than 1,048,576 bytes"),
    300: ('a,"open ""quote" here', "not CSV: ',' expected after '\"'"),
}


def test_every_flaw_planted_is_reported_to_the_row(tmp_path):
    lines = [f"{'ab'[n % 2]},fine {n}" for n in range(1, 1001)]
    for line, (text, _) in FLAWS.items():
        lines[line - 1] = text
    train = "\n".join(lines).encode("utf-8", "surrogateescape")
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(train) + gzip.compress(b"\nb,the last one\na,cut off")[:-9])
    (tmp_path / "test.csv").write_text("a,one\nq,unknown\nb,two\n")
    summary = prepare(find_sources([str(tmp_path)]), tmp_path / "out", PreparationSpec(ENCODING, max_bad=1))
    bad = [json.loads(line) for line in (tmp_path / "out" / QUARANTINE).read_text().splitlines()]
    expected = [("test.csv", 2, "unknown label: 'q' is not in the training rows")]
    expected += [("train.csv.gz", line, reason) for line, (_, reason) in FLAWS.items()]
    assert [(each["file"], each["line"], each["reason"]) for each in bad[:-1]] == expected
    assert (bad[-1]["file"], bad[-1]["reason"]) == ("train.csv.gz", "the gzip data are truncated")
    assert bad[-1]["line"] in (1001, 1002)
    assert bad[1]["excerpt"] == "a,b,c"
    good = 993 + (bad[-1]["line"] - 1001)
    assert summary["rows"] == {
        "read": good + 2 + 9, "bad": 9, "duplicates": 0, "kept": good + 2,
    }  # fmt: skip
    assert summary["quarantine"]["reasons"]["wrong columns"] == 2
    assert sum(summary["quarantine"]["reasons"].values()) == summary["quarantine"]["rows"] == 9
    assert sum(part["rows"] for part in summary["splits"].values()) == good + 2


def test_too_many_bad_rows_are_an_error_that_shows_and_keeps_them(tmp_path):
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, ["x,fine", "y,fine", "x"] * 10)
    assert "10 of 30 rows" in caught.value.what
    assert "rows.csv:3: wrong columns" in caught.value.why
    assert caught.value.why.count("rows.csv:") == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.quarantine", "rows.csv"]
    assert len((tmp_path / "out.quarantine").read_text().splitlines()) == 10
    with pytest.raises(UserError) as caught:  # rows without a label do not count, and are not what is shown
        prepared(tmp_path, [*[",without a label"] * 9, *["x,fine", "y,fine", "x"] * 10])
    assert "no label" not in caught.value.why
    assert "rows.csv:12: wrong columns" in caught.value.why
    prepared(tmp_path, ["x,fine", "y,fine", "x"] * 10, spec=PreparationSpec(ENCODING, max_bad=0.4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows.csv"]
