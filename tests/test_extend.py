"""Runs that add classes to those of another: ``train --extend``."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crepe_dist
from crepe_dist.data.dataset import Dataset, open_dataset
from crepe_dist.data.targets import open_targets
from crepe_dist.data.verification import verify
from crepe_dist.distributed.world import World
from crepe_dist.errors import UserError
from crepe_dist.exchange.parameter import Parameter
from crepe_dist.files import sha256
from crepe_dist.networks.ngrams import initial
from crepe_dist.networks.ngrams.shape import NGramShape
from crepe_dist.preparing.joining import join
from crepe_dist.reports.forgetting import Forgetting, Unmeasured, forgetting
from crepe_dist.reports.run_findings import choice, warnings
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_record import open_run
from crepe_dist.settings import config
from crepe_dist.settings.model_options import ModelOptions
from crepe_dist.settings.training_options import TrainingOptions
from crepe_dist.training import transfer
from crepe_dist.training.extension import _alike, crossing_rows, fewer_epochs, replayed
from crepe_dist.training.recalling import SHARE, mixed
from tests.conftest import FEATURE_LEN, QUICK, command, run

ADAM = ("--optimizer.name=adam", "--optimizer.learning_rate=0.01", "--model.precision=float32")
OLD, NEW = ["cat", "dog", "fox"], ["owl", "cat", "bee"]
SIZES = ("--model.buckets", "--model.embeddings", "--model.width", "--model.blocks")
REST = [flag for flag in QUICK if not flag.startswith(SIZES)]  # the run decides the sizes


def table(classes: list[str], rows: int, seed: int) -> dict[str, list[str]]:
    generator = random.Random(seed)
    labels = [classes[row % len(classes)] for row in range(rows)]
    return {"text": [f"a {label} {generator.randrange(9**9)}" for label in labels], "label": labels}


def prepared(folder: Path, classes: list[str], rows: int, seed: int, **options: Any) -> Dataset:
    parts: dict[str, Any] = {"test": table(classes, 30, seed + 1), "validation": table(classes, 30, seed + 2)}
    crepe_dist.prepare(table(classes, rows, seed), folder, **{**parts, "feature_len": FEATURE_LEN, **options})
    return open_dataset(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Old and new data, and a run on the old."""
    folder = tmp_path_factory.mktemp("extend")
    prepared(folder / "old", OLD, 600, 1)
    prepared(folder / "new", NEW, 60, 5)
    fit(folder, "old", folder / "run", *QUICK, *ADAM)
    return folder


def fit(place: Path, data: str, run_dir: Path, *flags: object) -> Path:
    words = ["--data", place / data, "--run-dir", run_dir, *flags]
    return crepe_dist.fit(config.parse([str(word) for word in words])).checkpoint


@pytest.fixture(scope="module")
def joined(place: Path) -> Dataset:
    members = [open_dataset(place / name) for name in ("old", "new")]
    join(members, ["cat", "dog", "fox", "bee", "owl"], place / "joined")
    return open_dataset(place / "joined")


