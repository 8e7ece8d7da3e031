"""prepare --corrections: labels of a list that inspect wrote and a person edited."""

from __future__ import annotations

import json

import pytest

import crepe_dist
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.files import write_csv
from tests.conftest import write_rows
from tests.inspecting.test_inspect import labels_by_line

NAMES = ("Billing", "Privacy", "=Refund")
TEXTS = [f"ticket {number}\nabout {NAMES[number % 3]}" for number in range(60)]


def write(path, texts=TEXTS, labels=None):
    labels = labels or [NAMES[number % 3] for number in range(len(texts))]
    return write_rows(path, [("label", "text"), *zip(labels, texts)])


def listed(data, lines, suggested):
    """Rows of a list, as inspect writes them, for the rows of these lines."""
    return [
        {
            **origin.cells(), "hash": origin.hash, "label": data.classes[label], "suggested": suggested
        }
        for name, part in data.splits.items()
        for row, label in enumerate(part.labels)
        if (origin := data.origin(name, row)).line in lines
    ]  # fmt: skip


@pytest.fixture
def data(tmp_path):
    write(tmp_path / "rows.csv")
    crepe_dist.prepare(tmp_path / "rows.csv", tmp_path / "before")
    return open_dataset(tmp_path / "before")


def prepare(folder, **options):
    report = crepe_dist.prepare(
        folder / "rows.csv", folder / "after", corrections=folder / "list.csv", overwrite=True, **options
    )
    return report["corrections"], labels_by_line(open_dataset(folder / "after"))


def outcomes(about):
    return {name: about[name] for name in ("applied", "kept", "already", "stale") if about[name]}


def test_a_list_that_a_spreadsheet_saved_is_applied(data, tmp_path):
    rows = [*listed(data, {2, 4}, "=Refund"), *listed(data, {6}, ""), *listed(data, {8}, "Billing")]
    write_csv(tmp_path / "list.csv", rows)
    spreadsheet = "\ufeff" + (tmp_path / "list.csv").read_text().replace(",", ";")
    (tmp_path / "list.csv").write_text(spreadsheet, "utf-8")
    for options in ({}, {"max_per_class": 19}, {"dedupe": "near", "stratified": True, "processes": 2}):
        about, after = prepare(tmp_path, test=0.3, **options)
        assert outcomes(about) == {"applied": 2, "kept": 2}
        before = {**labels_by_line(data), 2: "=Refund", 4: "=Refund"}
        assert after == {line: before[line] for line in after}
        assert len(after) == (len(before) if "max_per_class" not in options else 3 * 19)


def test_a_source_that_was_changed_is_noticed(data, tmp_path):
    write_csv(tmp_path / "list.csv", listed(data, {2, 4, 6, 8}, "=Refund"))
    texts, labels = list(TEXTS), [NAMES[number % 3] for number in range(60)]
    texts[1] = texts[1].upper()  # line 4
    labels[3] = "=Refund"  # line 8: corrected by hand
    write(tmp_path / "rows.csv", texts, labels)
    about, after = prepare(tmp_path)
    assert outcomes(about) == {"applied": 1, "already": 1, "stale": 1, "kept": 1}
    assert about["first_stale"] == "rows.csv:4"
    assert after[2] == after[8] == "=Refund"
    assert after[4] == "Privacy"
    report = json.loads((tmp_path / "after" / "report.json").read_text())
    assert "1 correction of " in report["warnings"][0]["what"]
    write(tmp_path / "rows.csv", texts[2:])
    with pytest.raises(UserError, match="none of the 3 corrections") as caught:
        prepare(tmp_path)
    assert "whose text or label differs there; the sources are rows.csv" in caught.value.why


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {**row, "suggested": "Refnud"}, "label 'Refnud', which no row of the sources has"),
        (lambda row: {name: row[name] for name in row if name != "hash"}, "has no column 'hash'"),
        (lambda row: {**row, "line": "two"}, "names no line"),
    ],
)
def test_a_list_that_cannot_be(data, tmp_path, change, message):
    write_csv(tmp_path / "list.csv", [change(row) for row in listed(data, {2}, "=Refund")])
    with pytest.raises(UserError, match=message):
        prepare(tmp_path)


def test_a_list_that_contradicts_itself(data, tmp_path):
    write_csv(tmp_path / "list.csv", [*listed(data, {2}, "=Refund"), *listed(data, {2}, "Privacy")])
    with pytest.raises(UserError, match=r"list\.csv:3 corrects a row a second time"):
        prepare(tmp_path)
