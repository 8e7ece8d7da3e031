"""Hierarchical labels: sums and scores of nodes, and predictions with the required precision."""

import json
import random
import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest

import crepe_dist
from crepe_dist.data.dataset import open_dataset
from crepe_dist.data.label_hierarchy import LabelHierarchy
from crepe_dist.errors import UserError
from crepe_dist.files.safe_read import sha256
from crepe_dist.preparing.label_parsing import LabelFormat
from crepe_dist.runs import checkpoint
from tests.conftest import NGRAMS, QUICK, needs_kernels, run, train
from tests.helpers.programs import supervised_command

CODES = LabelHierarchy(".", ("1.1.1", "1.1.2", "1.2", "2.1"))


def test_levels_of_codes():
    assert [level.names for level in CODES.all_levels] == [["1", "2"], ["1.1", "1.2", "2.1"], list(CODES.classes)]
    shares = np.array([[0.4, 0.3, 0.2, 0.1]])
    assert [level.sums(shares).round(6).tolist() for level in CODES.inner_levels] == [[[0.9, 0.1]], [[0.7, 0.2, 0.1]]]
    for thresholds, answer in (
        ((0.8, 0.8, 0.8), (1, "1", 0.9)),
        ((0.8, 0.7, 0.8), (2, "1.1", 0.7)),
        ((0.8, 0.7, 0.4), (3, "1.1.1", 0.4)),
        ((1, 1, 1), (0, "", 0.0)),
    ):
        (found,) = CODES.predict_confident(shares, thresholds)
        assert (*found[:2], round(found[2], 6)) == answer, thresholds


