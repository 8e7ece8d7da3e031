"""Inputs of predict: every row is answered in order and at once."""

import gzip
import json
import os
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crepe_dist.errors import UserError
from crepe_dist.files import csv_cells
from crepe_dist.predicting.input_reader import InputRow, open_inputs
from crepe_dist.predicting.output_formats import create_formatter, json_record
from crepe_dist.predicting.prediction import Prediction
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.sources import ReadOptions


def rows(path, kind=None, reading=None, *, keep=False):
    return [row for group in open_inputs(str(path), kind, reading, keep_columns=keep) for row in group]


BROKEN = {
    "a.csv": ('id,text\n1,one\n2,\n3\n4,"two\nlines"\n5,caf\ufffd\n', ["", "empty text", "wrong columns", "", ""]),
    "a.tsv": ("id\ttext\n1\tone\n2\t \n3\n4\tfour\n", ["", "empty text", "wrong columns", ""]),
    "a.jsonl": ('{"id": 1, "text": "one"}\n{"id": 2}\nno\n{"text": [3]}\n{"text": "\\ud800"}\n{"text": "six"}\n',
                ["", "no such key", "not JSON", "not a text", "not UTF-8", ""]),
    "a.txt": ("one\n\nthree\r\nfour", ["", "empty text", "", ""]),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_every_row_has_its_place(tmp_path, name):
    content, problems = BROKEN[name]
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(content.encode()))
    got = rows(path)
    assert [row.error.split(":")[0].split(";")[0] for row in got] == problems
    assert all(bool(row.text) != bool(row.error) for row in got)
    assert [row.line for row in got] == sorted(row.line for row in got)


def test_ids_are_read_if_they_are_there_and_repeated(tmp_path):
    (tmp_path / "a.csv").write_text("ticket,text\n007,one\n008,\n")
    (tmp_path / "a.jsonl").write_text('{"ticket": 7, "text": "one"}\n{"text": "two"}\n')
    pq.write_table(pa.table({"ticket": [7, 8], "text": ["one", ""]}), tmp_path / "a.parquet")
    found = {}
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        for needed in (True, False):
            found[name] = rows(tmp_path / name, None, ReadOptions(None, ColumnSpec(id="ticket", id_required=needed)))
        without = rows(tmp_path / name, None, ReadOptions(columns=ColumnSpec(id="no", id_required=False)))
        assert (without[0].text, without[0].id) == ("one", "")
        with pytest.raises(UserError, match="has no column 'no'"):
            rows(tmp_path / name, None, ReadOptions(columns=ColumnSpec(id="no")))
    assert {name: [row.id for row in each] for name, each in found.items()} == {
        "a.csv": ["007", "008"], "a.jsonl": ["7", ""], "a.parquet": ["7", "8"],
    }  # fmt: skip
    prediction = Prediction("b", 0.75, (("b", 0.75), ("c", 0.25)), 3)
    one, two = found["a.csv"]
    assert create_formatter("text", None, 2).line(one, prediction) == "007: b 75.0 %   c 25.0 %"
    assert (
        create_formatter("text", None, 2).line(two, Prediction("", 0.0, (), 0, two.error))
        == "not classified: line 3 (008): empty text"
    )
    line = {"line": 2, "id": "007", **json.loads(json_record(prediction, 2))}
    assert create_formatter("jsonl", None, 2).line(one, prediction) == json.dumps(line)
    (tmp_path / "a.txt").write_text("one\n")
    with pytest.raises(UserError, match="has no column "):
        rows(tmp_path / "a.txt", None, ReadOptions(columns=ColumnSpec(id="ticket")))


def test_parquet_with_all_its_columns(tmp_path):
    table = pa.table({"id": [1, 2, 3], "text": ["one", None, "three"], "when": pa.array([1.5, 2.5, None])})
    pq.write_table(table, tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet", keep=True) == [
        InputRow(1, "one", "", ("1", "one", "1.5")),
        InputRow(2, "", "empty text", ("2", "", "2.5")),
        InputRow(3, "three", "", ("3", "three", "")),
    ]


