"""crepe_dist.prepare: data frames, mappings of lists and files, with the checks of the command."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

import crepe_dist
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.predicting.input_reader import extract_texts
from crepe_dist.preparing.formats.columns import ColumnSpec
from tests.conftest import write_frame

TEXTS = [f"{'good' if row % 2 else 'bad'} text number {row}" for row in range(40)]
LABELS = ["yes" if row % 2 else "no" for row in range(40)]


def test_a_frame_and_lists_give_the_data_set_that_a_file_gives(tmp_path):
    frame = pd.DataFrame({"id": range(40), "body": TEXTS, "topic": LABELS})
    write_frame(frame[["topic", "body"]], tmp_path / "table.jsonl")
    common: Any = {"text": "body", "label": "topic", "validation": 0.1}
    summary = crepe_dist.prepare(frame, tmp_path / "frame", **common)
    crepe_dist.prepare({"body": np.array(TEXTS), "topic": LABELS}, tmp_path / "lists", **common)
    crepe_dist.prepare(str(tmp_path / "table.jsonl"), tmp_path / "file", **common)
    made = [open_dataset(tmp_path / name) for name in ("frame", "lists", "file")]
    assert made[0].classes == ["no", "yes"]
    assert len({data.fingerprint for data in made}) == 2  # pandas writes the file with other separators
    assert len({data.split_digest("test") for data in made}) == 1
    assert made[0].fingerprint == made[1].fingerprint
    assert summary["name"] == "frame"


def test_several_columns_of_text_are_joined_in_their_order(tmp_path, printed_by):
    frame = pd.DataFrame({"id": range(40), "body": TEXTS, "topic": LABELS, "subject": [f"s{row}" for row in range(40)]})
    frame.loc[3, "subject"] = None
    common: Any = {"text": ["body", "subject"], "label": "topic", "test": 0.99, "max_bad": 0.5}
    kinds = ("csv", "tsv", "jsonl", "parquet")
    sources: list[Any] = [frame, *(write_frame(frame, tmp_path / f"table.{kind}") for kind in kinds)]
    for source in sources:
        crepe_dist.prepare(source, tmp_path / "out", overwrite=True, **common)
        data = open_dataset(tmp_path / "out")
        texts = {data.splits["test"].text(row) for row in range(len(data.splits["test"]))}
        assert texts <= {f"{text} | s{row}" if row != 3 else text for row, text in enumerate(TEXTS)}, source
        assert data.preprocessor.columns == ("body", "subject")
    assert extract_texts(frame[3:5], ColumnSpec(preferred_texts=data.preprocessor.columns)) == [
        TEXTS[3],
        f"{TEXTS[4]} | s4",
    ]
    # The command takes the flag twice, and numbers too.
    flags = ("--out", "two", "--label=topic", "--text-column=4", "--text-column=body", "--test=0.5")
    printed_by("prepare", "table.csv", *flags, cwd=tmp_path)
    assert open_dataset(tmp_path / "two").preprocessor.columns == ("subject", "body")


def test_rows_without_text_or_label_are_treated_as_in_files(tmp_path):
    texts, labels = [*TEXTS, None, float("nan"), pd.NA, 7, "x"], [*LABELS, "no", "no", "no", "no", None]
    frame = pd.DataFrame({"text": texts, "label": labels})
    crepe_dist.prepare(frame, tmp_path / "out", max_bad=0.2)
    records = map(json.loads, (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines())
    found = [(each["line"], each["reason"]) for each in records]
    assert found == [
        (41, "empty text"), (42, "empty text"), (43, "empty text"), (44, "not a text: 'text'"), (45, "no label"),
    ]  # fmt: skip
    with pytest.raises(UserError) as caught:
        crepe_dist.prepare(frame, tmp_path / "strict")
    assert "4 of 45 rows are invalid" in str(caught.value)
    assert "max_bad=0.09" in caught.value.remedy


@pytest.mark.parametrize(
    ("table", "options", "what", "remedy"),
    [
        ({"text": TEXTS, "label": LABELS[1:]}, {}, "the columns of table differ in length", "give a label for every"),
        ({"text": TEXTS, "label": LABELS}, {"text": "txt"}, "table has no column 'txt'", "did you mean 'text'"),
        ({"a": TEXTS, "b": LABELS, "c": LABELS}, {}, "which column is the label?", "label="),
        (
            {"text": TEXTS, "label": LABELS},
            {"weight": 7},
            "table has no column '7'",
            "set weight= to a column name or a number from 1 to 2",
        ),
        ({"text": LABELS, "label": "yes"}, {}, "column 'label' of table is 'yes'", "give lists"),
        ({"text": list(range(40)), "label": LABELS}, {}, "column 'text' is not text", "with text="),
        ({"text": [], "label": []}, {}, "table has no rows", "give texts"),
        (
            pd.DataFrame([["a", "b"]], columns=["text", "text"]),
            {},
            "several columns named 'text'",
            "rename the columns",
        ),
        ({"text": TEXTS, "label": LABELS}, {"max_bat": 1}, "prepare has no argument max_bat", "max_bad"),
        (pd.Series(TEXTS), {}, "the table cannot be of type Series", "give a data frame"),
    ],
)
def test_mistakes_are_explained_in_terms_of_python(tmp_path, table, options, what, remedy):
    with pytest.raises(UserError) as caught:
        crepe_dist.prepare(table, tmp_path / "out", **options)
    assert what in caught.value.what
    assert remedy in caught.value.remedy
    assert "--" not in str(caught.value)
    assert not (tmp_path / "out").exists()
