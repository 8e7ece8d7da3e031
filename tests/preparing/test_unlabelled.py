"""Unlabelled texts of a data set: they may have any format, get no labels, and do not repeat labelled texts."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import crepe_dist
from crepe_dist.data.arrays import hash_texts
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.preparation import prepare
from crepe_dist.preparing.sources import ReadOptions, find_sources
from crepe_dist.preparing.spec import FIXED, IF_NEEDED, PreparationSpec
from crepe_dist.preparing.splitting import SplitOptions
from tests.conftest import write_frame, write_rows

ENCODING = CharEncoder(feature_len=40)
TEXTS = [f"unlabelled text {n}" for n in range(30)]


@pytest.fixture
def labelled(tmp_path):
    return write_rows(tmp_path / "rows.csv", [("label", "text"), *(("ab"[n % 2], f"text {n}") for n in range(40))])


def made(labelled, *unlabelled, out="out", encoding=ENCODING, fit=False, **split):
    sources = find_sources([str(labelled)], unlabelled=[str(path) for path in unlabelled])
    out = labelled.parent / out
    spec = PreparationSpec(encoding, SplitOptions(**split), fit_length=fit, fit_alphabet=IF_NEEDED if fit else FIXED)
    return prepare(sources, out, spec), open_dataset(out)


def opened(folder):
    """Return the unlabelled texts of a data set folder."""
    unlabelled = open_dataset(folder).unlabelled
    assert unlabelled is not None
    return unlabelled


def written(path: Path, rows: list[str]) -> Path:
    """Write texts in the format of the file name, with labels if the name says so."""
    if path.suffix in (".csv", ".tsv", ".jsonl", ".parquet"):
        labels = {"label": "of no class"} if "labels" in path.name else {}
        return write_frame(pd.DataFrame({"text": rows, **labels}), path)
    if path.suffix == ".txt":
        path.write_text("\n\n".join(rows))
    elif path.suffix == ".ft":
        path.write_text("".join(f"__label__x __label__y {text}\n" for text in rows))
    else:
        path.mkdir()
        for number, text in enumerate(rows):
            (path / f"{number:02d}.txt").write_text(text)
    return path


@pytest.mark.parametrize("name", ["u.csv", "labels.csv", "labels.jsonl", "u.parquet", "u.txt", "u.ft", "folder"])
def test_every_format_with_and_without_labels(labelled, tmp_path, name):
    summary, data = made(labelled, written(tmp_path / name, TEXTS))
    assert [data.encoder.decode(codes) for codes in data.unlabelled.char_ids(np.arange(30))] == TEXTS
    assert data.unlabelled.source_rows[:, 2].tolist() == hash_texts(text.encode() for text in TEXTS).tolist()
    assert data.origin("unlabelled", 3).file == name
    assert data.classes == ["a", "b"]
    assert summary["unlabelled"] == {"rows": 30, "duplicates": 0}
    assert sum(part["rows"] for part in summary["splits"].values()) == 40
    ignored = summary["sources"][-1]["reads"]
    assert ("ignored" in ignored) == (name.startswith("labels") or name.endswith(".ft"))


class TestDuplicates:
    @pytest.mark.parametrize("dedupe", ["no", "exact", "near"])
    def test_a_labelled_text_is_not_also_unlabelled(self, labelled, tmp_path, dedupe):
        texts = [*(f"text {n}" for n in range(40)), "new", "New!", "new"]
        summary, data = made(labelled, written(tmp_path / "u.txt", texts), dedupe=dedupe, validation=0.2)
        left = 1 if dedupe == "near" else 2
        assert len(data.unlabelled) == left
        assert summary["unlabelled"] == {"rows": left, "duplicates": 43 - left}
        assert sum(map(len, data.splits.values())) == 40
        assert summary["duplicates"] == {**summary["duplicates"], "exact": 0, "near": 0, "removed": 0, "conflicting": 0}

    def test_nothing_new_is_an_error(self, labelled):
        with pytest.raises(UserError, match="the unlabelled files have no valid row"):
            made(labelled, labelled)


class TestRowsWithoutLabel:
    @pytest.fixture
    def partly(self, tmp_path):
        rows = [("ab"[n % 2] if n % 4 else "", f"text {n}") for n in range(40)]
        return write_rows(tmp_path / "partly.csv", [("label", "text"), *rows])

    def test_are_left_out(self, partly):
        summary, data = made(partly)
        assert data.unlabelled is None
        assert any("without a label" in each["what"] for each in summary["warnings"])


def test_they_decide_the_alphabet_and_the_length(labelled, tmp_path):
    encodings = []
    for texts in (TEXTS, [200 * "ж" + str(n) for n in range(100)]):
        _, data = made(
            labelled, written(tmp_path / "u.txt", texts), out=texts[0][:4], encoding=CharEncoder(feature_len=1014),
            fit=True,
        )  # fmt: skip
        encodings.append(data.encoder)
    plain, other = encodings
    assert "ж" in other.alphabet
    assert "ж" not in plain.alphabet
    assert plain.feature_len < 200 < other.feature_len


class TestColumns:
    def test_are_those_of_the_training_file(self, tmp_path):
        rows = write_rows(
            tmp_path / "rows.csv", [("label", "head", "body"), *(("ab"[n % 2], "h", f"b{n}") for n in range(9))]
        )
        more = write_rows(tmp_path / "more.csv", [("body", "note", "head"), ("new body", "?", "new head")])
        reading = ReadOptions(columns=ColumnSpec(texts=("head", "body")))
        sources = find_sources([str(rows)], options=reading, unlabelled=[str(more)])
        prepare(sources, tmp_path / "out", PreparationSpec(ENCODING, read_options=reading))
        (codes,) = opened(tmp_path / "out").char_ids(np.arange(1))
        assert ENCODING.decode(codes) == "new head | new body"

    @pytest.mark.parametrize(
        ("line", "read"), [("a,new title,new", "new title | new"), ("new title,new", "new title | new")]
    )
    def test_without_names_are_those_of_the_training_file(self, tmp_path, line, read):
        rows = tmp_path / "rows.csv"
        rows.write_text("".join(f"{'ab'[n % 2]},title,text {n}\n" for n in range(9)))
        (tmp_path / "more.csv").write_text(f"{line}\n")
        _, data = made(rows, tmp_path / "more.csv")
        assert ENCODING.decode(data.unlabelled.char_ids(np.arange(1))[0]) == read


class TestFolders:
    def test_unsup_is_no_class(self, tmp_path):
        for name, count in (("train/pos", 4), ("train/neg", 4), ("train/unsup", 6), ("test/pos", 2), ("test/neg", 2)):
            (tmp_path / "imdb" / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / "imdb" / name / f"{number}.txt").write_text(f"{name} {number}")
        _, data = made(tmp_path / "imdb")
        assert data.classes == ["neg", "pos"]
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 8, "test": 4}
        assert len(data.unlabelled) == 6
        assert str(data.origin("unlabelled", 0)) == "train/unsup:1 (0.txt)"


class TestUnusableRows:
    def test_too_many_are_an_error(self, labelled, tmp_path):
        path = tmp_path / "u.txt"
        path.write_bytes(b"good\n\xff bad\n")
        with pytest.raises(UserError, match="1 of 2 unlabelled rows are invalid"):
            made(labelled, path)

    def test_many_good_ones_do_not_hide_bad_labelled_ones(self, labelled, tmp_path):
        with labelled.open("a") as stream:
            stream.write("a,\r\n" * 2)
        with pytest.raises(UserError, match="2 of 42 rows are invalid"):
            made(labelled, written(tmp_path / "u.txt", [f"{n} more" for n in range(1000)]))


def test_tables_in_memory(tmp_path):
    rows = {"label": list("ab" * 10), "head": ["h"] * 20, "body": [f"b{n}" for n in range(20)]}
    more = {"body": ["new", None], "head": ["x", "y"], "label": ["?", "?"]}
    crepe_dist.prepare(rows, tmp_path / "out", text=["head", "body"], unlabelled=more, max_bad=0.5, feature_len=40)
    data = open_dataset(tmp_path / "out")
    codes = opened(tmp_path / "out").char_ids(np.arange(2))
    assert [data.encoder.decode(each) for each in codes] == ["x | new", "y"]
