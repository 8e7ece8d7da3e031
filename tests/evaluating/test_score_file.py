"""Scoring of labelled files: they are read as the data of the run were, and without rows that it has learnt from."""

import csv
import gzip
import json
import random
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pandas as pd
import pytest

import crepe_dist.train
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.evaluating import scoring
from crepe_dist.evaluating.rows import load_eval_rows
from crepe_dist.evaluating.scoring import evaluate_on
from crepe_dist.exporting.compression import compress_to
from crepe_dist.exporting.exporter import export
from crepe_dist.settings import config
from tests.conftest import QUICK, command, needs_kernels, run, write_frame, write_rows
from tests.helpers.programs import supervised_command

WORDS = {"billing": "invoice refund charge", "login": "password token session", "parcel": "courier depot delivery"}
HEADER = ("Nr", "Queue", "Subject", "Body")


def tickets(count: int, seed: int, *, labels=tuple(WORDS), first: int = 0) -> list[tuple[str, str, str, str]]:
    """Return rows of an export of tickets: number, queue, subject, and a body in HTML."""
    generator = random.Random(seed)
    rows = []
    for row in range(count):
        label = labels[row % len(labels)]
        word = generator.choice(WORDS.get(label, label).split())
        rows.append((f"T-{first + row}", label, f"Über {word}", f"<p>my {word} &amp; case {seed}.{row}</p>"))
    return rows


