"""prepare --corrections: labels from a CSV file that inspect wrote and a person edited."""

import json

import numpy as np
import pytest

import crepe_dist
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.files.csv_cells import write_csv
from tests.conftest import write_rows
from tests.inspecting.test_inspect import labels_by_line

NAMES = ("Billing", "Privacy", "=Refund")
TEXTS = [f"ticket {number}\nabout {NAMES[number % 3]}" for number in range(60)]


def write(path, texts=TEXTS, labels=None):
    labels = labels or [NAMES[number % 3] for number in range(len(texts))]
    return write_rows(path, [("label", "text"), *zip(labels, texts)])


def listed(data, lines, suggested):
    """Return corrections as inspect writes them, for the rows at these lines."""
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
    options = {"corrections": folder / "list.csv", "test": 0.0, "overwrite": True, **options}
    report = crepe_dist.prepare(folder / "rows.csv", folder / "after", **options)
    return report["corrections"], labels_by_line(open_dataset(folder / "after"))


def outcomes(about):
    return {name: about[name] for name in ("applied", "kept", "already", "stale") if about[name]}


def test_a_list_that_a_spreadsheet_saved_is_applied(data, tmp_path):
    rows = [*listed(data, {2, 4}, "=Refund"), *listed(data, {6}, ""), *listed(data, {8}, "Billing")]
    write_csv(tmp_path / "list.csv", rows)
    spreadsheet = "\ufeff" + (tmp_path / "list.csv").read_text().replace(",", ";")
    (tmp_path / "list.csv").write_text(spreadsheet, "utf-8")
    for options in ({}, {"dedupe": "near"}):
        about, after = prepare(tmp_path, **options)
        assert outcomes(about) == {"applied": 2, "kept": 2}
        before = {**labels_by_line(data), 2: "=Refund", 4: "=Refund"}
        assert after == {line: before[line] for line in after}


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
    assert "which does not exist or has changed; the sources are rows.csv" in caught.value.why


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {**row, "suggested": "Refnud"}, "label 'Refnud', which no training row has"),
        (lambda row: {name: row[name] for name in row if name != "hash"}, "has no column 'hash'"),
        (lambda row: {**row, "line": "two"}, "has no line number"),
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


def test_only_training_labels_are_corrected_and_no_row_changes_its_split(tmp_path):
    write(tmp_path / "rows.csv")
    before = prepared(tmp_path)
    rows = listed(before, range(2, 62), "=Refund")
    rows = [row for row in rows if row["label"] == "Privacy"][::2]
    write_csv(tmp_path / "list.csv", rows)
    lines = {int(row["line"]) for row in rows}
    after = prepared(tmp_path, corrections=tmp_path / "list.csv")
    assert split_lines(after) == split_lines(before)
    changed = lines.intersection(split_lines(before)["train"])
    about = after.manifest["corrections"]
    assert 0 < about["applied"] == len(changed)
    assert 0 < about["held_out"] == len(rows) - len(changed)
    assert labels_by_line(after) == {**labels_by_line(before), **dict.fromkeys(changed, "=Refund")}


def prepared(folder, **options):
    crepe_dist.prepare(folder / "rows.csv", folder / "after", test=0.3, validation=0.2, overwrite=True, **options)
    return open_dataset(folder / "after")


def split_lines(data):
    """Return the lines of the rows in each split, in the order of the data set."""
    return {name: [data.origin(name, row).line for row in range(len(part))] for name, part in data.splits.items()}


@pytest.mark.parametrize("has_names", [False, True])
def test_a_class_without_training_rows_after_corrections_is_no_output(tmp_path, has_names):
    labels = [1 + NAMES.index(NAMES[number % 3]) for number in range(60)] if has_names else None
    write(tmp_path / "rows.csv", labels=labels)
    if has_names:
        (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    crepe_dist.prepare(tmp_path / "rows.csv", tmp_path / "before", test=0.3)
    data = open_dataset(tmp_path / "before")
    privacy = data.classes.index("Privacy")
    lines = {data.origin("train", row).line for row in np.flatnonzero(data.splits["train"].labels == privacy)}
    write_csv(tmp_path / "list.csv", listed(data, lines, "Billing"))
    about, _ = prepare(tmp_path, test=0.3, max_bad=0.2)
    assert outcomes(about) == {"applied": len(lines)}
    report = json.loads((tmp_path / "after" / "report.json").read_text())
    assert sorted(report["classes"]) == ["=Refund", "Billing"]
    assert min(report["splits"]["train"]["classes"]) > 0
    assert report["quarantine"]["unknown"] == {"Privacy": 20 - len(lines)}
    reasons = {row["reason"] for row in map(json.loads, (tmp_path / "after" / "quarantine.jsonl").open())}
    assert reasons == {"unknown label: 'Privacy' is not in the training rows after the corrections"}
