"""Weights of rows: read and checked by prepare, divided by their mean, and applied by every engine and world size."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import crepe_dist
from crepe_dist.data.batch import pack_batch, unpack_batch
from crepe_dist.data.dataset import UNIT_WEIGHT_BYTES, WEIGHT_SCALE, WEIGHTS, open_dataset
from crepe_dist.errors import UserError
from tests.conftest import QUICK, needs_kernels, train, write_frame

TEXTS = [f"{'good' if row % 2 else 'bad'} text number {row}" for row in range(40)]
LABELS = ["yes" if row % 2 else "no" for row in range(40)]
GIVEN = [row % 5 / 2 for row in range(40)]
NO_TEST: Any = {"test": 0.0, "feature_len": 123}


def weights_of(folder):
    return np.asarray(open_dataset(folder).splits["train"].weights)


def test_a_batch_holds_weights_in_steps_of_2_to_the_minus_16(tmp_path):
    crepe_dist.prepare({"text": TEXTS, "label": LABELS, "w": GIVEN}, tmp_path / "out", weight="w", **NO_TEST)
    part = open_dataset(tmp_path / "out").splits["train"]
    rows = np.array([3, 1, 0])
    batch = pack_batch(part.char_ids(rows), part.labels[rows], 4, 3, weights=part.weight_bytes(rows))
    _, shares, weights = unpack_batch(batch, classes=2)
    assert shares[:3].argmax(axis=1).tolist() == part.labels[rows].tolist()
    np.testing.assert_allclose(weights.ravel(), [1.5, 0.5, 0, 0], atol=0.5 / WEIGHT_SCALE)
    largest = replace(part, weights=np.full(40, 255, np.float32))
    batch = pack_batch(part.char_ids(rows), part.labels[rows], 3, 3, weights=largest.weight_bytes(rows))
    assert unpack_batch(batch, classes=2)[2].ravel().tolist() == [255, 255, 255]
    assert replace(part, weights=None).weight_bytes(rows) is UNIT_WEIGHT_BYTES


@pytest.mark.parametrize("form", ["csv", "bare.csv", "tsv", "jsonl", "parquet"])
def test_every_table_may_have_weights(tmp_path, form):
    frame = pd.DataFrame({"label": LABELS, "weight": GIVEN, "text": TEXTS})
    path = write_frame(frame, tmp_path / f"table.{form}")
    summary = crepe_dist.prepare(path, tmp_path / "out", weight="2" if form == "bare.csv" else "weight", **NO_TEST)
    np.testing.assert_array_equal(weights_of(tmp_path / "out"), np.array(GIVEN, np.float32))  # their mean is 1
    assert "weight" in str(summary) or form == "bare.csv"
    assert open_dataset(tmp_path / "out").classes == ["no", "yes"]


def test_weights_are_divided_by_their_mean_and_follow_their_rows(tmp_path):
    table = {"text": TEXTS, "label": LABELS, "w": [10 + row for row in range(40)]}
    crepe_dist.prepare(table, tmp_path / "out", weight="w", test={"text": TEXTS[:5], "label": LABELS[:5]})
    np.testing.assert_allclose(weights_of(tmp_path / "out"), np.arange(10, 50) / 29.5, rtol=1e-6)
    assert {path.name for path in (tmp_path / "out").glob("*.weights.npy")} == {WEIGHTS}


def test_weights_that_cannot_be_used(tmp_path):
    bad = [1, None, -1, float("inf"), "x", *[1] * 35]
    crepe_dist.prepare({"text": TEXTS, "label": LABELS, "w": bad}, tmp_path / "out", weight="w", max_bad=0.2)
    found = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [each["line"] for each in found] == [2, 3, 4, 5]
    assert all(each["reason"].startswith("unusable weight: ") for each in found)
    for name, weights, what in (
        ("w", [0.0] * 400, "all weights are 0"),
        ("w", [1e6, *[1e-3] * 399], "times the mean"),
        ("v", [1.0] * 400, "no column 'v'"),
    ):
        table = {"text": TEXTS * 10, "label": LABELS * 10, "w": weights}
        with pytest.raises(UserError, match=what):
            crepe_dist.prepare(table, tmp_path / "no", weight=name, **NO_TEST)


@needs_kernels
def test_rows_of_weight_0_are_not_learned(tmp_path):
    """Half of the rows have a wrong label."""
    wrong = {"text": TEXTS * 10, "label": [*LABELS * 5, *LABELS[1:], *LABELS * 4, "yes"][:400]}
    table = {**wrong, "w": [7.0] * 200 + [0.0] * 200}
    test = {"text": TEXTS, "label": LABELS}
    crepe_dist.prepare(table, tmp_path / "out", weight="w", test=test, feature_len=123)
    flags = (*QUICK, "--optimizer=adam", "--epochs=4", "--run-dir=run")
    train("--data", "out", *flags, cwd=tmp_path, processes=2)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test_accuracy"] == 1