class TestJoining:
    def test_rows_of_both_keep_their_texts_classes_and_origins(self, place, joined):
        verify(joined)
        assert joined.classes == ["cat", "dog", "fox", "bee", "owl"]
        for name, split in joined.splits.items():
            members = [open_dataset(place / each) for each in ("old", "new")]
            row = 0
            for member in members:
                for of_member in range(len(member.splits[name])):
                    assert joined.text(name, row) == member.text(name, of_member)
                    assert joined.classes[split.labels[row]] == member.classes[member.splits[name].labels[of_member]]
                    row += 1
            assert row == len(split)
        rows = len(open_dataset(place / "old").splits["test"])
        assert joined.origin("test", rows) == open_dataset(place / "new").origin("test", 0)

    def test_several_labels_keep_theirs(self, tmp_path):
        for name, classes in (("old", ["a", "b"]), ("new", ["b", "c", "d"])):
            rows = [classes[: 1 + row % len(classes)] for row in range(40)]
            texts = {"text": [f"{' '.join(row)} {name} {n}" for n, row in enumerate(rows)], "label": rows}
            crepe_dist.prepare(texts, tmp_path / name, labels="several", test=0.2, feature_len=32)
        members = [open_dataset(tmp_path / name) for name in ("old", "new")]
        join(members, ["a", "b", "c", "d"], tmp_path / "both")
        both = open_dataset(tmp_path / "both")
        verify(both)
        assert both.manifest["labels"] == {"kind": "several", "most": 3}
        for row in range(len(both.splits["test"])):
            targets = both.splits["test"].targets
            assert targets is not None
            shares = targets.shares(np.array([row]))[0]
            assert both.text("test", row).split()[:-2] == [both.classes[index] for index in np.flatnonzero(shares)]

    def test_other_kinds_of_labels_are_refused(self, place, tmp_path):
        rows = {"text": ["x y", "y z"] * 20, "label": [["cat"], ["cat", "owl"]] * 20}
        crepe_dist.prepare(rows, tmp_path / "several", labels="several", feature_len=FEATURE_LEN)
        members = [open_dataset(place / "old"), open_dataset(tmp_path / "several")]
        with pytest.raises(UserError, match="cannot be joined"):
            join(members, ["cat", "dog", "fox", "owl"], tmp_path / "both")


class TestReplay:
    def test_as_many_old_rows_as_new_ones_count_as_much_as_all(self, joined):
        some = replayed(joined, 0)
        train, whole = some.splits["train"], joined.splits["train"]
        assert some.class_counts().tolist() == [20 + 20, 20, 20, 20, 20]
        assert train.weights is not None
        assert train.weights.mean() == pytest.approx(1)
        mass = np.bincount(train.labels, train.weights) / len(train)
        np.testing.assert_allclose(mass, np.bincount(whole.labels) / len(whole), rtol=1e-4)
        assert replayed(joined, 0, balanced=True).splits["train"].weights is None
        assert fewer_epochs(some, 20, 1) == round(660 / 120)
        assert fewer_epochs(some, 20, 12) == 1200 / 120
        assert fewer_epochs(some, 3, 12) == 3

    def test_each_epoch_and_seed_has_other_rows_of_the_old_classes(self, joined):
        train = replayed(joined, 0).splits["train"]
        first, again, next_, other = (
            train.of_epoch(seed, epoch).origins for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
        )
        assert (first == again).all()
        assert (first == train.origins).all()
        for rows in (next_, other):
            assert (first[:60] == rows[:60]).all()
            assert (first != rows).any()

    def test_texts_that_were_trained_on_are_counted(self, place, joined, tmp_path):
        assert crossing_rows(joined) == ""
        copy = table(OLD, 600, 1)
        prepared(tmp_path / "copy", OLD, 60, 9, test={name: values[:7] for name, values in copy.items()})
        members = [open_dataset(place / "old"), open_dataset(tmp_path / "copy")]
        join(members, OLD, tmp_path / "both")
        assert "7 test rows" in crossing_rows(open_dataset(tmp_path / "both"))

    def test_names_that_differ_in_case_are_told(self):
        (note,) = _alike(["cat", "fox"], ["owl", "Fox"])
        assert "'fox' and 'Fox' are different classes" in note


class TestStart:
    def test_old_classes_keep_their_parameters_at_their_new_places(self, place, joined):
        before = transfer.read(str(place / "run"), ModelOptions(), open_dataset(place / "old"))
        moved = replace(joined, manifest={**joined.manifest, "classes": ["owl", "fox", "bee", "cat", "dog"]})
        start = transfer.read(str(place / "run"), ModelOptions(), moved)
        assert "2 classes added" in start.summary
        network = {name: Parameter(np.zeros(size, np.float32)) for name, size in start.shape.parameter_shapes().items()}
        start.give(network)
        for name, axis in start.shape.class_axes.items():
            kept = np.take(network[name].value, [3, 4, 1], axis)
            np.testing.assert_array_equal(kept, before.arrays[name])
        np.testing.assert_array_equal(network["tower.table"].value, before.arrays["tower.table"])
        assert "ngrams.significant" not in start.arrays

    def test_a_new_class_starts_with_its_n_grams(self, joined):
        shape = NGramShape(69, FEATURE_LEN, 5, 3, 4096)
        made = initial.parameters(shape, ModelOptions(), 0)
        made["weight"].value[:, :3] = 1
        initial.adapt(made, shape, joined, World(), ModelOptions(), 0, 10, {"weight", "bias"})
        significant, weights = made["significant"].value > 0, made["weight"].value
        assert (weights[:, :3] == 1).all()
        assert (weights[significant, 3] > 0).any()
        assert (weights[significant, 3] < 0).any()
        assert not weights[~significant, 3:].any()