def test_hierarchical_f1():
    """The expected value is computed by hand. 1.1.1 and 1.1.2 share two of three nodes, 1.2 and 2.1 none of two."""
    confusion = np.zeros((4, 4), np.int64)
    confusion[0, 0], confusion[1, 0], confusion[3, 2] = 1, 1, 1
    assert CODES.f1(confusion) == pytest.approx((3 + 2 + 0) / (3 + 3 + 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set and two runs. Each text determines the first part of its label; two of three also the second part."""
    folder, generator = tmp_path_factory.mktemp("levels"), random.Random(1)
    rows = []
    for row in range(3000):
        first, second, said = generator.choice("abc"), generator.choice("xy"), generator.random() < 0.67
        rows.append((f"{first}.{second}", f"about {first * 4} {second * 4 if said else ''} number {row % 7}"))
    pd.DataFrame(rows, columns=["label", "text"]).to_csv(folder / "codes.csv", index=False)
    crepe_dist.prepare(folder / "codes.csv", folder / "data", levels=".", feature_len=64)
    flags = (*QUICK, *NGRAMS, "--optimizer=adam", "--learning-rate=0.01", "--epochs=4")
    for processes in (1, 2):
        train("--data=data", *flags, f"--run-dir={processes}", cwd=folder, processes=processes)
    return folder


@needs_kernels
def test_an_answer_is_the_deepest_node_that_is_sure(folder, printed_by, complaint):
    first, second = (checkpoint.resolve_model(str(folder / name)) for name in ("1", "2"))
    assert sha256(first) == sha256(second)
    assert crepe_dist.load(first).calibration == crepe_dist.load(second).calibration
    frame, model = pd.read_csv(folder / "codes.csv"), crepe_dist.load(first, min_precision=0.95)
    answers = model.predict(list(frame.text))
    is_leaf = np.array([each.label in model.classes for each in answers])
    is_node = np.array([each.label in ("a", "b", "c") for each in answers])
    assert (is_leaf | is_node).all()
    assert 0.1 < is_node.mean() < 0.35
    assert np.mean([label.startswith(each.label) for label, each in zip(frame.label, answers)]) > 0.95
    printed_by("predict", "1", "--file=codes.csv", "--min-precision=0.95", "--out=out.csv", cwd=folder)
    assert pd.read_csv(folder / "out.csv").predicted_class.tolist() == [each.label for each in answers]
    number = next(row for row in range(len(answers)) if is_node[row])
    assert model.explain(frame.text[number]).label in model.classes
    with pytest.raises(UserError, match="does not reach"):
        crepe_dist.load(first, min_precision=1)
    assert "hierarchical labels" in complaint("export", "1", "--out=out", "--min-precision=0.9", cwd=folder)
    shown = printed_by("evaluate", "1", "--json=1.json", "--html=1.html", cwd=folder)
    assert "level 1: 3 nodes, accuracy 100.0 %" in shown
    run(supervised_command("evaluate", "1", "--json=2.json", "--html=2.html", processes=2), folder)
    assert (folder / "1.html").read_text() == (folder / "2.html").read_text()
    scores = json.loads((folder / "1.json").read_text())
    assert scores == json.loads((folder / "2.json").read_text())
    sure = next(each for each in scores["sure_answers"] if each["asked"] == 0.95)
    test = open_dataset(folder / "data").splits["test"]
    answers = model.predict([test.text(row) or "" for row in range(len(test))])
    assert sure["covered"] == [np.mean([(each.label in model.classes) == leaf for each in answers]) for leaf in (0, 1)]
    right = [model.classes[label].startswith(each.label) for label, each in zip(test.labels, answers)]
    assert sure["precision"] == np.mean(right)


@needs_kernels
def test_levels_need_their_separator(folder):
    with pytest.raises(UserError, match="no class has the separator '/' in its name"):
        crepe_dist.prepare(folder / "codes.csv", folder / "other", levels="/")


@needs_kernels
def test_a_column_for_each_level(folder, tmp_path, printed_by):
    table = pd.read_csv(folder / "codes.csv")
    table[["first", "second"]] = table.pop("label").str.split(".", expand=True)
    table.to_csv(tmp_path / "codes.csv", index=False)
    columns: dict[str, Any] = {"label_columns": ["first", "second"], "feature_len": 64}
    crepe_dist.prepare(tmp_path / "codes.csv", tmp_path / "data", levels=".", **columns)
    assert sha256(tmp_path / "data" / "train.labels.npy") == sha256(folder / "data" / "train.labels.npy")
    table.assign(text=table.text + " anew").to_csv(tmp_path / "new.csv", index=False)
    printed = printed_by("evaluate", folder / "1", tmp_path / "new.csv", "--label-columns=first,second", cwd=folder)
    assert "level 1: 3 nodes" in printed
    labelling = LabelFormat(levels=".")
    assert labelling.join_levels('{"first": "a", "second": ""}') == "a"
    with pytest.raises(ValueError, match="the level above 'x' is empty"):
        labelling.join_levels('{"first": " ", "second": "x"}')
    with pytest.raises(UserError, match="'x' contains the separator"):
        crepe_dist.prepare(tmp_path / "codes.csv", tmp_path / "other", levels="x", **columns)


def test_hierarchical_f1_equals_that_of_the_sets_of_all_pairs():
    """Includes names that are equal without their blanks, and a class that is a node above another class."""
    generator = random.Random(1)
    for number in range(100):
        separator = generator.choice([".", " ", " > "])
        parts = ([generator.choice(["a", "b", "", "a "]) for _ in range(generator.randint(1, 4))] for _ in range(9))
        levels = LabelHierarchy(separator, tuple({separator.join(each) for each in parts}))
        confusion = np.random.default_rng(number).integers(0, 3, (len(levels.classes),) * 2)
        confusion[0, 0] += 1
        nodes = [set(path) for path in levels.paths]
        pairs = [(nodes[true], nodes[predicted], count) for (true, predicted), count in np.ndenumerate(confusion)]
        common = sum(len(true & predicted) * count for true, predicted, count in pairs)
        assert levels.f1(confusion) == 2 * common / sum(
            (len(true) + len(predicted)) * n for true, predicted, n in pairs
        )
        for level, accuracy in zip(levels.inner_levels, levels.accuracies(confusion)):
            wanted = np.zeros((len(level.names),) * 2, np.int64)
            for (true, predicted), count in np.ndenumerate(confusion):
                wanted[level.of_class[true], level.of_class[predicted]] += count
            assert level.confusion(confusion).tolist() == wanted.tolist()
            assert accuracy == np.trace(wanted) / wanted.sum()


def test_scores_of_20_000_classes_need_no_more_memory_than_their_cells():
    """The scores do not compare all pairs of classes, which would take hours."""
    count = 20_000
    levels = LabelHierarchy(".", tuple(f"{row // 400}.{row // 20 % 20}.{row % 20}" for row in range(count)))
    confusion: Any = np.zeros((count, count), np.bool_)  # a byte for each cell
    confusion[np.arange(count), np.arange(count)] = True
    confusion[np.arange(count), np.arange(count) ^ 1] = True  # the sibling of each class
    tracemalloc.start()
    try:
        assert levels.f1(confusion) == pytest.approx((3 + 2) / 6)
        assert levels.accuracies(confusion) == [1.0, 1.0]
        assert len(levels.inner_levels[0].confusion(confusion)) == 50
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1000 * count
