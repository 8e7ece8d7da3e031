"""crepe inspect: wrong labels, and overlapping classes."""

import csv
import json
import random

import numpy as np
import pytest

import crepe_dist
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.dataset import open_dataset
from crepe_dist.elastic.training_subprocess import train_in_subprocess
from crepe_dist.errors import UserError
from crepe_dist.files.csv_cells import write_csv
from crepe_dist.inspecting import out_of_fold
from crepe_dist.inspecting.corpus import Corpus
from crepe_dist.inspecting.inspection import find_label_errors
from crepe_dist.preparing.preparation import prepare
from crepe_dist.preparing.sources import find_sources
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import SplitOptions
from tests.conftest import TRIGRAMS, needs_kernels, write_rows

NAMES = ("one", "two", "<three>")
PLANTED = 12
QUICKLY = {"model.buckets": 4096, "training.epochs": 6, "optimizer.learning_rate": 0.01, "data.batch_size": 32}


def rows():
    """Return texts with a trigram of their class. The first texts have a wrong label."""
    generator = random.Random(5)
    for row in range(240):
        words = ["".join(generator.choices("abcdefghij", k=6)) + TRIGRAMS[row % 3] for _ in range(6)]
        yield NAMES[(row + (row < PLANTED)) % 3], " ".join(words)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Provide a prepared folder: 240 texts, 12 of them with a wrong label, and two pairs of near duplicates."""
    folder = tmp_path_factory.mktemp("inspected")
    same = [(NAMES[0], "Twice, twice quaqua!"), (NAMES[1], "twice TWICE quaqua"), *[(NAMES[2], "vex vex vexing")] * 2]
    write_rows(folder / "texts.csv", [("label", "text"), *rows(), *same])
    spec = PreparationSpec(CharEncoder(feature_len=100), SplitOptions(0.2, 0.1))
    prepare(find_sources([str(folder / "texts.csv")]), folder / "data", spec)
    return folder


def read(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@needs_kernels
def test_the_command_finds_what_was_planted(place, printed_by, monkeypatch):
    def quick(settings, folder):
        train_in_subprocess({**settings, **QUICKLY}, folder)

    monkeypatch.setattr(out_of_fold, "train_in_subprocess", quick)
    monkeypatch.chdir(place)
    given = ("inspect", "data", "--out", "out", "--folds", "2")
    printed = printed_by(*given)
    assert "fold 2 of 2: " in printed
    texts = {text for _, text in list(rows())[:PLANTED]}
    errors = read(place / "out" / "label_errors.csv")
    found = {row["text"] for row in errors}
    assert len(found & texts) >= PLANTED - 2
    assert len(found - texts) <= 4
    true = {text: NAMES[place % 3] for place, (_, text) in enumerate(rows())}
    assert all(row["suggested"] == true[row["text"]] for row in errors if row["text"] in texts)
    shares = [float(row["probability_of_label"]) for row in errors]
    assert shares == sorted(shares)
    lines = (place / "texts.csv").read_text().lower().splitlines()
    assert all(row["text"] in lines[int(row["line"]) - 1] for row in errors)
    corrections_change_labels_as_listed(place, errors)
    edited = (place / "out" / "label_errors.csv").read_bytes()
    with pytest.raises(UserError, match=r"out/label_errors\.csv already exists") as caught:
        printed_by(*given)
    assert "--overwrite" in caught.value.remedy
    assert (place / "out" / "label_errors.csv").read_bytes() == edited
    printed_by(*given, "--overwrite")
    assert len(read(place / "out" / "label_errors.csv")) == len(errors)


def corrections_change_labels_as_listed(place, errors):
    """Keep the first label, and prepare the data again."""
    path = place / "out" / "label_errors.csv"
    errors[0]["suggested"] = ""
    write_csv(path, errors)
    given = {"corrections": path, "validation": 0.1, "feature_len": 100}
    about = crepe_dist.prepare(place / "texts.csv", place / "corrected", **given)["corrections"]
    assert (about["applied"] + about["held_out"], about["kept"], about["stale"]) == (len(errors) - 1, 1, 0)
    assert open_dataset(place / "corrected").manifest["corrections"] == about


def labels_by_line(data):
    """Return the label of each row by its line in the source."""
    return {
        data.origin(name, row).line: data.classes[label]
        for name, part in data.splits.items()
        for row, label in enumerate(part.labels)
    }


def test_what_cannot_be_inspected(complaint, tmp_path):
    lines = [{"text": f"text {row} abc", "label": ["a", "b"] if row % 2 else ["a"]} for row in range(40)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    crepe_dist.prepare(tmp_path / "many.jsonl", tmp_path / "many", labels="multilabel")
    assert "multiple labels per text" in complaint("inspect", "many", cwd=tmp_path)


class TestCorpus:
    def test_folds_are_balanced_and_keep_duplicates_together(self, place):
        corpus = Corpus(open_dataset(place / "data"))
        fold = corpus.assign_folds(4, seed=1)
        assert np.array_equal(fold, corpus.assign_folds(4, seed=1))
        assert np.array_equal(fold, fold[corpus.duplicate_groups])
        for label in range(3):
            counts = np.bincount(fold[corpus.labels == label], minlength=4)
            assert counts.max() - counts.min() <= 3
        assert (corpus.duplicate_groups != np.arange(len(corpus))).sum() == 2

    def test_rare_letters_tell_texts_apart_and_rare_signs_do_not(self, tmp_path):
        texts = ["一丁七", "一丁七。", "!一丁 七", "一丁三", "Ж一", "ж一", "。", "Ж一 丁"]
        (tmp_path / "rows.csv").write_text("".join(f"{n % 2},{text}\n" for n, text in enumerate(texts)), "utf-8")
        encoding = CharEncoder("fold", 40, None, " !", "".join(sorted("一丁七三Жж。")))
        prepare(
            find_sources([str(tmp_path / "rows.csv")]),
            tmp_path / "data",
            PreparationSpec(encoding, SplitOptions(test=0.5)),
        )
        corpus = Corpus(open_dataset(tmp_path / "data"))
        assert sorted(np.unique(corpus.duplicate_groups, return_counts=True)[1]) == [1, 1, 1, 2, 3]
        read = [corpus.dataset.text(*corpus.locate(row)) for row in range(len(corpus))]
        alike = corpus.duplicate_groups == corpus.duplicate_groups[read.index("一丁七")]
        assert {read[row] for row in np.flatnonzero(alike)} == {"一丁七", "一丁七。", "!一丁 七"}


class TestConfidentLearning:
    def test_by_hand(self):
        # The means are 0.7 and 0.65; of class 0 one text of three is confidently of class 1, of class 1 none.
        first = np.array([0.9, 0.9, 0.3, 0.2, 0.5])
        probabilities, labels = np.stack([first, 1 - first], axis=1), np.array([0, 0, 0, 1, 1], np.int32)
        assert find_label_errors(probabilities, labels).tolist() == [2]


@pytest.mark.parametrize("num_groups", [12, 240])
def test_the_texts_of_a_group_are_in_one_fold(place, num_groups):
    corpus = Corpus(open_dataset(place / "data"))
    assert corpus.groups is None
    corpus.groups = np.random.default_rng(1).integers(0, num_groups, len(corpus)).astype(np.int32)
    folds = corpus.assign_folds(3, 0)
    for division in (corpus.groups, corpus.duplicate_groups):
        assert all(len(np.unique(folds[division == group])) == 1 for group in np.unique(division))
    assert np.ptp(np.bincount(folds)) <= 30
    counts = np.array([np.bincount(corpus.labels[folds == fold], minlength=3) for fold in range(3)])
    assert np.ptp(counts, axis=0).max() <= (30 if num_groups == 12 else 4)
    assert (corpus.assign_folds(3, 0) == folds).all()


def test_a_single_group_leaves_no_text_for_training(place):
    corpus = Corpus(open_dataset(place / "data"))
    corpus.groups = np.zeros(len(corpus), np.int32)
    with pytest.raises(UserError, match="are in one group"):
        corpus.assign_folds(3, 0)
