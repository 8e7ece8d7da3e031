"""prepare --rename: several spellings of a class are merged, for all kinds of labels."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

import crepe_dist
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.preparation import prepare
from crepe_dist.preparing.sources import ReadOptions, find_scoring_sources
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import SplitOptions
from tests.conftest import write_rows

LABELS = ["ACCOUNT", "account", "Billling", "Billing", "a=b"]


def prepared(folder, given, rename, test=0.2, **options):
    """Return the report of prepared rows, and the number of rows of each class in each split."""
    table = {"text": [f"text number {number}" for number in range(len(given))], "label": given}
    report = crepe_dist.prepare(table, folder / "data", test=test, rename=rename, overwrite=True, **options)
    data = open_dataset(folder / "data")
    return report, {
        name: Counter(data.classes[label] for label in split.labels.tolist()) for name, split in data.splits.items()
    }


def test_classes_are_merged_in_all_splits(tmp_path, printed_by):
    write_rows(tmp_path / "new.csv", [("label", "text"), *((label, f"new {label}") for label in LABELS)])
    (tmp_path / "names.csv").write_text("\ufeffold;new\r\n a=b ;A and B\r\nBillling;Billing\r\n", "utf-8")
    rename: Any = ["ACCOUNT=account", str(tmp_path / "names.csv")]
    report, counts = prepared(tmp_path, LABELS * 20, rename, test=tmp_path / "new.csv", validation=0.1)
    assert report["classes"] == ["A and B", "Billing", "account"]
    assert sum(counts.values(), Counter()) == {"A and B": 21, "Billing": 42, "account": 42}
    assert counts["test"] == {"A and B": 1, "Billing": 2, "account": 2}
    assert report["renamed"] == [
        {"old": "ACCOUNT", "new": "account", "rows": 21},
        {"old": "a=b", "new": "A and B", "rows": 21},
        {"old": "Billling", "new": "Billing", "rows": 21},
    ]
    printed = printed_by("prepare", str(tmp_path / "new.csv"), "--rename=ACCOUNT=account", f"--out={tmp_path / 'more'}")
    assert "ACCOUNT renamed to account: 1 row" in " ".join(printed.split())
    # A file that is scored later may have the old names.
    reading = ReadOptions.from_dict(json.loads((tmp_path / "data" / "dataset.json").read_text())["reading"])
    reading = ReadOptions(columns=ColumnSpec(label="label", texts=("text",)), renames=reading.renames)
    sources = find_scoring_sources(str(tmp_path / "new.csv"), reading)
    encoding = open_dataset(tmp_path / "data").encoder
    spec = PreparationSpec(encoding, SplitOptions(0.0), reading, classes=tuple(report["classes"]))
    prepare(sources, tmp_path / "scored", spec)
    assert len(open_dataset(tmp_path / "scored", trains=False).splits["test"]) == 5


def test_names_are_replaced_at_once(tmp_path):
    _, counts = prepared(tmp_path, ["a"] * 30 + ["b"] * 10, {"a": "b", "b": "a"})
    assert sum(counts.values(), Counter()) == {"b": 30, "a": 10}


@pytest.mark.parametrize(
    ("labels", "options", "expected"),
    [
        ([["x", "X"], ["y"], ["X"]], {"labels": "multilabel"}, [{"x": 1.0}, {"y": 1.0}, {"x": 1.0}]),
        ([{"x": 0.25, "X": 0.25, "y": 0.5}, {"y": 1}], {"labels": "soft"}, [{"x": 0.5, "y": 0.5}, {"y": 1.0}]),
    ],
)
def test_labels_of_several_classes(labels, options, expected, tmp_path):
    report, _ = prepared(tmp_path, labels * 20, {"X": "x"}, **options)
    data = open_dataset(tmp_path / "data")
    assert report["classes"] == ["x", "y"]
    found = {
        json.dumps({name: round(float(share), 2) for name, share in zip(data.classes, row) if share})
        for split in data.splits.values()
        for row in split.targets.label_probs(np.arange(len(split)))
    }
    assert found == {json.dumps(each) for each in expected}


@pytest.mark.parametrize(
    ("rename", "what", "remedy"),
    [
        ({"Accounts": "account"}, "no row has the label 'Accounts'", "did you mean 'account'"),
        (["account=x", "account=y"], "two names", "keep one"),
        ("account=", "cannot give 'account' the name ''", "old=new"),
        ("names.csv", "names.csv cannot be used", "columns old and new"),
        (5, "rename is 5", "old=new"),
    ],
)
def test_wrong_names(rename, what, remedy, tmp_path):
    with pytest.raises(UserError, match=what) as caught:
        prepared(tmp_path, LABELS * 20, rename)
    assert remedy in caught.value.remedy


def test_names_of_a_list_of_classes(tmp_path):
    write_rows(tmp_path / "train.csv", [(str(1 + number % 3), f"text {number}") for number in range(60)])
    (tmp_path / "classes.txt").write_text("Billling\nBilling\nother\n")
    report = crepe_dist.prepare(tmp_path / "train.csv", tmp_path / "data", rename={"Billling": "Billing"})
    assert report["classes"] == ["Billing", "other"]
    assert sum(split["classes"][0] for split in report["splits"].values()) == 40
