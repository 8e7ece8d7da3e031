"""benchmarks/learning_curves.py: nested subsets, resuming, errors; the models themselves are tested elsewhere."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from crepe_dist.data.dataset import open_dataset, verify
from crepe_dist.errors import UserError

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def subset(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("subset")


@pytest.fixture
def curves(monkeypatch, tmp_path, data_with_validation):
    """Runs the script in this process, with models that only note what they are given; returns the notes."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("learning_curves")
    monkeypatch.chdir(tmp_path)

    def run(*given, fail_at=None):
        measured: list[tuple[object, ...]] = []

        def measure(data, model, seed):
            if len(measured) == fail_at:
                raise KeyboardInterrupt
            measured.append((model, *(len(data.splits[name]) for name in ("train", "validation", "test")), seed))
            return 0.25 + len(measured) / 100, "setting, with a comma", 1.5

        monkeypatch.setattr(module, "measure", measure)
        monkeypatch.setattr(sys, "argv", ["learning_curves.py", str(data_with_validation), *map(str, given)])
        module.main()
        return measured

    return run


def test_subsets_are_nested_and_hold_the_rows_that_were_drawn(subset, data_with_validation, tmp_path):
    data = open_dataset(data_with_validation)
    few, more, other = (subset.chosen(data, "train", rows, seed) for rows, seed in ((50, 1), (120, 1), (50, 2)))
    assert set(few) < set(more)
    assert set(few) != set(other)
    assert len(subset.chosen(data, "train", 10**6, 1)) == len(data.splits["train"])
    made = subset.write(data, tmp_path / "made", {"train": 50, "validation": 10, "test": 20}, seed=1)
    verify(made)
    assert {name: len(part) for name, part in made.splits.items()} == {"train": 50, "validation": 10, "test": 20}
    np.testing.assert_array_equal(made.splits["train"].codes(np.arange(50)), data.splits["train"].codes(few))
    np.testing.assert_array_equal(made.splits["train"].labels, data.splits["train"].labels[few])
    tested = subset.chosen(data, "test", 20, 1)
    assert [made.splits["test"].text(row) for row in range(20)] == [data.splits["test"].text(row) for row in tested]
    assert (made.classes, made.encoding) == (data.classes, data.encoding)


def test_several_shards(subset, data_with_validation, tmp_path, monkeypatch):
    data = open_dataset(data_with_validation)
    monkeypatch.setattr(subset, "SHARD_BYTES", 123 * 30)
    monkeypatch.setattr(subset, "CHUNK", 7)
    made = subset.write(data, tmp_path / "made", dict.fromkeys(data.splits, 70), seed=1)
    verify(made)
    rows = subset.chosen(data, "test", 70, 1)
    assert len(made.splits["test"].shards) == 3
    np.testing.assert_array_equal(made.splits["test"].codes(np.arange(70)), data.splits["test"].codes(rows))


def test_an_interrupted_run_is_resumed(curves, tmp_path, data_with_validation):
    flags = ("--out", "curves.csv", "--rows", 30, 100, 10**6, "--models", "ngrams", "crepe --epochs 3", "svm")
    sizes = ("--max-test", 40)
    with pytest.raises(KeyboardInterrupt):
        curves(*flags, *sizes, fail_at=4)
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert len(lines) == 5
    rest = curves(*flags, *sizes)
    every = (tmp_path / "curves.csv").read_text().splitlines()
    assert every[:5] == lines
    assert len(every) == 10
    rows = len(open_dataset(data_with_validation).splits["train"])
    assert [each[:2] for each in rest] == [
        ("crepe --epochs 3", 100),
        ("svm", 100),
        ("ngrams", rows),
        ("crepe --epochs 3", rows),
        ("svm", rows),
    ]
    assert {each[2:] for each in rest} == {(40, 40, 0)}
    assert curves(*flags, *sizes) == []
    assert len(curves(*flags, *sizes, "--seed", 1)) == 9
    assert curves("--out", "curves.csv", "--models", "--picture", "curves.svg") == []
    drawn = (tmp_path / "curves.svg").read_text()
    assert all(name in drawn for name in ("linear SVM", "crepe --epochs 3", "training rows"))


def test_mistakes(curves, tmp_path):
    with pytest.raises(UserError, match="no model 'crep'"):
        curves("--out", "curves.csv", "--models", "crep")
    with pytest.raises(UserError, match="no points"):
        curves("--out", "curves.csv", "--models", "--picture", "curves.svg")
    columns = ",".join(importlib.import_module("learning_curves").COLUMNS)
    for content in ("label,text\na,b\n", "a\n", f"{columns}\n1,2\n"):
        (tmp_path / "curves.csv").write_text(content)
        with pytest.raises(UserError, match="does not hold learning curves"):
            curves("--out", "curves.csv", "--models", "svm")
    assert (tmp_path / "curves.csv").read_text() == content, "it was not overwritten"


def test_without_a_validation_split(curves, monkeypatch, data):
    module = importlib.import_module("learning_curves")
    without = open_dataset(data)
    monkeypatch.setattr(module, "open_dataset", lambda _: without)
    with pytest.raises(UserError, match="lacks a validation or test split"):
        curves("--out", "curves.csv")


@pytest.mark.parametrize(("model", "package"), [("fasttext", "fasttext"), ("svm", "sklearn")])
def test_packages_that_are_missing_are_named_with_the_command_that_has_them(
    monkeypatch, tmp_path, data_with_validation, model, package
):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in (package, f"{package}.feature_extraction.text"):
        monkeypatch.setitem(sys.modules, name, None)
    module = importlib.import_module("learning_curves")
    given = [str(data_with_validation), "--out", str(tmp_path / "curves.csv"), "--models", model, "--rows", "30"]
    monkeypatch.setattr(sys, "argv", ["learning_curves.py", *given])
    with pytest.raises(UserError, match="is not installed") as raised:
        module.main()
    _, _, do = str(raised.value).splitlines()
    assert do.startswith("  do:  uv run --group comparison ")
    assert do.endswith(f"--models {model} --rows 30")
