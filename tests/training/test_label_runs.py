"""Runs on multilabel and soft labels: training in one and two processes, evaluation, export and reports."""

import json
import math
import random
import re
from csv import DictReader
from pathlib import Path

import numpy as np
import pytest

import crepe_dist
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.exporting.compression import compress_to
from crepe_dist.exporting.exporter import export
from crepe_dist.model.calibration import INTERVALS, interval_threshold, multilabel_calibration
from crepe_dist.reports import run_page
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.runs.scores import MultilabelScores
from tests.conftest import QUICK, command, losses, needs_kernels, run, train

pytestmark = needs_kernels

WORDS = {"big": "huge giant vast", "old": "ancient antique aged", "red": "crimson scarlet ruby"}
# In float32, because in bfloat16 the last losses of one and two processes differ by a hundredth.
ADAM = [
    *(*QUICK, "--precision=float32"),
    *("--optimizer=adam", "--learning-rate=0.01", "--epochs=4"),
]


def table(rows: int, seed: int) -> dict[str, list]:
    """Make texts that contain a word for each of their labels. Some texts have no label."""
    generator = random.Random(seed)
    sets = [[name for name in WORDS if generator.random() < 0.4] for _ in range(rows)]
    words = [[generator.choice(WORDS[name].split()) for name in each] for each in sets]
    return {"text": [f"{' '.join(each)} house {row}" for row, each in enumerate(words)], "label": sets}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared data set ``data``, and its runs ``run-1`` (one process) and ``run-2`` (two processes)."""
    folder = tmp_path_factory.mktemp("labels")
    crepe_dist.prepare(
        table(400, 1),
        folder / "data",
        labels="multilabel",
        test=table(100, 2),
        validation=table(100, 3),
        feature_len=64,
    )
    for processes in (1, 2):
        flags = ("--data", "data", *ADAM, f"--run-dir=run-{processes}")
        train(*flags, cwd=folder, processes=processes)
    return folder


def scores_of(folder: Path, name: str = "run-1") -> MultilabelScores:
    found = checkpoint.read_scores(checkpoint.resolve_model(str(folder / name)))["test"]
    assert isinstance(found, MultilabelScores)
    return found


def test_two_processes_train_as_one(folder):
    first, second = scores_of(folder), scores_of(folder, "run-2")
    assert "_test_f1_" in checkpoint.resolve_model(str(folder / "run-1")).name
    assert first.accuracy == second.accuracy > 0.95
    np.testing.assert_allclose(losses(folder / "run-1"), losses(folder / "run-2"), rtol=1e-4)
    result = json.loads((folder / "run-1" / "result.json").read_text())
    assert result["chosen_by"] == "validation split"
    assert result["test_accuracy"] == first.accuracy
    thresholds = [crepe_dist.load(folder / name).calibration.thresholds_for(0.9) for name in ("run-1", "run-2")]
    assert thresholds[0] == thresholds[1]


def test_labels_that_are_sure(folder):
    model, wanted = crepe_dist.load(folder / "run-1", min_precision=0.9), table(100, 2)
    found = [set(each.labels or ()) for each in model.predict(wanted["text"])]
    right = sum(len(each & set(true)) for each, true in zip(found, wanted["label"]))
    (sure,) = (each for each in scores_of(folder).selective_scores if each["asked"] == 0.9)
    assert sure["precision"] == right / sum(map(len, found))
    assert sure["covered"] == right / sum(map(len, wanted["label"]))
    histogram = np.zeros((2, INTERVALS, 2), np.int64)
    histogram[:, 300, 0], histogram[:, 400, 1] = 99, (30, 5)  # all of thirty are right, and all of five
    assert multilabel_calibration(np.array([0.5, 0.5]), histogram).thresholds_for(0.9) == [
        interval_threshold(np.array(301)),
        math.inf,
    ]


def test_evaluate_computes_the_scores_of_training(folder, printed_by):
    more = ("--json", "scores.json", "--html", "scores.html", "--mistakes", "mistakes.csv")
    shown = printed_by("evaluate", "run-1", *more, cwd=folder)
    found, scores = json.loads((folder / "scores.json").read_text()), scores_of(folder)
    assert found["micro_f1"] == scores.accuracy
    assert found["exact_match"] == scores.exact_match
    assert found["mean_average_precision"] == pytest.approx(scores.mean_average_precision)
    assert {name: each["threshold"] for name, each in found["per_class"].items()} == dict(
        zip(["big", "old", "red"], scores.thresholds.tolist())
    )
    assert "micro F1" in shown
    assert found["sure_answers"] == scores.selective_scores
    assert "average precision" in (folder / "scores.html").read_text()
    predictor = crepe_dist.load(folder / "run-1")
    part = open_dataset(folder / "data").splits["test"]
    wanted = part.targets.label_probs(np.arange(len(part)))
    texts = [part.text(row) or "" for row in range(len(part))]
    labels = [set(each.labels or ()) for each in predictor.predict(texts)]
    right = [each == {predictor.classes[i] for i in np.flatnonzero(row)} for each, row in zip(labels, wanted)]
    assert np.mean(right) == scores.exact_match
    with (folder / "mistakes.csv").open(newline="", encoding="utf-8") as stream:
        mistakes = list(DictReader(stream))
    assert [int(each["row"]) for each in mistakes] == np.flatnonzero(np.logical_not(right)).tolist()
    for each in mistakes:
        row = int(each["row"])
        assert set(json.loads(each["true"])) == {predictor.classes[i] for i in np.flatnonzero(wanted[row])}
        assert set(json.loads(each["predicted"])) == labels[row]


def test_predict_gives_all_labels_above_their_threshold(folder):
    texts = "giant crimson house 7\nhouse 8\n"
    plain = run(command("predict", "run-1"), folder, stdin=texts).splitlines()
    assert {word for word in WORDS if word in plain[0]} == {"big", "red"}
    assert plain[1].startswith("no label (")
    first, second = map(
        json.loads, run(command("predict", "run-1", "--format", "jsonl"), folder, stdin=texts).splitlines()
    )
    assert sorted(first["labels"]) == ["big", "red"]
    assert second["labels"] == []
    with pytest.raises(UserError, match="each of its labels has its own threshold"):
        crepe_dist.load(folder / "run-1", min_probability=0.5)


def test_a_small_model_gives_labels(folder, tmp_path):
    before = crepe_dist.load(folder / "run-1")
    _, notes = compress_to(before, 500_000, tmp_path / "small", folder / "data")
    after, micro_f1 = crepe_dist.load(tmp_path / "small"), scores_of(folder).accuracy
    np.testing.assert_array_equal(after.thresholds, before.thresholds)  # type: ignore[arg-type]
    scores = re.fullmatch(
        r"micro F1 on 100 test texts: ([0-9.]+) % before the compression, ([0-9.]+) % after it", notes[-1]
    )
    assert scores is not None
    np.testing.assert_allclose([float(each) / 100 for each in scores.groups()], micro_f1, atol=0.1)


@pytest.mark.parametrize("form", ["onnx", "crepe"])
def test_exports_give_the_same_labels(folder, form):
    predictor = crepe_dist.load(folder / "run-1")
    export(predictor, form, folder / form, ["a ruby"])  # compares the probabilities
    texts = ["a crimson giant", "the house", "an aged ruby"]
    expected = [each.labels for each in predictor.predict(texts)]
    if form == "onnx":
        from crepe_dist.exporting.crepe_runtime import Classifier

        found = [each.labels for each in Classifier(str(folder / "onnx" / "model.onnx")).predict(texts)]
    else:
        found = [each.labels for each in crepe_dist.load(folder / form).predict(texts)]
    assert found == expected


def test_pages_name_the_scores(folder):
    list(run_page.write_for(RunDir(folder / "run-1"), open_dataset(folder / "data"), print))
    page, card = ((folder / "run-1" / name).read_text() for name in ("report.html", "model_card.md"))
    assert "micro F1" in page
    assert "micro F1" in card


def test_soft_labels_train_and_are_scored_by_their_largest_share(tmp_path):
    one, other = (table(300, seed) for seed in (4, 5))
    for each in (one, other):
        each["label"] = [
            {"red": 0.9, "old": 0.1} if "red" in names else {"old": 0.6, "big": 0.4} for names in each["label"]
        ]
    crepe_dist.prepare(one, tmp_path / "data", labels="soft", test=other, feature_len=64)
    train("--data", "data", *ADAM, "--run-dir=run", cwd=tmp_path)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test_accuracy"] > 0.9
    share = dict(crepe_dist.load(tmp_path / "run").predict(["a crimson house"])[0].ranking)
    assert share["red"] == pytest.approx(0.9, abs=0.1)