def test_columns_of_json_lines_become_cells(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 7, "text": "a", "n": null}\n{"text": "b", "id": [1], "more": 2}\n')
    inputs = open_inputs(str(tmp_path / "a.jsonl"), keep_columns=True)
    assert inputs.columns == ("id", "text", "n")
    assert [row.cells for group in inputs for row in group] == [("7", "a", ""), ('["1"]', "b", "")]


def test_columns_are_chosen_as_in_training(tmp_path):
    (tmp_path / "a.csv").write_text("label,headline,story\nx,T,S\n")
    reading = ReadOptions(columns=ColumnSpec(texts=("headline", "story")))
    assert [row.text for row in rows(tmp_path / "a.csv", reading=reading)] == ["T | S"]
    assert [row.text for row in rows(tmp_path / "a.csv", reading=ReadOptions())] == ["T | S"]  # not the label
    (tmp_path / "c.csv").write_text("label,headline,story,note\nx,T,S,N\n")
    with pytest.raises(UserError, match="which column is the text") as caught:
        rows(tmp_path / "c.csv", reading=ReadOptions())
    assert "--text-column" in caught.value.remedy
    # If all columns were texts, the label in the paper's format would be one of them.
    (tmp_path / "b.csv").write_text("1,T,S\n2,T,S\n")
    with pytest.raises(UserError, match="which column is the text"):
        rows(tmp_path / "b.csv")


def test_rows_of_a_pipe_come_as_they_are_written():
    records = (b'{"text": "one"}\n', b'{"text": "two"}\n')
    reader, writer = os.pipe()
    os.write(writer, records[0])  # The writer waits, so a reader that needs more data would hang.
    groups = iter(open_inputs(f"/dev/fd/{reader}", "jsonl"))
    assert [row.text for row in next(groups)] == ["one"]
    rest = threading.Thread(target=_write_later, args=(writer, records[1]))
    rest.start()
    assert [row.text for group in groups for row in group] == ["two"]
    rest.join()
    os.close(reader)


def _write_later(writer, content):
    time.sleep(0.02)
    os.write(writer, content)
    os.close(writer)


def test_a_pipe_gives_what_the_file_gives(tmp_path):
    """The writer pauses within a quoted field, within a character of two bytes, or after a stray quote."""
    content = ('id,text\n1,"a\nb"\n2,é\n3,"x" y\n' + "".join(f'{n},"{n}\n"\n' for n in range(4, 70))).encode()
    (tmp_path / "a.csv").write_bytes(content)
    expected = rows(tmp_path / "a.csv")
    assert len(expected) == 69
    assert sum(bool(row.error) for row in expected) == 1
    for pause in range(1, 34, 2):
        reader, writer = os.pipe()
        os.write(writer, content[:pause])
        rest = threading.Thread(target=_write_later, args=(writer, content[pause:]))
        rest.start()
        assert rows(f"/dev/fd/{reader}", "csv") == expected, pause
        rest.join()
        os.close(reader)


def test_answers_in_csv_keep_their_width():
    told = create_formatter("csv", 2, num_classes=3, columns=("id", "text"))
    prediction = Prediction("a,b", 0.75, (("a,b", 0.75), ("=c", 0.25), ("d", 0.0)), 1)
    assert told.header == (
        "id,text,predicted_class,predicted_probability,predicted_class_2,predicted_probability_2,characters_cut,problem\n"
    )
    assert told.line(InputRow(2, "x\ry", "", ("1", "x\ry")), prediction) == '1,"x\ry","a,b",0.750000,\'=c,0.250000,0,'
    assert (
        told.line(InputRow(3, ""), Prediction("", 0.0, (), 0, "wrong columns: 1")) == ",,,,,,,line 3: wrong columns: 1"
    )


FORMULAS = ["=cmd|' /C calc'!A0", '+HYPERLINK("http://x")', "@SUM(1)", "\t=1", "\rx", " =1+1", "'=1", "\uff1d1"]
PLAIN = ["", "a = b", "-5", "+3.5e-7", "- 1,000", "+", " - ", "'tis", "-12 %"]


@pytest.mark.parametrize("text", [*FORMULAS, *PLAIN, "''=1"])
def test_cells_that_a_spreadsheet_would_compute(text):
    cell = csv_cells.escape_cell(text)
    assert cell == (text if text in PLAIN else f"'{text}")
    assert csv_cells.unescape_cell(cell) == text
