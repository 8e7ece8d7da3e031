from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.corpus import BadRow, join_title, read_csv, read_sample
from crepe_dist.data.dataset import open_dataset, verify
from crepe_dist.data.preparation import QUARANTINE, Split, find_sources, prepare
from crepe_dist.errors import UserError
from tests.conftest import write_csv

ENCODING = Encoding(feature_len=40)


def prepared(tmp_path, lines, name="rows.csv", **split):
    path = tmp_path / name
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    return prepare(find_sources(str(path)), tmp_path / "out", ENCODING, Split(**split))


def test_rows_labels_and_texts_arrive(tmp_path):
    report = prepared(tmp_path, [f'"{"ab"[n % 2]}","text number {n}"' for n in range(100)], validation=0.1)
    dataset = open_dataset(tmp_path / "out")
    assert report.rows == {"train": 70, "validation": 10, "test": 20}
    assert dataset.classes == ["a", "b"]
    assert dataset.name == "rows"
    seen = []
    for name in ("validation", "test"):
        part = dataset.parts[name]
        for row in range(len(part)):
            text = part.text(row)
            assert text is not None
            assert part.codes[row].tolist() == ENCODING.encode([text])[0].tolist()
            assert part.labels[row] == int(text.split()[-1]) % 2
            seen.append(text)
    train = dataset.parts["train"]
    assert train.text(0) is None
    seen += [ENCODING.decode(train.codes[row]) for row in range(len(train))]
    assert sorted(seen) == sorted(f"text number {n}" for n in range(100))


def test_the_paper_s_form_with_classes_and_a_test_file(tmp_path):
    (tmp_path / "classes.txt").write_text("World\nSports\n")
    with gzip.open(tmp_path / "train.csv.gz", "wt") as stream:
        stream.write('"2","Title","Body with ""quotes"", and\na line"\n"1","Second","one"\n')
    (tmp_path / "test.csv").write_text('"1","","only text"\n')
    prepare(find_sources(str(tmp_path)), tmp_path / "out", Encoding(feature_len=60), Split())
    dataset = open_dataset(tmp_path / "out")
    assert dataset.classes == ["World", "Sports"]
    assert dataset.parts["train"].labels.tolist() == [1, 0]
    assert dataset.encoding.decode(dataset.parts["train"].codes[0]) == 'title | body with "quotes", and a line'
    assert dataset.parts["test"].text(0) == "only text"


def test_numbers_as_labels_are_ordered_by_value(tmp_path):
    prepared(tmp_path, [f"{n % 12},some text" for n in range(240)])
    assert open_dataset(tmp_path / "out").classes == [str(n) for n in range(12)]


def test_bad_rows_are_kept_apart_with_their_reason(tmp_path):
    lines = [f"{'xy'[n % 2]},fine {n}" for n in range(400)]
    lines[10] = "x"
    lines[20] = "x,   "
    lines[30] = "x,caf\udce9"
    report = prepared(tmp_path, lines)
    bad = [json.loads(line) for line in (tmp_path / "out" / QUARANTINE).read_text().splitlines()]
    assert report.bad == 3
    assert sum(report.rows.values()) == 397
    assert [(each["line"], each["reason"]) for each in bad] == [
        (11, "one column: a label and a text are needed"),
        (21, "empty text"),
        (31, "not UTF-8"),
    ]


def test_a_quote_that_is_never_closed_loses_nothing_in_silence(tmp_path):
    lines = [f"{'xy'[n % 2]},fine {n}" for n in range(400)]
    lines[100] = 'x,"never closed'
    with pytest.raises(UserError, match="300 of 400 rows") as caught:
        prepared(tmp_path, lines)
    assert "unexpected end of data, in what began on line 101" in caught.value.why


def test_a_header_line_and_a_byte_order_mark_make_no_class(tmp_path):
    lines = ["\ufeffLabel,text", *(f"{'xy'[n % 2]},fine {n}" for n in range(400))]
    report = prepared(tmp_path, lines)
    assert report.bad == 1
    assert open_dataset(tmp_path / "out").classes == ["x", "y"]
    assert "a header line" in (tmp_path / "out" / QUARANTINE).read_text()


def test_too_many_bad_rows_are_an_error_that_shows_them(tmp_path):
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, ["x,fine", "y,fine", "x"] * 10)
    assert "10 of 30 rows" in caught.value.what
    assert "rows.csv:3: one column" in caught.value.why
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv"]


