"""Self-training with unlabelled texts: words, soft labels, resumed and distributed runs, and refused settings."""

import itertools
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

import crepe_dist
from crepe_dist.data.augmentation import with_typos, with_word_dropout, word_dropout
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.dataset import open_dataset
from crepe_dist.data.targets import PROB_SCALE
from crepe_dist.data.word_hashing import WordHasher, concatenate
from crepe_dist.errors import UserError
from crepe_dist.files.safe_read import sha256
from crepe_dist.model.teacher_ensemble import (
    BAYES,
    common_words,
    fit_logistic_regression,
    iter_teacher_ensembles,
    quantize_unit_vectors,
)
from crepe_dist.training import sentence_encoder
from crepe_dist.training.pseudo_labels import round_to_soft_labels
from tests import conftest
from tests.conftest import QUICK, needs_kernels


def finished(steps):
    """Run a generator to its end, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


NAMES = ("ant", "bee", "cow")
SIZES = [*QUICK, "--precision=float32", "--optimizer=adam", "--state.save-steps=4"]


def table(rows: int, seed: int, *, labels: bool = True, several: bool = False) -> dict[str, list]:
    """Make texts of rare words. A classifier can learn most words only from the unlabelled texts."""
    generator = random.Random(seed)
    classes = [generator.choice(NAMES) for _ in range(rows)]
    words = [[f"{name[generator.randrange(3)]}{generator.randrange(60)}x" for _ in range(7)] for name in classes]
    texts = [" ".join([*each, f"n{row}"]) for row, each in enumerate(words)]
    if not labels:
        return {"text": texts}
    return {"text": texts, "label": [[name] for name in classes] if several else classes}


def prepared(folder: Path, *, several: bool = False) -> Path:
    crepe_dist.prepare(
        table(60, 1, several=several),
        folder / "data",
        test=table(60, 2, several=several),
        validation=table(210, 3, several=several),
        unlabelled=table(300, 4, labels=False),
        labels="multilabel" if several else "single",
        feature_len=48,
    )
    return folder


def train(folder: Path, name: str, *more: object, **how: Any) -> str:
    return conftest.train("--data", "data", "--run-dir", name, *SIZES, *more, cwd=folder, **how)


def digests(run_dir: Path) -> list[str]:
    """Return the checksums of the checkpoints of the run and of its supervised model, and of the pseudo labels."""
    reported = [
        part / json.loads((part / "result.json").read_text())["checkpoint"]
        for part in (run_dir, run_dir / "supervised")
    ]
    return [sha256(file) for file in [*reported, *sorted(run_dir.glob("pseudo_labels/*"))]]


def unlabelled(run_dir: Path) -> dict:
    return json.loads((run_dir / "result.json").read_text())["provenance"]["unlabelled"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared data set ``data``, and its finished run ``run``, whose saved states are retained."""
    folder = prepared(tmp_path_factory.mktemp("teaching"))
    train(folder, "run", keeps_states=True)
    return folder


