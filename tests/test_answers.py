"""Answers of a teacher: found by text, id or line, averaged, and refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.answers import read_answers
from crepe_dist.data.dataset import open_dataset
from crepe_dist.data.targets import SEVERAL, SHARE_UNIT, SOFT
from crepe_dist.errors import UserError
from crepe_dist.preparing.formats.columns import Wanted
from crepe_dist.preparing.labelling import Labelling
from crepe_dist.preparing.preparation import PrepareOptions, prepare
from crepe_dist.preparing.selection import SplitOptions
from crepe_dist.preparing.sources import Reading, find_sources

CLASSES = ["a", "b", "c"]
ROWS = [{"label": "abc"[n % 3], "text": f"text {n}", "id": f"T{n}"} for n in range(30)]
NEW = [{"text": f"<b>new</b> {n}", "id": f"U{n}"} for n in range(8)]


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def make(tmp_path):
    def made(new=NEW, kind="one", **reading):
        rows = [{**row, "label": [row["label"]]} if kind == SEVERAL else row for row in ROWS]
        how = Reading(columns=Wanted(id="id"), labelling=Labelling(kind), **reading)
        sources = find_sources(
            [str(lines(tmp_path / "rows.jsonl", rows))], unlabelled=[str(lines(tmp_path / "new.jsonl", new))]
        )
        prepare(sources, tmp_path / "data", Encoding(feature_len=123), SplitOptions(), PrepareOptions(how))
        return open_dataset(tmp_path / "data")

    return made


@pytest.fixture
def teach(tmp_path):
    def taught(data, *records):
        return read_answers(lines(tmp_path / "answers.jsonl", records), data)

    return taught


ANSWER = {"a": 0.25, "c": 0.75}
KEYS = [{"text": "<b>new</b> 2"}, {"id": "U2"}, {"line": 3}, {"line": 3, "file": "new.jsonl"}]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: "+".join(key))
def test_a_row_is_found_by(make, teach, key):
    taught = teach(make(), {**key, "labels": ANSWER})
    assert taught.rows.tolist() == [2]
    assert taught.targets.kind == SOFT
    assert taught.targets.shares(np.array([0])).tolist() == [pytest.approx([0.25, 0, 0.75], abs=1e-4)]
    assert taught.targets.pairs[..., 1].sum(axis=1).tolist() == [SHARE_UNIT]


def test_a_text_is_found_as_it_was_prepared(make, teach):
    taught = teach(make(strip_html=True), {"text": "<b>new</b> 2", "labels": ANSWER})
    assert taught.rows.tolist() == [2]


def test_joined_columns(tmp_path, teach):
    rows = [{"label": "abc"[n % 3], "title": "t", "text": f"x {n}"} for n in range(12)]
    new = [{"title": "new", "text": "x"}, {"title": "new", "text": "y"}]
    sources = find_sources(
        [str(lines(tmp_path / "rows.jsonl", rows))], unlabelled=[str(lines(tmp_path / "new.jsonl", new))]
    )
    prepare(sources, tmp_path / "data", Encoding(feature_len=123), SplitOptions())
    data = open_dataset(tmp_path / "data")
    taught = teach(data, {**new[1], "labels": ANSWER}, {"text": "new | x", "labels": ANSWER})
    assert taught.rows.tolist() == [0, 1]


def test_what_predict_prints(make, teach):
    top = [{"class": "c", "probability": 0.6}, {"class": "a", "probability": 0.4}]
    answer = {"line": 2, "class": "c", "probability": 0.6, "entropy": 0.6, "margin": 0.2, "top": top, "read": 5}
    unanswered: dict[str, Any] = {"line": 3, "class": None, "probability": None, "top": [], "problem": "empty text"}
    taught = teach(make(), answer, unanswered)
    assert taught.unanswered == 1
    assert taught.targets.shares(np.array([0])).tolist() == [pytest.approx([0.4, 0, 0.6], abs=1e-4)]


def test_a_committee_is_averaged(make, teach):
    one, other = {"id": "U1", "labels": {"a": 1}}, {"line": 2, "labels": {"b": 0.5, "c": 0.5}}
    taught = teach(make(), one, {"id": "U4", "label": "b"}, other)
    assert taught.rows.tolist() == [1, 4]
    assert taught.targets.shares(np.arange(2)).tolist() == [
        pytest.approx([0.5, 0.25, 0.25], abs=1e-4), [0, 1, 0],
    ]  # fmt: skip


def test_answers_without_use_are_counted(make, teach):
    taught = teach(make(), {"text": "<b>new</b> 0", "label": "a"}, {"text": "of nobody", "label": "a"}, {"id": "U1"})
    assert taught.describe(8) == ("answers for 1 of 8 unlabelled texts; 1 answer matches no text; 1 line has no answer")


def test_several_labels(make, teach):
    data = make(kind=SEVERAL)
    given: Any = ({"a": 0.9, "b": 0.5, "c": 1.005}, [], ["a", "c"])
    taught = teach(data, *({"id": f"U{number}", "labels": labels} for number, labels in enumerate(given)))
    assert taught.targets.kind == SEVERAL
    assert taught.rows.tolist() == [0, 1, 2]
    shares = taught.targets.shares(np.arange(3))
    np.testing.assert_allclose(shares, np.array([[0.9, 0.5, 1], [0, 0, 0], [1, 0, 1]]), atol=1e-4)


REFUSED = [
    ({"id": "U1", "labels": {"A": 1}}, "no class 'A'; did you mean 'a'"),
    ({"id": "U1", "labels": {"a": 0.5, "b": 0.3}}, "sum to 0.8"),
    ({"id": "U1", "top": [{"class": "a", "probability": 0.5}]}, "--top"),
    ({"id": "U1", "labels": {"a": 1.5}}, "not a finite number"),
    ({"id": "U1", "labels": {"a": float("nan")}}, "not a finite number"),
    ({"labels": {"a": 1}}, "none of the keys"),
    ({"line": 1, "file": "no.csv", "label": "a"}, "no source 'no.csv'"),
    ({"text": 5, "label": "a"}, "not a string"),
    ({"id": "U1", "labels": "a"}, "neither an object nor a list"),
]


@pytest.mark.parametrize(("record", "why"), REFUSED)
def test_is_refused(make, teach, record, why):
    data = make()
    with pytest.raises(UserError, match=why) as caught:
        teach(data, {"id": "U0", "label": "a"}, record)
    assert "answers.jsonl:2" in caught.value.what


def test_no_text_matches(make, teach):
    data = make()
    with pytest.raises(
        UserError, match=r"no answer of answers\.jsonl is for a text of .*\n.*the first: answers\.jsonl:1"
    ):
        teach(data, {"text": "of nobody", "label": "a"})


@pytest.mark.parametrize(("records", "why"), [([], "it is empty"), ([{"id": "U0"}], "no line has labels")])
def test_no_answers(make, teach, records, why):
    with pytest.raises(UserError, match=rf"answers\.jsonl has no answers\n.*{why}"):
        teach(make(), *records)


def test_what_is_not_json(make, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "U0", "label": "a"}\nnonsense\n')
    with pytest.raises(UserError, match="line 2"):
        read_answers(path, make())
