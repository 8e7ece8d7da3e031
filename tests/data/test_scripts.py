"""Texts in non-Latin scripts, from file to prediction: data and checkpoints carry their alphabet."""

from __future__ import annotations

import json
import random
import shlex

import pytest

import crepe_dist.train
from crepe_dist.data.dataset import open_dataset
from crepe_dist.settings import config
from tests.conftest import NGRAMS, PAPER, QUICK, command, run

WORDS = {
    "αθλητισμός": ["ποδόσφαιρο", "ομάδα", "νίκη", "футбол", "команда", "гол"],
    "кухня": ["ψωμί", "τυρί", "ελιά", "хлеб", "сыр", "вино"],
}
FILLING = ["και", "στην", "Ο", "и", "это", "Ещё", "один"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Greek and Russian texts, prepared as a user would, and a run of each network on them."""
    folder = tmp_path_factory.mktemp("scripts")
    generator = random.Random(1)
    with (folder / "letters.csv").open("w", encoding="utf-8") as stream:
        for row in range(600):
            label = list(WORDS)[row % 2]
            words = [generator.choice(WORDS[label] if n % 3 else FILLING) for n in range(generator.randint(5, 16))]
            stream.write(f"{label},{' '.join(words).capitalize()}\n")
    printed = run(command("prepare", "letters.csv", "--out", "letters"), folder)
    assert "No warnings." in printed
    for network, flags in (("paper", PAPER), ("ngrams", (*NGRAMS, "--buckets=null"))):
        given = ["--data", str(folder / "letters"), "--run-dir", str(folder / network)]
        crepe_dist.train.train(config.parse([*given, *QUICK, *flags, "--optimizer=adam", "--batch-size=16"]))
    return folder


@pytest.mark.parametrize("network", ["paper", "ngrams"])
def test_a_checkpoint_reads_what_its_data_did(place, network):
    predictor, data = crepe_dist.load(place / network), open_dataset(place / "letters")
    assert predictor.encoding == data.encoding
    assert set(predictor.encoding.alphabet) == set("".join(sum(WORDS.values(), FILLING)).lower()) | {" "}
    texts = ["Η ΟΜΆΔΑ και ποδόσφαιρο", "Сыр и вино", "日本"]
    sport, food, unknown = predictor.predict(texts)
    assert (sport.read, food.read, unknown.read) == (19, 8, 0)
    if network == "ngrams":  # convolutions learn nothing in so few steps
        assert [sport.label, food.label] == list(WORDS)
        explained = predictor.explain("Сыр и вино")
        assert all(word.score > 0 for word in explained.words if word.text != "и")


def test_other_data_can_be_given_a_checkpoint_s_alphabet(place, complaint):
    run(command("prepare", "letters.csv", "--out", "latin", "--alphabet", "usual"), place)
    assert "different: encoding" in complaint("evaluate", "ngrams", "--data", "latin", cwd=place)
    flags = open_dataset(place / "letters").encoding.flags(place / "letters")
    run(command("prepare", "letters.csv", "--out", "again", "--seed", 3, *shlex.split(flags)), place)
    assert "accuracy" in run(command("evaluate", "ngrams", "--data", "again", "--json", "scores.json"), place)
    assert json.loads((place / "scores.json").read_text())["accuracy"] > 0.9
