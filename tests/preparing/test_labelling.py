"""Merging of labels by a map."""

from __future__ import annotations

import pytest

import crepe_dist
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.preparing.labelling import read_map

LABELS = ["billing", "Billing ", "biling", "log in", "login", "plan a", "plan b", "sport"]
TEXTS = [f"text number {row}" for row in range(240)]


def labels(rows=240):
    """Mostly the first and the fourth, the others rarely."""
    return [LABELS[row % 8] if row < 48 else LABELS[row % 2 * 3] for row in range(rows)]


def test_labels_are_merged_and_renamed(tmp_path):
    table = {"text": TEXTS, "label": labels()}
    (tmp_path / "map.csv").write_text("\ufefffrom,to\r\nbiling,billing\r\n Billing , billing\r\nplan a,plan\nnone,x\n")
    crepe_dist.prepare(table, tmp_path / "out", merge_labels=tmp_path / "map.csv")
    assert open_dataset(tmp_path / "out").classes == ["billing", "log in", "login", "plan", "plan b", "sport"]
    several = {"text": TEXTS[:40], "label": [["billing", "biling"], ["plan a", "sport"]] * 20}
    crepe_dist.prepare(several, tmp_path / "many", labels="several", merge_labels=tmp_path / "map.csv", test=0.1)
    assert open_dataset(tmp_path / "many").classes == ["billing", "plan", "sport"]


def test_labels_that_a_spreadsheet_would_compute(tmp_path):
    (tmp_path / "map.csv").write_text("from,to\n'=Refund,'=refund\n\"a,b\",a b\n")
    assert read_map(tmp_path / "map.csv") == (("=Refund", "=refund"), ("a,b", "a b"))


def test_numbered_classes_are_merged_too(tmp_path, monkeypatch):
    rows = "".join(f"{row % 3 + 1},{text}\n" for row, text in enumerate(TEXTS))
    (tmp_path / "train.csv").write_text(rows)
    (tmp_path / "classes.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "map.csv").write_text("two,one\nfour,one\n")
    monkeypatch.chdir(tmp_path)
    crepe_dist.prepare("train.csv", "out", merge_labels="map.csv")
    data = open_dataset(tmp_path / "out")
    assert data.classes == ["one", "three"]
    assert data.class_counts().sum() + data.class_counts("test").sum() == 240


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"a,b\na,c\n", "'a' becomes both 'b' and 'c'"),
        (b"a,b\nb,c\n", "becomes 'c' itself"),
        (b"a\n", "'a' is not a label and its new name"),
        (b"a,\n", "'a,' is not a label"),
        (b'"a,b\n', "unexpected end"),
        (b"\xff,b\n", "utf-8"),
        (None, "No such file"),
    ],
)
def test_maps_that_cannot_be_used(tmp_path, content, why):
    if content is not None:
        (tmp_path / "map.csv").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_map(tmp_path / "map.csv")
    assert why in caught.value.why
    assert "from,to" in str(caught.value) or "last name" in caught.value.remedy