class TestTraining:
    @pytest.fixture(scope="class")
    def extended(self, place: Path) -> Path:
        return fit(place, "new", place / "more", "--extend", place / "run", *REST, *ADAM)

    def test_new_classes_are_learnt_and_old_ones_kept(self, place, extended, capsys):
        model = crepe_dist.load(place / "more")
        assert list(model.classes) == ["cat", "dog", "fox", "bee", "owl"]
        predictions = model.predict(["a owl 123", "a dog 77", "a cat 5"])
        assert [each.label for each in predictions] == ["owl", "dog", "cat"]
        record = open_run(place / "more")
        assert record.data_folder.name.startswith("new+")
        change = forgetting(record)
        assert change is not None
        assert change.documents == 30
        assert change.run == "run"
        assert "30 test texts of run" in str(change)
        fit(place, "new", place / "more", "--extend", place / "run", *REST, *ADAM)
        assert "is finished" in capsys.readouterr().out

    def test_two_processes_train_the_same(self, place, extended):
        words = command("train", "--data=new", "--extend=run", "--run-dir=twice", *REST, *ADAM, processes=2)
        printed = run(words, place)
        assert printed.count("; 2 classes added") == 1
        assert sha256(checkpoint.find(str(place / "twice"))) == sha256(extended)

    def test_mistakes_are_refused(self, place, tmp_path, capsys):
        with pytest.raises(UserError, match="are both given"):
            TrainingOptions(init_from="a", extend="b")
        given = str(checkpoint.find(str(place / "run")))
        copy = tmp_path / "copy.params"
        copy.write_bytes(Path(given).read_bytes())
        with pytest.raises(UserError, match="is not the folder of a run"):
            fit(place, "new", tmp_path / "never", "--extend", copy)
        prepared(tmp_path / "short", NEW, 60, 5, feature_len=50)
        with pytest.raises(UserError, match="encoded differently") as error:
            fit(tmp_path, "short", tmp_path / "never", "--extend", place / "run")
        assert f"--feature-len {FEATURE_LEN}" in error.value.remedy