def test_labels_outside_classes_txt_and_unknown_in_the_test_part(tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb\n")
    rows = list(read_csv(write_csv(tmp_path / "train.csv", 3, 0), ["a", "b"]))
    assert isinstance(rows[2], BadRow)
    assert "label '3' is not a number from 1 to 2" in rows[2].reason
    (tmp_path / "classes.txt").unlink()
    write_csv(tmp_path / "test.csv", 300, 0, classes=2)
    with (tmp_path / "test.csv").open("a") as stream:
        stream.write("9,unknown label\n")
    report = prepare(find_sources(str(tmp_path)), tmp_path / "out", ENCODING, Split())
    bad = json.loads((tmp_path / "out" / QUARANTINE).read_text())
    assert report.bad == 1
    assert (bad["file"], bad["line"]) == ("test.csv", 301)
    assert "not in the training rows" in bad["reason"]


def test_a_truncated_gzip_file_ends_with_a_bad_row(tmp_path):
    whole = write_csv(tmp_path / "whole.csv", 5000, 0).read_bytes()
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(whole)[:-200])
    rows = list(read_csv(tmp_path / "cut.csv.gz"))
    assert isinstance(rows[-1], BadRow)
    assert "the file ends here" in rows[-1].reason


def test_the_same_seed_gives_the_same_folder(tmp_path):
    source = write_csv(tmp_path / "a.csv", 200, 0)
    prints = []
    for seed, name in ((0, "one"), (0, "two"), (1, "three")):
        prepare(find_sources(str(source)), tmp_path / name, ENCODING, Split(seed=seed))
        prints.append(open_dataset(tmp_path / name).fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("lines", "message"),
    [([], "no row can be used"), (["a,x"] * 20, "only 1 class"), (["a,x"], "only 1 class")],
)
def test_sources_without_content_are_refused(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, lines)


def test_an_existing_folder_is_left_alone_unless_asked(tmp_path):
    lines = [f"{n % 2},text" for n in range(20)]
    prepared(tmp_path, lines)
    with pytest.raises(UserError, match="exists"):
        prepared(tmp_path, lines)
    sources = find_sources(str(tmp_path / "rows.csv"))
    prepare(sources, tmp_path / "out", Encoding(feature_len=20), Split(), overwrite=True)
    assert open_dataset(tmp_path / "out").encoding.feature_len == 20


def test_only_a_prepared_folder_is_ever_replaced(tmp_path):
    lines = [f"{n % 2},text" for n in range(20)]
    prepared(tmp_path, lines)
    sources = find_sources(str(tmp_path / "rows.csv"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    (tmp_path / "out" / "notes.txt").touch()
    (tmp_path / "file").touch()
    for name in ("mine", "out", "file", "rows.csv"):
        with pytest.raises(UserError, match="is not replaced"):
            prepare(sources, tmp_path / name, ENCODING, Split(), overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert (tmp_path / "out" / "notes.txt").exists()
    assert (tmp_path / "rows.csv").stat().st_size


@pytest.mark.parametrize("split", [{"test": 1.0}, {"validation": -0.1}, {"test": 0.6, "validation": 0.4}])
def test_impossible_splits_are_refused(split):
    with pytest.raises(UserError):
        Split(**split)


@pytest.mark.parametrize("source", ["nowhere.csv", "."])
def test_sources_that_are_not_there_are_refused(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        find_sources(source)


def test_the_sample_is_real_text_in_four_classes():
    rows = list(read_sample())
    assert len(rows) == 23703
    assert not any(isinstance(row, BadRow) for row in rows)


def test_titles_are_joined_as_in_training():
    assert join_title("Good stuff", "This album") == "Good stuff | This album"
    assert join_title("", "This album") == "This album"


class TestDamagedFolders:
    @pytest.fixture
    def folder(self, tmp_path):
        prepared(tmp_path, [f"{n % 2},text {n}" for n in range(50)])
        return tmp_path / "out"

    def test_cut_file(self, folder):
        path = folder / "train.codes.npy"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UserError, match="cannot be read") as caught:
            open_dataset(folder)
        assert "train.codes.npy has" in caught.value.why

    def test_altered_file(self, folder):
        path = folder / "test.codes.npy"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError, match="altered"):
            verify(open_dataset(folder))

    def test_whole_folder_verifies(self, folder):
        verify(open_dataset(folder))

    def test_another_format(self, folder):
        self.change(folder, format=99)
        with pytest.raises(UserError, match="format 99"):
            open_dataset(folder)

    def test_path_that_leads_out(self, folder):
        manifest = json.loads((folder / "dataset.json").read_text())
        files = manifest["parts"]["train"]["files"]
        files["../rows.csv"] = files.pop("train.codes.npy")
        self.change(folder, parts=manifest["parts"])
        with pytest.raises(UserError, match="cannot be read"):
            open_dataset(folder)

    def test_not_json(self, folder):
        (folder / "dataset.json").write_text("{")
        with pytest.raises(UserError, match="cannot be read"):
            open_dataset(folder)

    def test_pickled_array(self, folder):
        path = folder / "train.labels.npy"
        size = path.stat().st_size
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
        path.write_bytes(path.read_bytes()[:size].ljust(size, b"\0"))
        with pytest.raises(UserError, match="cannot be read"):
            open_dataset(folder)

    @staticmethod
    def change(folder, **values):
        path = folder / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
