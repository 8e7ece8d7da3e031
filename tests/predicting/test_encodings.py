"""Encodings of text files: an explicit one, else the encoding of the model's data, else UTF-8, in every command."""

import codecs
import csv
import json
import random
import warnings

import pytest

import crepe_dist
from crepe_dist.data.dataset import open_dataset
from tests.conftest import QUICK, needs_kernels, train

pytestmark = needs_kernels

WORDS = {"billing": "Gebühr Überweisung", "login": "Schlüssel Paßwort", "parcel": "Päckchen verspätet"}


def rows(count: int, seed: int) -> list[tuple[str, str]]:
    generator, labels = random.Random(seed), [*WORDS]
    return [
        (label := labels[row % len(labels)], f"{generator.choice(WORDS[label].split())} Grüße {seed}.{row}")
        for row in range(count)
    ]


def write(path, encoding: str, some) -> None:
    with path.open("w", encoding=encoding, newline="") as stream:
        csv.writer(stream).writerows([("label", "text"), *some])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model of data in cp1252, and new rows in both encodings."""
    folder = tmp_path_factory.mktemp("place")
    write(folder / "old.csv", "cp1252", rows(240, 1))
    for name, encoding in (("windows.csv", "cp1252"), ("unicode.csv", "utf-8")):
        write(folder / name, encoding, rows(60, 2))
    crepe_dist.prepare(folder / "old.csv", folder / "data", encoding="cp1252", feature_len=48)
    train("--data", folder / "data", "--run-dir", folder / "run", *QUICK)
    return folder


def answers(printed_by, *flags):
    return [json.loads(line) for line in printed_by("predict", *flags, "--format", "jsonl").splitlines()]


def test_the_encoding_of_the_data_is_remembered(place, printed_by, complaint):
    run = place / "run"
    of_windows = answers(printed_by, run, "--file", place / "windows.csv")
    (place / "mark.csv").write_text((place / "unicode.csv").read_text("utf-8"), "utf-8-sig")
    assert answers(printed_by, run, "--file", place / "mark.csv") == of_windows
    (place / "broken.csv").write_bytes(codecs.BOM_UTF8 + (place / "windows.csv").read_bytes())
    said = complaint("predict", run, "--file", place / "broken.csv", cwd=place)
    assert "60 of 60 rows could not be classified" in said
    assert "save the file as UTF-8 with a byte order mark" in said


def test_evaluate_honours_a_flag(place, printed_by, complaint):
    scores = {}
    for name, flags in (("windows.csv", []), ("unicode.csv", ["--encoding", "utf-8"])):
        mistakes, numbers = place / f"{name}.mistakes", place / f"{name}.json"
        flags = [*flags, "--mistakes", mistakes, "--json", numbers]
        printed_by("evaluate", place / "run", place / name, *flags)
        scores[name] = json.loads(numbers.read_text())["loss"]
        assert "Ã" not in mistakes.read_text(encoding="utf-8")
    assert scores["windows.csv"] == scores["unicode.csv"]
    for flag in (["--data"], []):
        said = complaint("evaluate", place / "run", *flag, place / "windows.csv", "--encoding", "utf-8", cwd=place)
        assert "--encoding cp1252" in said


def test_utf_8_that_is_read_otherwise_is_named(place, printed_by):
    doubt = "unicode.csv is valid UTF-8, but is read as cp1252; pass --encoding utf-8"
    for name, *flags in (["predict", place / "run", "--file"], ["evaluate", place / "run"]):
        with pytest.warns(UserWarning, match=doubt):
            printed_by(name, *flags, place / "unicode.csv")
    with pytest.warns(UserWarning, match=doubt):
        printed = printed_by("prepare", place / "unicode.csv", "--encoding", "cp1252", "--out", place / "wrong")
    assert "! unicode.csv is valid UTF-8, but is read as cp1252" in printed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        printed_by("predict", place / "run", "--file", place / "windows.csv")


def test_documents_and_plain_lines(place, printed_by):
    texts = [(folder, text) for folder in ("a", "b") for text in ("süß", "groß")]
    for number, (label, text) in enumerate(texts):
        (place / "folder" / label).mkdir(parents=True, exist_ok=True)
        (place / "folder" / label / f"{number}.txt").write_bytes(text.encode())
    with pytest.warns(UserWarning, match="a is valid UTF-8, but is read as cp1252"):
        printed_by("prepare", place / "folder", "--encoding", "cp1252", "--out", place / "documents")
    (place / "lines.txt").write_bytes(codecs.BOM_UTF8 + "süß\n".encode("cp1252"))
    with pytest.warns(UserWarning, match="lines.txt has bytes that are not utf-8.*save the file as UTF-8"):
        printed_by("predict", place / "run", "--file", place / "lines.txt")


def test_tables_in_memory_have_no_encoding(place, tmp_path):
    labels, texts = zip(*rows(60, 2))
    table = {"text": texts, "label": labels}
    data = open_dataset(place / "data")
    crepe_dist.prepare(table, tmp_path / "data", encoding="cp1252", alphabet=str(place / "data"), test=table)
    assert "Grüße" in (open_dataset(tmp_path / "data").splits["test"].text(0) or "")
    assert data.manifest["reading"]["encoding"] == "cp1252"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 <= crepe_dist.load(place / "run").score(table) <= 1