class TestWithoutTheOldData:
    """Runs on data of new classes alone, of a run whose data were moved away."""

    @pytest.fixture(scope="class")
    def gone(self, place: Path) -> Iterator[Path]:
        folder = place / "gone"
        prepared(folder / "new", ["owl", "bee"], 90, 5)
        texts = table([*OLD, "owl", "bee"], 150, 11)["text"]
        prepared(folder / "others", ["owl", "bee"], 90, 5, unlabelled={"text": texts})
        (place / "old").rename(place / "away")
        yield folder
        (place / "away").rename(place / "old")

    @pytest.fixture(scope="class")
    def extended(self, place: Path, gone: Path) -> Path:
        return fit(gone, "new", gone / "run", "--extend", place / "run", *REST, *ADAM, "--epochs=6")

    def test_old_classes_are_learnt_from_the_old_network(self, place, gone, extended):
        model = crepe_dist.load(gone / "run")
        test = open_dataset(place / "away").splits["test"]
        right = model.logits(test.codes(np.arange(len(test)))).argmax(axis=1) == test.labels
        assert right.mean() > 0.8
        assert [each.label for each in model.predict(["a owl 123", "a bee 77"])] == ["owl", "bee"]
        labels = open_targets(gone / "run" / "lesson", "train", 90, "soft", 5, 5)
        shares = labels.shares(np.arange(90))
        np.testing.assert_allclose(shares[:, :3].sum(axis=1), SHARE, atol=1e-4)
        np.testing.assert_allclose(shares[:, 3:].max(axis=1), 1 - SHARE, atol=1e-4)

    def test_the_report_says_what_is_unknown(self, place, gone, extended):
        change = forgetting(open_run(gone / "run"))
        assert change == Unmeasured("run", 30, 1.0)
        (warning,) = [each for each in warnings(open_run(gone / "run"), []) if "forgotten" in each["what"]]
        assert "its 30 test texts could not be scored" in warning["why"]
        assert "no validation split of all classes" in choice(open_run(gone / "run"))

    def test_two_processes_and_a_resumed_run_train_the_same(self, place, gone, extended):
        flags = ("--data=new", f"--extend={place / 'run'}", *REST, *ADAM, "--epochs=6")
        printed = run(command("train", *flags, "--run-dir=twice", processes=2), gone)
        assert "no row of" in printed
        assert "the last epoch, as the validation split lacks classes" in printed
        assert sha256(checkpoint.find(str(gone / "twice"))) == sha256(extended)
        killed = "import os, sys; from crepe_dist.training import recipe; recipe.score_epoch = lambda *_: os._exit(9)"
        words = command("train", *flags, "--run-dir=killed", "--checkpoint.every=1")
        run([sys.executable, "-c", f"{killed}; from crepe_dist.train import main; main()", *words[3:]], gone, code=9)
        labels = sha256(gone / "killed" / "lesson" / "train.targets.npy")
        assert "resuming from step" in run(words, gone)
        assert sha256(gone / "killed" / "lesson" / "train.targets.npy") == labels
        assert sha256(checkpoint.find(str(gone / "killed"))) == sha256(extended)

    @pytest.fixture(scope="class")
    def student(self, place: Path, gone: Path) -> Path:
        return fit(gone, "others", gone / "student", "--extend", place / "run", *REST, *ADAM, "--epochs=4")

    def test_unlabelled_texts_are_labelled_by_the_extended_network(self, gone, student):
        figures = json.loads((gone / "student" / "result.json").read_text())["made"]["unlabelled"]
        assert figures["reported"] == "student"
        assert figures["texts"] == 150
        assert min(figures["shares"].values()) > 0.1  # each has a fifth of the texts

    @pytest.mark.slow
    def test_two_processes_label_the_unlabelled_texts_the_same(self, place, gone, student):
        flags = ("--data=others", f"--extend={place / 'run'}", *REST, *ADAM, "--epochs=4")
        run(command("train", *flags, "--run-dir=two", processes=2), gone)
        assert sha256(checkpoint.find(str(gone / "two"))) == sha256(student)

    def test_labels_of_several_classes_get_answers_where_they_lack_one(self):
        shares = np.array([[0.0, 1, 0, 1], [0, 0, 1, 0]])
        labels = mixed(shares, np.array([[2, -9], [-9, 0]], np.float32), several=True).shares(np.arange(2))
        expected = [[1 / (1 + np.exp(-2)), 1, 0, 1], [1 / (1 + np.exp(9)), 0.5, 1, 0]]
        np.testing.assert_allclose(labels, expected, atol=1e-4)


def test_unlabelled_texts_are_not_used_beside_the_old_data(place, tmp_path, capsys):
    prepared(tmp_path / "new", NEW, 66, 5, unlabelled={"text": ["a hen 1", "a hen 2"]})
    fit(tmp_path, "new", tmp_path / "run", "--extend", place / "run", *REST, *ADAM, "--epochs=1")
    assert "the 2 unlabelled texts of" in capsys.readouterr().out
    assert not (tmp_path / "run" / "first").exists()


def test_a_fall_beyond_a_standard_error_is_significant():
    fallen = Forgetting("run", 100, 0.9, 0.8, 0.03, [("cat", 1.0, 0.7)])
    assert fallen.is_significant
    assert "80.0 % correctly; that run classified 90.0 %. The recall fell most for cat (100.0 % to 70.0 %)" in str(
        fallen
    )
    assert not replace(fallen, after=0.88).is_significant