class TestWords:
    TEXTS = ("The cat, the CAT's 2 hats!", "", "  one", "Straße Ünder under", "x" * 50, "a-b a b")

    @pytest.mark.parametrize("case", ["fold", "notebook"])
    def test_are_those_of_a_regular_expression(self, case):
        encoding = CharEncoder(case, 40)
        found = WordHasher(encoding).find(encoding.encode(self.TEXTS))
        for row, text in enumerate(self.TEXTS):
            words = re.findall(r"[^\W_]+", encoding.decode(encoding.encode([text])[0]).lower())
            assert found.starts[row + 1] - found.starts[row] == len({*words, *itertools.pairwise(words)})

    def test_are_equal_wherever_they_stand_and_in_either_case(self):
        encoding = CharEncoder("fold", 40)
        found = WordHasher(encoding).find(encoding.encode(["Red house", "a house is RED", "green"]))
        first, second, third = (set(found.words[slice(*found.starts[row : row + 2])]) for row in range(3))
        assert len(first & second) == 2
        assert not third & (first | second)

    def test_rare_characters_and_those_without_spaces_are_words(self):
        encoding = CharEncoder("fold", 20, alphabet="ab 中", two_id_characters="京北東海")
        found = WordHasher(encoding).find(encoding.encode(["中中b", "北京 ab", "京北"]))
        assert np.diff(found.starts).tolist() == [4, 5, 3]  # 中, b, 中中, 中b; 北, 京, ab and two pairs; 京, 北, 京北
        both = np.intersect1d(found.words[4:9], found.words[9:])
        assert len(both) == 2  # 北 and 京, but not their order

    def test_sums_over_words_are_those_of_a_matrix(self):
        generator = np.random.default_rng(1)
        finder, encoding = WordHasher(CharEncoder("fold", 60)), CharEncoder("fold", 60)
        codes = encoding.encode(table(50, 5)["text"])
        words = concatenate([finder.find(codes[:20]), finder.find(codes[20:])])
        whole = finder.find(codes)
        assert all(np.array_equal(getattr(words, name), getattr(whole, name)) for name in ("starts", "words"))
        words = common_words({"train": whole, "unlabelled": whole})["train"]
        matrix = np.zeros((len(words), words.size))
        matrix[np.repeat(np.arange(50), np.diff(words.starts)), words.words] = 1
        shares = generator.integers(0, PROB_SCALE, (50, 3)).astype(float)
        assert np.array_equal(words.counts(shares), matrix.T @ shares)
        odds = generator.integers(-99999, 99999, (words.size, 3)).astype(float)
        assert np.array_equal(words.sums(odds), matrix @ odds)


class TestWordDropout:
    TEXTS = ("one two three four", "", "  .", "alone", "a-b, 猫犬 ünder", " ".join(map(str, range(20))))

    @pytest.mark.parametrize("case", ["fold", "notebook"])
    def test_leaves_out_words_with_the_character_after_each(self, case):
        encoding = CharEncoder(case, 60)
        finder, codes = WordHasher(encoding), encoding.encode([" ".join("abcdefghijklmnopqrst")] * 2000)
        fewer = word_dropout(codes, 0.6, np.arange(2000, dtype=np.uint64), finder)
        words = [encoding.decode(row).strip().split(" ") for row in fewer]
        # The words keep their order, with one space between them.
        assert all(row == sorted(set(row)) and len(row[0]) == 1 for row in words)
        counts = np.array([len(row) for row in words])
        assert counts.mean() == pytest.approx(0.7 * 20, rel=0.02)
        assert (counts == 20).sum() == pytest.approx(2000 / 0.6 / 21, rel=0.3)  # rates are uniform from 0 to 0.6

    @pytest.mark.parametrize("rate", [0.5, 1.0])
    def test_a_document_keeps_a_word(self, rate):
        encoding = CharEncoder(feature_len=60, alphabet="0123456789abcdefghijklmnopqrstuvwxyzü ,-.犬猫")
        finder, codes = WordHasher(encoding), encoding.encode(self.TEXTS)
        for key in range(20):
            fewer = word_dropout(codes, rate, np.full(len(codes), key, np.uint64), finder)
            assert np.array_equal(fewer[1:4], codes[1:4])  # Texts of at most one word.
            assert all(len(finder.find(row[None]).words) for row in fewer[[0, 3, 4, 5]])

    @needs_kernels
    def test_words_depend_on_the_epoch_and_the_row_alone(self, folder):
        data = open_dataset(folder / "data")
        train = data.splits["train"]
        dropped = with_word_dropout(train, 0.3, data.encoder)
        rows = np.arange(len(train))
        whole = dropped.for_epoch(1, 2).char_ids(rows)
        assert np.array_equal(dropped.for_epoch(1, 2).char_ids(rows[5:9]), whole[5:9])
        assert not np.array_equal(dropped.for_epoch(1, 3).char_ids(rows), whole)
        assert not np.array_equal(dropped.for_epoch(2, 2).char_ids(rows), whole)
        assert np.array_equal(dropped.char_ids(rows), train.char_ids(rows))
        assert not np.array_equal(with_typos(dropped.for_epoch(1, 2), 0.1).char_ids(rows), whole)