def write(path: Path, rows, header=HEADER) -> Path:
    return write_rows(path, [header, *rows] if header else rows)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run and a new file. The data of the run have ids, titles, HTML and their own alphabet."""
    folder = tmp_path_factory.mktemp("place")
    write(folder / "old.csv", tickets(300, 1, labels=("billing", "login", "parcel")))
    write(folder / "march.csv", tickets(90, 2, first=1000))
    columns: dict[str, Any] = {"id": "Nr", "label": "Queue", "text": ["Subject", "Body"]}
    crepe_dist.prepare(
        folder / "old.csv", folder / "data", **columns, strip_html=True, alphabet="auto", feature_len=48,
        test=folder / "march.csv", validation=0.1,
    )  # fmt: skip
    train(folder)
    return folder


def train(folder: Path, *more: str) -> None:
    crepe_dist.train.train(config.parse([f"--data={folder / 'data'}", f"--run-dir={folder / 'run'}", *QUICK, *more]))


def scored(folder: Path, source, tmp_path: Path, *, model: str = "run", **more):
    predictor = crepe_dist.load(folder / model)
    rows = load_eval_rows(source, predictor, Path(mkdtemp(dir=tmp_path)), **more)
    return rows, evaluate_on(rows.dataset.splits[rows.split], predictor)


def same(rows, test) -> None:
    """Check that rows have the same character ids as the rows of a test split."""
    split, every = rows.dataset.splits["test"], np.arange(len(test))
    np.testing.assert_array_equal(split.char_ids(every), test.char_ids(every))
    np.testing.assert_array_equal(split.labels, test.labels)
    np.testing.assert_array_equal(split.targets.label_probs(every), test.targets.label_probs(every))


@needs_kernels
@pytest.mark.parametrize("name", ["march.csv", "march.csv.gz", "march.parquet", "several"])
def test_a_file_is_read_as_the_data_of_the_run(place, tmp_path, name):
    given = list(csv.reader((place / "march.csv").open(encoding="utf-8", newline="")))[1:]
    frame, source = pd.DataFrame(given, columns=list(HEADER)), tmp_path / name
    if name == "several":
        source.mkdir()
        write(source / "1.csv", given[:40])
        write(source / "2.csv", given[40:])
    elif name.endswith("gz"):
        source.write_bytes(gzip.compress((place / "march.csv").read_bytes()))
    else:
        write_frame(frame, source)
    rows, scores = scored(place, str(source), tmp_path)
    same(rows, open_dataset(place / "data").splits["test"])
    result = json.loads((place / "run" / "result.json").read_text())
    assert scores.accuracy == result["test_accuracy"]
    assert scores.loss == pytest.approx(result["test_loss"], abs=1e-6)
    assert rows.left_out() == {"unusable": {}, "unknown_labels": {}, "seen": {}}
    assert rows.notes() == []
    if name == "march.csv":
        assert crepe_dist.load(place / "run").score(frame) == scores.accuracy
        assert str(rows.dataset.origin("test", 3)) == "march.csv:5 (T-1003)"
        assert rows.dataset.text("test", 3).startswith("Über ")


@needs_kernels
def test_a_pipe_and_a_folder_of_texts(place, tmp_path):
    piped = (place / "march.csv").read_text(encoding="utf-8")
    assert " on standard input, 90 documents" in run(command("evaluate", place / "run", "-"), place, stdin=piped)
    for number, label, subject, body in tickets(30, 2):
        (tmp_path / "texts" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / label / f"{number}.txt").write_text(subject + body)
    rows, scores = scored(place, str(tmp_path / "texts"), tmp_path)
    assert (scores.documents, rows.unknown, rows.invalid) == (30, {}, {})


@needs_kernels
@pytest.mark.parametrize("kind", ["multilabel", "soft", "bare", "fasttext"])
def test_every_kind_of_labels(tmp_path, kind):
    generator = np.random.default_rng(3)
    names = list(WORDS)
    options: dict[str, Any] = {}
    rows: Any
    header: Any
    for part, count in (("train", 200), ("march", 60)):
        masks = generator.random((count, 3)) < 0.45
        masks[np.arange(count), generator.integers(3, size=count)] = True
        first = [names[mask.argmax()] for mask in masks]
        texts = [" ".join(WORDS[name].split()[row % 3] for name, has in zip(names, mask) if has) + f" {part} {row}"
                 for row, mask in enumerate(masks)]  # fmt: skip
        if kind == "multilabel":
            rows = [(json.dumps(np.array(names)[mask].tolist()), text) for mask, text in zip(masks, texts)]
            options, header = {"labels": "multilabel"}, ("tags", "text")
        elif kind == "soft":
            rows = [(text, *(mask / mask.sum()).round(3)) for mask, text in zip(masks, texts)]
            options, header = {"label_columns": names, "labels": "soft"}, ("text", *names)
        elif kind == "bare":
            rows, header = [(row, text, label) for row, (label, text) in enumerate(zip(first, texts))], None
            options = {"label": "3", "text": "2"}
        else:
            (tmp_path / f"{part}.txt").write_text("".join(f"__label__{n} {t}\n" for n, t in zip(first, texts)))
            continue
        write(tmp_path / f"{part}.csv", rows, header)
    ending = "txt" if kind == "fasttext" else "csv"
    train_file, march = (tmp_path / f"{part}.{ending}" for part in ("train", "march"))
    crepe_dist.prepare(train_file, tmp_path / "data", test=march, validation=0.1, feature_len=48, **options)
    train(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    moved = march.rename(tmp_path / "elsewhere" / march.name)
    rows, scores = scored(tmp_path, str(moved), tmp_path)
    same(rows, open_dataset(tmp_path / "data").splits["test"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (rows.unknown, rows.invalid, scores.accuracy) == ({}, {}, result["test_accuracy"])


@needs_kernels
def test_rows_that_are_not_scored_are_counted(place, tmp_path, printed_by):
    """Rows with unknown labels and invalid rows are counted apart from mistakes and from rows of the training split."""
    data = open_dataset(place / "data")
    old = list(csv.reader((place / "old.csv").open(encoding="utf-8", newline="")))
    lines = {int(line) for line in data.splits["train"].source_rows[:, 1]}
    trained = [old[line - 1] for line in sorted(lines)][:20]
    new = tickets(30, 7)
    strange = [("1", "Returns", "x", f"send back {row}") for row in range(7)]
    unusable = [("1", "", "x", "y"), ("1", "login", "", " ")]
    write(tmp_path / "mixed.csv", [*new, *trained, *strange, ("1", "Spam", "x", "win"), *unusable])
    files = ("--html", tmp_path / "page.html", "--mistakes", tmp_path / "mistakes.csv", "--typos=0.1")
    printed_by("evaluate", "run", tmp_path / "mixed.csv", "--json", tmp_path / "one.json", *files, cwd=place)
    scores = json.loads((tmp_path / "one.json").read_text())
    assert scores["documents"] == 30
    assert scores["left_out"] == {
        "unusable": {"no label": 1, "empty text": 1},
        "unknown_labels": {"Returns": 7, "Spam": 1},
        "seen": {"train split": 20},
    }
    alone, by_itself = scored(place, str(write(tmp_path / "new.csv", new)), tmp_path)
    assert (by_itself.accuracy, by_itself.documents) == (scores["accuracy"], 30)
    assert alone.left_out() == {"unusable": {}, "unknown_labels": {}, "seen": {}}
    assert "Returns" in (tmp_path / "page.html").read_text()
    places = [(each["file"], int(each["line"])) for each in csv.DictReader((tmp_path / "mistakes.csv").open())]
    assert len(places) == 30 - sum(scores["confusion"][i][i] for i in range(3))
    assert all(name == "mixed.csv" and 2 <= line <= 31 for name, line in places)
    # In two processes, the numbers are the same.
    flags = ("--json", tmp_path / "two.json", "--typos=0.1")
    printed = run(supervised_command("evaluate", "run", tmp_path / "mixed.csv", *flags, processes=2), place)
    assert printed.count("Returns (7)") == 1
    two = json.loads((tmp_path / "two.json").read_text())
    assert two.pop("loss") == pytest.approx(scores.pop("loss"), abs=1e-6)
    assert (two["confusion"], two["left_out"]) == (scores["confusion"], scores["left_out"])


@needs_kernels
def test_other_data_are_scored_without_what_the_run_has_learnt(place, tmp_path):
    """With another seed, most rows of the test split are in the training split of the run."""
    options: dict[str, Any] = {"id": "Nr", "label": "Queue", "text": ["Subject", "Body"]}
    options |= {"strip_html": True, "alphabet": place / "data", "feature_len": 48}
    crepe_dist.prepare([place / "old.csv", place / "march.csv"], tmp_path / "again", seed=5, test=0.4, **options)
    again, own = open_dataset(tmp_path / "again"), open_dataset(place / "data")
    known = np.isin(again.splits["test"].source_rows[:, 2], own.splits["train"].source_rows[:, 2])
    rows, scores = scored(place, str(tmp_path / "again"), tmp_path)
    assert rows.seen["train split"] == known.sum() > 60
    assert sum(rows.seen.values()) + scores.documents == len(again.splits["test"])
    left, every = (each.splits["test"].source_rows[:, 2].tolist() for each in (rows.dataset, again))
    assert not np.isin(left, own.splits["train"].source_rows[:, 2]).any()
    assert rows.dataset.text("test", 0) == again.splits["test"].text(every.index(left[0]))
    # The splits of its own data are scored as they are.
    for split in ("train", "validation", "test"):
        rows, scores = scored(place, str(place / "data"), tmp_path, split=split)
        assert (rows.seen, scores.documents) == ({}, len(own.splits[split]))
    # No row is left.
    with pytest.raises(UserError, match=r"none of the 300 rows of .*old\.csv can be scored"):
        scored(place, str(place / "old.csv"), tmp_path)


@needs_kernels
@pytest.mark.parametrize("small", [False, True])
def test_an_exported_model_knows_how_to_read(place, tmp_path, small):
    predictor = crepe_dist.load(place / "run")
    if small:
        compress_to(predictor, 200_000, tmp_path / "model", place / "data")
    else:
        export(predictor, "crepe", tmp_path / "model", ["a text"])
    rows, _ = scored(tmp_path, str(place / "march.csv"), tmp_path, model="model")
    same(rows, open_dataset(place / "data").splits["test"])
    assert "not in the folder of its run" in rows.notes()[0]


@needs_kernels
def test_the_columns_are_those_of_the_run_and_are_detected_only_where_it_had_none(tmp_path):
    rows = [(queue, body) for _, queue, _, body in tickets(60, 3)]
    crepe_dist.prepare(write(tmp_path / "old.csv", rows, ("Queue", "text")), tmp_path / "data", feature_len=48)
    train(tmp_path)
    more = [("x", *row) for row in rows]  # `prepare` would choose this column as the label.
    write(tmp_path / "more.csv", more, ("label", "Queue", "text"))
    write(tmp_path / "bare.csv", rows, None)
    write(tmp_path / "usual.csv", rows, ("label", "text"))
    predictor = crepe_dist.load(tmp_path / "run")
    about = {**predictor.metadata, "data": {}}
    for name in ("more.csv", "bare.csv", "usual.csv"):
        found = load_eval_rows(
            str(tmp_path / name), replace(predictor, metadata=about, path=Path("x.params")), Path(mkdtemp(dir=tmp_path))
        )
        assert (found.unknown, len(found.dataset.splits["test"])) == ({}, 60)


@needs_kernels
def test_messages_can_be_followed(place, tmp_path, complaint, printed_by):
    write(tmp_path / "march.csv", tickets(40, 11))
    shutil.copytree(place / "run", tmp_path / "runs" / "one")
    assert "on march.csv, 40 documents" in printed_by("evaluate", "march.csv", cwd=tmp_path)  # of the newest run
    said = complaint("evaluate", "march.csv", "runs/one", cwd=tmp_path)
    assert "march.csv contains texts, not a model" in said
    # A data set that was prepared otherwise.
    crepe_dist.prepare(tmp_path / "march.csv", tmp_path / "data", label="Queue", text="Body")
    said = complaint("evaluate", "runs/one", "--data", "data", cwd=tmp_path)
    assert "different: encoding" in said
    words = shlex.split(said.rpartition("read as those were: ")[2].partition(" evaluate ")[2])
    assert "accuracy" in printed_by("evaluate", *words)
    said = complaint("evaluate", "runs/one", "march.csv", "--split", "validation", cwd=tmp_path)
    assert "march.csv has no validation split" in said


@needs_kernels
def test_many_classes_are_listed_by_their_confusions(monkeypatch, tmp_path, printed_by):
    """A matrix of 2,000 classes would take 30 MB on a terminal, and 40 MB in JSON."""
    rows = [
        (f"T-{row}", f"class {row % 120}", "about", f"word{row % 120 if row % 5 else row % 7}") for row in range(1200)
    ]
    write(tmp_path / "many.csv", rows)
    columns: dict[str, Any] = {"id": "Nr", "label": "Queue", "text": ["Subject", "Body"]}
    crepe_dist.prepare(tmp_path / "many.csv", tmp_path / "data", **columns, test=0.5, feature_len=48)
    train(tmp_path)
    printed = printed_by("evaluate", tmp_path / "run", "--json", "all.json", cwd=tmp_path)
    assert "confusion matrix" not in printed
    found = json.loads((tmp_path / "all.json").read_text())
    wrong = np.array(found["confusion"])
    np.fill_diagonal(wrong, 0)
    true, predicted = divmod(int(wrong.argmax()), 120)
    assert "most frequent confusions\n" in printed
    first = printed.split("most frequent confusions\n")[1].splitlines()[1].split()
    names = found["classes"]
    assert " ".join(first) == f"{names[true]} {names[predicted]} {wrong.max()}"
    monkeypatch.setattr(scoring, "MAX_STORED_CLASSES", 100)
    printed_by("evaluate", tmp_path / "run", "--json", "cells.json", "--html", "all.html", cwd=tmp_path)
    cells = json.loads((tmp_path / "cells.json").read_text())
    assert "confusion" not in cells
    matrix = np.zeros((120, 120), np.int64)
    for true, predicted, documents in cells["confusion_cells"]:
        matrix[true, predicted] = documents
    assert matrix.tolist() == found["confusion"]


@needs_kernels
@pytest.mark.parametrize("format", [None, "csv"])
def test_the_labels_of_fasttext_lines_are_detected_whatever_the_data_were(place, tmp_path, format):
    predictor = crepe_dist.load(place / "run")
    predictor.metadata["reading"]["format"] = format
    labels = [predictor.classes[row % 3] for row in range(30)]
    lines = [f"__label__{label} my {WORDS[label].split()[0]}, case {row}\n" for row, label in enumerate(labels)]
    (tmp_path / "new.txt").write_text("".join(lines))
    rows = load_eval_rows(str(tmp_path / "new.txt"), predictor, tmp_path / "rows")
    split = rows.dataset.splits["test"]
    assert [predictor.classes[label] for label in split.labels] == labels
    assert "label" not in rows.dataset.text("test", 0)
