"""Texts in non-Latin scripts, from file to prediction. Data sets and checkpoints contain their alphabet."""

import json
import random
import shlex

import pytest

import crepe_dist
from crepe_dist.data.characters import CAPITAL, CAPITALS
from crepe_dist.data.dataset import open_dataset
from tests.conftest import NGRAMS, PAPER, QUICK, needs_kernels, train

pytestmark = needs_kernels

WORDS = {
    "αθλητισμός": ["ποδόσφαιρο", "ομάδα", "νίκη", "футбол", "команда", "гол"],
    "кухня": ["ψωμί", "τυρί", "ελιά", "хлеб", "сыр", "вино"],
}
FILLING = ["και", "στην", "Ο", "и", "это", "Ещё", "один"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder with Greek and Russian texts, prepared with the defaults, and a run of each network on them."""
    folder = tmp_path_factory.mktemp("scripts")
    generator = random.Random(1)
    with (folder / "letters.csv").open("w", encoding="utf-8") as stream:
        for row in range(600):
            label = list(WORDS)[row % 2]
            words = [generator.choice(WORDS[label] if n % 3 else FILLING) for n in range(generator.randint(5, 16))]
            stream.write(f"{label},{' '.join(words).capitalize()}\n")
    assert crepe_dist.prepare(folder / "letters.csv", folder / "letters")["warnings"] == []
    for network, flags in (("paper", PAPER), ("ngrams", (*NGRAMS, "--buckets=null"))):
        learning = ("--optimizer=adam", "--batch-size=16")
        train("--data=letters", f"--run-dir={network}", *QUICK, *flags, *learning, cwd=folder)
    return folder


@pytest.mark.parametrize("network", ["paper", "ngrams"])
def test_a_checkpoint_reads_what_its_data_did(place, network):
    predictor, data = crepe_dist.load(place / network), open_dataset(place / "letters")
    assert predictor.encoding == data.encoder
    letters = set("".join(sum(WORDS.values(), FILLING)).lower())
    assert set(predictor.encoding.alphabet) - {CAPITAL, CAPITALS} == letters | {" "}
    texts = ["Η ΟΜΆΔΑ και ποδόσφαιρο", "Сыр и вино", "日本"]
    sport, food, unknown = predictor.predict(texts)
    assert (sport.characters_read, food.characters_read, unknown.characters_read) == (19, 8, 0)
    if network == "ngrams":  # convolutions learn nothing in so few steps
        assert [sport.label, food.label] == list(WORDS)
        explained = predictor.explain("Сыр и вино")
        assert all(word.score > 0 for word in explained.words if word.text != "и")


def test_other_data_can_be_given_a_checkpoint_s_alphabet(place, complaint, printed_by):
    crepe_dist.prepare(place / "letters.csv", place / "latin", alphabet="standard")
    assert "different: encoding" in complaint("evaluate", "ngrams", "--data", "latin", cwd=place)
    flags = open_dataset(place / "letters").encoder.flags(place / "letters")
    printed_by("prepare", "letters.csv", "--out", "again", "--seed", 3, *shlex.split(flags))
    assert "accuracy" in printed_by("evaluate", "ngrams", "--data", "again", "--json", "scores.json")
    assert json.loads((place / "scores.json").read_text())["accuracy"] > 0.9