class TestTeacher:
    def _teachers(self, network: float, *encoders: float):
        """Return teachers from a network and encoders of the given accuracies, and the true classes."""
        sizes = (("train", 60, 1), ("validation", 90, 3), ("unlabelled", 300, 4))
        tables = {name: table(rows, seed) for name, rows, seed in sizes}
        encoding, generator = CharEncoder(feature_len=48), np.random.default_rng(0)
        words = {name: WordHasher(encoding).find(encoding.encode(each["text"])) for name, each in tables.items()}
        truth = {
            name: np.array([NAMES.index(label) for label in each["label"]], np.int32) for name, each in tables.items()
        }

        def guesses(right: float) -> dict:
            return {
                name: (right * np.eye(3)[each] + generator.normal(size=(len(each), 3))).astype(np.float32)
                for name, each in truth.items()
            }

        shares, labels = np.eye(3)[truth["train"]], truth["validation"]
        members: dict[str, Any] = {
            "network": {name: each for name, each in guesses(network).items() if name != "train"}
        }
        for right in encoders:
            vectors = {name: quantize_unit_vectors(each) for name, each in guesses(right).items()}
            members[f"encoder {right}"] = finished(fit_logistic_regression(vectors, shares, labels))
        return list(iter_teacher_ensembles(common_words(words), shares, labels, members)), truth

    def test_network_and_words_teach_each_other(self):
        found, truth = self._teachers(1.0)
        right = [float((each.probabilities.argmax(axis=1) == truth["unlabelled"]).mean()) for each in found]
        assert len(found) > 1
        assert right[-1] > right[0] + 0.1
        assert all(np.diff([each.figures["loss"] for each in found]) < 0)

    def test_a_member_is_joined_if_it_helps(self):
        found, _ = self._teachers(0.5, 0.0, 3.0)
        assert list(found[-1].figures["members"]) == ["network", "encoder 3.0", BAYES]
        assert all(np.diff([each.figures["loss"] for each in found]) < 0)

    def test_the_sums_of_a_regression_have_no_order(self):
        labels = np.arange(500, dtype=np.int32) % 3
        vectors = quantize_unit_vectors(np.eye(3, 20)[labels] + np.random.default_rng(0).normal(size=(500, 20)))
        first, second = (
            finished(
                fit_logistic_regression(
                    {"train": vectors[::step], "validation": vectors}, np.eye(3)[labels[::step]], labels
                )
            )
            for step in (1, -1)
        )
        assert np.array_equal(first["validation"], second["validation"])
        assert (first["validation"].argmax(axis=1) == labels).mean() > 0.5

    def test_rounded_labels_sum_to_one(self):
        probabilities = np.random.default_rng(3).dirichlet(np.full(20, 0.1), 50)
        targets = round_to_soft_labels(probabilities)
        assert (targets.stored[..., 1].sum(axis=1, dtype=int) == PROB_SCALE).all()
        assert np.array_equal(targets.stored[:, 0, 0], probabilities.argmax(axis=1))


