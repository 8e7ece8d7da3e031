"""Merging of labels by a map, and proposals for one."""

from __future__ import annotations

import json

import pytest

import crepe_dist
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.preparing.label_map import read_map, variants, write_map

LABELS = ["billing", "Billing ", "biling", "log in", "login", "plan a", "plan b", "sport"]
TEXTS = [f"text number {row}" for row in range(240)]


def labels(rows=240):
    """Mostly the first and the fourth, the others rarely."""
    return [LABELS[row % 8] if row < 48 else LABELS[row % 2 * 3] for row in range(rows)]


@pytest.mark.parametrize(
    ("rows", "proposed"),
    [
        ({"a b": 5, "A  B": 4, "a_b": 5, "c": 1}, {"A  B": "a b", "a_b": "a b"}),
        ({"refund": 90, "re-fund": 2, "refunds": 3, "rfeund": 1, "refumd": 1, "refnud!": 1}, {
            "re-fund": "refund", "refunds": "refund", "rfeund": "refund", "refumd": "refund"}),
        ({"hotel": 50, "motel": 40}, {}),  # both are frequent
        ({"plan a": 100, "plan b": 2, "cats": 100, "bats": 1, "level 1": 100, "level 2": 1}, {}),
        ({"straße": 9, "STRASSE": 1, "é": 1}, {"STRASSE": "straße"}),
    ],
)  # fmt: skip
def test_what_looks_like_a_variant(rows, proposed):
    assert variants(rows) == proposed


def test_a_proposal_can_be_applied(tmp_path):
    table = {"text": TEXTS, "label": labels()}
    summary = crepe_dist.prepare(table, tmp_path / "out")
    proposed = crepe_dist.prepare(table, tmp_path / "out", propose_labels=tmp_path / "map.csv")  # the folder exists
    want = {"Billing": "billing", "biling": "billing", "login": "log in"}
    assert proposed == {"labels": 8, "variants": want}
    assert dict(read_map(tmp_path / "map.csv")) == want
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.csv", "out"]
    (warning,) = (each for each in summary["warnings"] if "look like variants" in each["what"])
    assert "--merge-labels map.csv" in warning["do"]
    assert "'biling' like 'billing'" in warning["why"]
    (tmp_path / "map.csv").write_text("\ufefffrom,to\r\nbiling,billing\r\n Billing , billing\r\nplan a,plan\nnone,x\n")
    summary = crepe_dist.prepare(table, tmp_path / "out", merge_labels=tmp_path / "map.csv", overwrite=True)
    assert open_dataset(tmp_path / "out").classes == ["billing", "log in", "login", "plan", "plan b", "sport"]
    (warning,) = (each for each in summary["warnings"] if "did not occur" in each["what"])
    assert warning["why"] == "'none'"
    several = {"text": TEXTS[:40], "label": [["billing", "biling"], ["plan a", "sport"]] * 20}
    crepe_dist.prepare(several, tmp_path / "many", labels="several", merge_labels=tmp_path / "map.csv", test=0.1)
    assert open_dataset(tmp_path / "many").classes == ["billing", "plan", "sport"]


@pytest.mark.parametrize(
    ("name", "said"), [("train.csv", "is a file that is read"), ("none/map.csv", "there is no such folder")]
)
def test_a_proposal_replaces_no_file_that_is_read(tmp_path, name, said):
    (tmp_path / "train.csv").write_text(content := "".join(f"{row % 3},{text}\n" for row, text in enumerate(TEXTS)))
    with pytest.raises(UserError) as caught:
        crepe_dist.prepare(tmp_path / "train.csv", tmp_path / "out", propose_labels=tmp_path / name)
    assert said in str(caught.value)
    assert (tmp_path / "train.csv").read_text() == content


def test_labels_that_a_spreadsheet_would_compute(tmp_path):
    write_map(tmp_path / "map.csv", {"=Refund": "=refund", "a,b": "a b"})
    assert (tmp_path / "map.csv").read_text() == "from,to\n'=Refund,'=refund\n\"a,b\",a b\n"
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
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["unused"] == ["four"]


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
