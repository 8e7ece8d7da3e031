"""Calibration: a temperature fitted to the validation split and used by every command, and the answer "none of the
classes"."""

import csv
import json
import math

import numpy as np
import pytest

import crepe_dist
from crepe_dist.errors import UserError
from crepe_dist.exporting.exporter import export
from crepe_dist.model.calibration import UNCALIBRATED, Calibration, TemperatureFitter, softmax
from tests.exporting.test_export import ENCODINGS, classifier, make, texts


def scored(temperature, rows=4000, classes=5, seed=0):
    """Generate logits that are calibrated at a temperature, and labels drawn from their probabilities."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 3, (rows, classes))
    powers = np.exp(logits / temperature)
    shares = powers / powers.sum(axis=1, keepdims=True)
    labels = (generator.random((rows, 1)) > np.cumsum(shares, axis=1)).sum(axis=1).clip(max=classes - 1)
    return logits.astype(np.float32), labels.astype(np.int32)


def counted(*batches):
    counts = TemperatureFitter()
    for logits, labels in batches:
        counts.add(logits, labels)
    return counts


@pytest.mark.parametrize("temperature", [0.5, 1, 2.5])
def test_the_temperature_of_the_labels_is_found(temperature):
    found = counted(scored(temperature)).calibration()
    assert found.temperature == pytest.approx(temperature, rel=0.07)


def test_few_texts_barely_move_the_temperature():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2] * 3] * 3
    right = np.array([0, 1, 2] * 3, np.int32)
    assert 0.6 < counted((logits, right)).calibration().temperature < 1
    assert counted((np.tile(logits, (99, 1)), np.tile(right, 99))).calibration().temperature < 0.5
    assert TemperatureFitter().calibration().temperature == 1


def test_the_loss_is_that_of_the_fitted_temperature():
    logits, labels = scored(2.0)
    counts = counted((logits, labels))
    losses = (logits / counts.calibration().temperature).astype(np.float64)
    losses = np.log(np.exp(losses).sum(axis=1)) - losses[np.arange(len(labels)), labels]
    assert counts.loss() == pytest.approx((losses.mean(), losses.std() / math.sqrt(len(labels))), rel=1e-4)


def test_the_threshold_is_reached_by_95_percent():
    logits, labels = scored(1)
    found = counted((logits, labels)).calibration()
    powers = np.exp(logits / found.temperature)
    largest = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)
    assert (largest >= found.min_probability).mean() >= 0.95
    assert (largest >= found.min_probability + 0.01).mean() < 0.95


def test_a_precision_is_kept_on_other_texts():
    calibration, (logits, labels) = counted(scored(1.0, 10_000, seed=4)).calibration(), scored(1.0, 10_000, seed=5)
    largest, is_right = softmax(logits).max(axis=1), logits.argmax(axis=1) == labels
    thresholds = [calibration.thresholds_for(precision)[0] for precision in (0, 0.9, 0.95, 0.98)]
    assert thresholds[0] == 0 < thresholds[1] < thresholds[2] < thresholds[3]
    for precision, threshold in zip((0.9, 0.95, 0.98), thresholds[1:]):
        assert precision - 0.01 < is_right[largest >= threshold].mean() < precision + 0.03
    with pytest.raises(UserError, match="does not reach a precision of 1"):
        calibration.thresholds_for(1)
    few = Calibration(answers=(f"{'0 ' * 100}20",) * 2)  # All of twenty are right, which shows a precision of 0.88.
    assert few.thresholds_for(0.88) == [0]
    with pytest.raises(UserError, match="does not reach"):
        few.thresholds_for(0.9)


def test_a_model_without_a_threshold(tmp_path):
    path = make(tmp_path, "ngrams", ENCODINGS["paper"], calibration=UNCALIBRATED.to_dict())
    with pytest.raises(UserError, match="no threshold of its own"):
        crepe_dist.load(path, min_probability="auto")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Path of a checkpoint with a temperature of 0.7 and a threshold of 0.6."""
    return make(tmp_path_factory.mktemp("made"), "ngrams", ENCODINGS["paper"])


def test_predictions_use_the_temperature(made):
    predictor = crepe_dist.load(made)
    codes = predictor.encoding.encode(texts())
    powers = np.exp(predictor.engine.logits(codes).astype(np.float64) / 0.7)
    shares = powers / powers.sum(axis=1, keepdims=True)
    for row, found in zip(shares, predictor.predict(texts())):
        assert found.probability == pytest.approx(row.max(), abs=1e-5)
        assert found.entropy == pytest.approx(-(row * np.log(row)).sum(), abs=1e-4)
        assert found.margin == pytest.approx(np.diff(np.sort(row)[-2:])[0], abs=1e-5)
        assert not found.rejected


def test_none_of_these(made, tmp_path, printed_by):
    (tmp_path / "texts.csv").write_text("text\n" + "".join(f"{each}\n" for each in ["aqua", "zigzag", "y", "xyz"]))
    shares = [each.probability for each in crepe_dist.load(made).predict(["aqua", "zigzag", "y", "xyz"])]
    limit = sorted(shares)[2]

    def answers(form):
        flags = ("--file", tmp_path / "texts.csv", "--format", form, "--min-probability", repr(limit))
        return printed_by("predict", made, *flags).splitlines()

    rejected = [share < limit for share in shares]
    assert rejected.count(True) == 2
    assert [line.startswith("none of these   ") for line in answers("text")] == rejected
    records = list(map(json.loads, answers("jsonl")))
    assert [record["class"] is None for record in records] == rejected
    assert all(record["top"][0]["probability"] == record["probability"] for record in records)
    rows = list(csv.DictReader(answers("csv")))
    assert [row["predicted_class"] == "" for row in rows] == rejected
    assert not any(row["problem"] for row in rows)


def test_the_threshold_of_the_model(made):
    assert crepe_dist.load(made, min_probability="auto").min_probability == 0.6
    for given in (-0.1, math.nan, "0.5"):
        with pytest.raises(UserError, match="is not a probability"):
            crepe_dist.load(made, min_probability=given)


def test_an_exported_model_knows_both(made, tmp_path):
    predictor = crepe_dist.load(made, min_probability="auto")
    export(predictor, "onnx", tmp_path / "onnx", texts(20))
    exported = classifier(tmp_path / "onnx")
    assert (exported.metadata["temperature"], exported.min_probability) == (0.7, 0.6)


@pytest.mark.parametrize("damaged", [{"temperature": 0}, {"min_probability": "high"}, {"labels": ["0"] * 4}, 5])
def test_a_damaged_calibration_is_refused(damaged, tmp_path):
    calibration = {"temperature": 2, "min_probability": 0.5, **damaged} if isinstance(damaged, dict) else damaged
    path = make(tmp_path, "ngrams", ENCODINGS["paper"], calibration=calibration)
    with pytest.raises(UserError, match="is damaged"):
        crepe_dist.load(path)