class TestRun:
    @needs_kernels
    def test_the_student_is_better_and_is_reported(self, folder):
        figures = unlabelled(folder / "run")
        assert figures["reported"] == "student"
        assert figures["student"]["loss"] < figures["supervised"]["loss"]
        assert figures["texts"] == 300
        assert sum(figures["shares"].values()) == pytest.approx(1)

    @needs_kernels
    def test_two_processes_give_the_same_bits(self, folder):
        train(folder, "two", processes=2)
        assert digests(folder / "two") == digests(folder / "run")

    @needs_kernels
    def test_an_encoder_joins_the_teacher(self, folder):
        texts = sentence_encoder.decode_texts(open_dataset(folder / "data"))
        vectors = [np.bincount([NAMES.index(name) for name in re.findall("ant|bee|cow", text)] + [3]) for text in texts]
        np.save(folder / "vectors.npy", np.array(vectors, np.float32))
        for processes in (1, 2):
            train(folder, f"encoder-{processes}", "--sentence-encoder=vectors.npy", processes=processes)
        assert "the encoder vectors.npy" in unlabelled(folder / "encoder-1")["teacher"]["members"]
        assert digests(folder / "encoder-1") == digests(folder / "encoder-2") != digests(folder / "run")

    @needs_kernels
    @pytest.mark.parametrize("lost", ["student", "pseudo labels", "supervised"])
    def test_a_killed_run_resumes_to_the_same_bits(self, folder, lost):
        again = folder / f"killed-{lost}"
        shutil.copytree(folder / "run", again)
        (again / "result.json").unlink()
        if lost == "student":  # Resume from the second newest state.
            shutil.rmtree(max((again / "state").iterdir()))
        else:
            shutil.rmtree(again / "state")
            shutil.rmtree(again / "checkpoints")
            (again / "pseudo_labels" / "pseudo_labels.json").unlink()
        if lost == "supervised":
            (again / "supervised" / "result.json").unlink()
            shutil.rmtree(max((again / "supervised" / "state").iterdir()))
        printed = train(folder, again.name)
        assert ("resuming" in printed) == (lost != "pseudo labels")
        assert digests(again) == digests(folder / "run")

    @needs_kernels
    def test_a_student_that_is_not_better_gives_way_to_the_first_network(self, folder):
        train(folder, "worse", "--learning-rate=0.000001", "--epochs=1")
        figures = unlabelled(folder / "worse")
        assert figures["reported"] == "supervised model"
        (reported,) = (folder / "worse" / "supervised" / "checkpoints").glob("*.params")
        assert crepe_dist.load(folder / "worse").predict(["a1x a2x"])
        result = json.loads((folder / "worse" / "result.json").read_text())
        assert Path(result["checkpoint"]).name == reported.name
        assert sha256(folder / "worse" / result["checkpoint"]) == sha256(reported)
        assert [path.name for path in (folder / "worse" / "checkpoints").glob("*.params")] == [reported.name]

    @needs_kernels
    def test_can_be_turned_off(self, folder):
        assert "teacher" not in train(folder, "off", "--unlabelled=false")
        assert not (folder / "off" / "supervised").exists()

    @pytest.mark.slow
    def test_several_labels(self, tmp_path):
        prepared(tmp_path, several=True)
        train(tmp_path, "one")
        train(tmp_path, "two", processes=2)
        assert digests(tmp_path / "one") == digests(tmp_path / "two")
        assert unlabelled(tmp_path / "one")["teacher"] == {"members": {"the supervised model": 1.0}}

    def test_a_validation_split_is_needed(self, tmp_path, complaint):
        crepe_dist.prepare(
            table(60, 1), tmp_path / "data", unlabelled=table(9, 4, labels=False), test=table(9, 2), validation=0
        )
        assert "unlabelled texts need data with a validation split" in complaint(
            "train", "--data", "data", cwd=tmp_path
        )

    @needs_kernels
    def test_a_damaged_lesson_is_refused(self, folder):
        shutil.copytree(folder / "run", folder / "damaged")
        (folder / "damaged" / "result.json").unlink()
        with (folder / "damaged" / "pseudo_labels" / "unlabelled.targets.npy").open("r+b") as stream:
            stream.seek(200)
            stream.write(b"\1\2\3")
        with pytest.raises(UserError, match="does not match its checksum"):
            train(folder, "damaged")


@needs_kernels
class TestEncoder:
    def test_a_text_is_encoded_once(self, folder, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        data, encode = open_dataset(folder / "data"), Mock(side_effect=lambda text: np.array([len(text), 9.0]))
        monkeypatch.setattr(sentence_encoder, "load_sentence_encoder", lambda *_: encode)
        first, second = (finished(sentence_encoder.encode_dataset("NAME", data, print)) for _ in range(2))
        assert {name: len(each) for name, each in first.items()} == {"train": 60, "validation": 210, "unlabelled": 300}
        assert all(np.array_equal(first[name], second[name]) for name in first)
        # Two more calls identify the model.
        assert encode.call_count == len(set(sentence_encoder.decode_texts(data))) + 2

    def test_what_cannot_be_used_is_refused(self, folder, complaint):
        np.save(folder / "few.npy", np.zeros((9, 2)))
        rows = "float64 [9, 2], not a row of numbers for each of {'train': 60, 'validation': 210, 'unlabelled': 300}"
        for name, said in {"few.npy": rows, "NAME": "no such encoder", "model2vec:X": "pip install model2vec"}.items():
            assert said in complaint("train", "--data", "data", "--sentence-encoder", name, cwd=folder)
