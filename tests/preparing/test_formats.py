"""Every input format: typical files yield their rows, also if a file is read in small pieces."""

import bz2
import csv
import gzip
import hashlib
import io
import json
import math
import random
import zipfile
from dataclasses import replace
from datetime import date
from typing import Literal

import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crepe_dist.errors import UserError
from crepe_dist.preparing.formats import MAX_RECORD, lines, tables
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.open_source import open_source
from crepe_dist.preparing.reading import read_sources as collect
from crepe_dist.preparing.sources import ReadOptions, Source, find_sources
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.spool import SpooledTexts
from crepe_dist.preparing.worker_pool import no_progress, open_worker_pool
from tests.conftest import write_frame
from tests.helpers.hostile import workbook


class Read:
    """Rows, invalid rows and reports of sources, read as by ``prepare``."""

    def __init__(self, tmp_path, sources, reading=None, *, ahead=1, class_names=None):
        folder = tmp_path / f"spool-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        spec = PreparationSpec(read_options=replace(reading or ReadOptions(), class_names=class_names))
        with open_worker_pool(1, "") as workers:
            found = collect(sources, folder, spec, replace(workers, max_tasks=ahead), no_progress)
        texts = SpooledTexts(found.texts).get(found.rows)
        self.files = found.files
        self.rows = [
            (int(row["line"]), found.labels[row["label"]], text.decode()) for row, text in zip(found.rows, texts)
        ]
        self.bad = list(found.iter_invalid_rows())
        self.reasons = [(bad["line"], bad["reason"]) for bad in self.bad]


def read(tmp_path, name, content, **reading):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    text = reading.pop("text", None)
    columns = ColumnSpec(reading.pop("label", None), (text,) if isinstance(text, str) else text or ())
    return Read(tmp_path, find_sources([str(path)]), ReadOptions(columns=columns, **reading))


class TestTables:
    def test_paper_s_form(self, tmp_path):
        got = read(tmp_path, "a.csv", '"2","Title","Body, ""quoted"",\nand a line"\n\n"1","","only text"\n')
        assert got.rows == [(1, "2", 'Title | Body, "quoted",\nand a line'), (4, "1", "only text")]
        assert got.bad == []

    @pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.txt", "a"])
    def test_name_or_content_tells_the_format(self, tmp_path, name):
        content = b"x,fine\r\ny,good\r\n"
        got = read(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
        assert got.rows == [(1, "x", "fine"), (2, "y", "good")]

    @pytest.mark.parametrize(
        ("header", "row", "expected"),
        [
            ("Class Index,Title,Description", "3,Wall St.,Short-sellers", ("3", "Wall St. | Short-sellers")),
            ("review,sentiment", "One of the best,positive", ("positive", "One of the best")),
            ("id,text,label", "77,some words,spam", ("spam", "some words")),
            ("stars,review_body", "5,some words", ("5", "some words")),
            ("foo,label", "some words,spam", ("spam", "some words")),
        ],
    )
    def test_usual_headers(self, tmp_path, header, row, expected):
        assert read(tmp_path, "a.csv", f"{header}\n{row}\n").rows == [(2, *expected)]

    def test_columns_by_name_and_number(self, tmp_path):
        content = "id,head,body,kind\n1,A,b c,x\n"
        got = read(tmp_path, "a.csv", content, label="kind", text=("head", "body"))
        assert got.rows == [(2, "x", "A | b c")]
        got = read(tmp_path, "b.csv", "1,A,b c,x\n", label="4", text="3")
        assert got.rows == [(1, "x", "b c")]

    @pytest.mark.parametrize(
        ("content", "reading", "message"),
        [
            ("label,one,two\nx,a,b\n", {}, "which column is the text"),
            ("one,text,two\na,b,c\n", {}, "which column is the label"),
            (("Kategorie;Größe\n" + "x;1\n" * 9).encode("cp1252"), {}, "the first line of a.csv is not UTF-8"),
            ("label,text\nx,a\n", {"text": "body"}, "has no column 'body'"),
            ("x,a\ny,b\n", {"label": "3"}, "has no column '3'"),
            ("one\ntwo\n", {}, "has only one column"),
            ("GIF\0\1\n\2\0\n", {}, "a.csv is a binary file"),
            ("label,text\nx,a\n", {"text": ("2", "text")}, "column 2 of .* is chosen two times"),
            ("x,a\ny,b\n", {"text": "1"}, "column 1 of .* is chosen two times"),
        ],
    )
    def test_columns_that_are_not_clear_are_asked_for(self, tmp_path, content, reading, message):
        with pytest.raises(UserError, match=message):
            read(tmp_path, "a.csv", content, **reading)

    @pytest.mark.parametrize("when", ["2024-03-{:02}", "{}.3.2024 9:30", pd.Timestamp("2024-03-01")])
    def test_dates_and_distinct_values_are_no_labels(self, tmp_path, when):
        dates = [when if isinstance(when, pd.Timestamp) else when.format(n % 28 + 1) for n in range(60)]
        frame = pd.DataFrame({"when": dates, "story": [f"s {n}" for n in range(60)]})
        kind = "parquet" if isinstance(when, pd.Timestamp) else "csv"
        reading = ReadOptions(columns=ColumnSpec(texts=("story",)))
        with pytest.raises(UserError, match="which column is the label"):
            open_source(find_sources([str(write_frame(frame, tmp_path / f"a.{kind}"))])[0], reading)
        frame["forum"] = ["a", "b"] * 30
        opened = open_source(find_sources([str(write_frame(frame, tmp_path / f"a.{kind}"))])[0], reading)
        opened.file.close()
        assert opened.columns_description == "label: forum, text: story"

    def test_semicolons_of_a_spreadsheet(self, tmp_path):
        got = read(tmp_path, "a.csv", 'Text;Label\n"a, b; c";x\n')
        assert got.rows == [(2, "x", "a, b; c")]

    @pytest.mark.parametrize("header", ["\nlabel,text\n", '\n\n"label","te\nxt"\n', "label,text,\n", "Text,Label\n"])
    def test_headers_in_odd_forms(self, tmp_path, header):
        rows = "x,one\ny,two\n" if header.strip('"\n').startswith("label") else "one,x\ntwo,y\n"
        rows = rows.replace("\n", ",\n") if header.endswith(",\n") else rows
        got = read(tmp_path, "a.csv", header + rows, text="2" if header[-2] == "," else None)
        assert [row[1:] for row in got.rows] == [("x", "one"), ("y", "two")]
        assert got.rows[0][0] == header.count("\n") + 1
        assert got.bad == []

    def test_many_broken_lines_take_linear_time(self, tmp_path):
        got = read(tmp_path, "a.csv", "x,a\n" * 10 + 'a,"b"c\n' * 30_000)
        assert (len(got.rows), len(got.bad)) == (10, 30_000)

    @pytest.mark.parametrize(
        "content",
        [
            "Datum;Kommentar;Bewertung\n" + "".join(f"2024-01-{n:02};text {n};gut\n" for n in range(10, 30)),
            ",Unnamed: 0,v1,v2\n" + "".join(f"{n},{n},ham,text {n}\n" for n in range(20)),
            "id,comment_text,toxic\n" + "".join(f"a{n},text {n},{n % 2}\n" for n in range(20)),
        ],
    )
    def test_a_first_line_unlike_the_others_is_asked_about(self, tmp_path, content):
        with pytest.raises(UserError, match="does its first line name the columns") as caught:
            read(tmp_path, "a.csv", content)
        assert "pass a name with --text-column or --label" in caught.value.remedy
        if "Datum" in content:
            assert len(read(tmp_path, "b.csv", content, label="Bewertung", text="Kommentar").rows) == 20

    @pytest.mark.parametrize("above", ["Support tickets 2026\n", "Support tickets 2026;;;\n\n;;;\n"])
    def test_a_title_above_the_header_is_named(self, tmp_path, above):
        content = above + "queue;text;price\n" + "".join(f"q{n % 2};words {n};{n}\n" for n in range(20))
        line = above.count("\n") + 1
        for options in ({}, {"label": "queue", "text": "text"}):
            with pytest.raises(UserError, match=rf"row {line} seems to name the columns") as caught:
                read(tmp_path, "a.csv", content, **options)
            assert "'Support tickets 2026'" in caught.value.why
            assert caught.value.remedy == f"delete the rows above row {line}"

    def test_a_narrow_first_row_is_no_title_without_names_below(self, tmp_path):
        content = "broken\n" + "".join(f"q{n % 2};words {n}\n" for n in range(20))
        with pytest.raises(UserError, match="does its first line name the columns"):
            read(tmp_path, "a.csv", content)

    def test_numbers_of_rows_are_not_taken_for_the_label(self, tmp_path):
        assert read(tmp_path, "a.csv", "id,text,kind\n7,words,x\n").rows == [(2, "x", "words")]
        assert read(tmp_path, "b.csv", ",text,Unnamed: 0,stars\n7,words,7,5\n").rows == [(2, "5", "words")]

    def test_tsv_keeps_quotes_inside_and_takes_them_off_around(self, tmp_path):
        got = read(tmp_path, "a.tsv", 'x\t5" screen\ny\t"he said ""no"""\nx\t"open\n')
        assert [row[2] for row in got.rows] == ['5" screen', 'he said "no"', '"open']

    def test_a_stray_quote_costs_its_own_row_alone(self, tmp_path):
        rows = [f'"{"xy"[n % 2]}","fine {n}"' for n in range(400)]
        rows[100] = '"x","never closed'
        rows[200] = '"x","a "word" in it"'
        got = read(tmp_path, "a.csv", "\n".join(rows))
        assert len(got.rows) == 398
        assert [(bad["line"], bad["lines"]) for bad in got.bad] == [(101, 1), (201, 1)]
        assert all(bad["reason"].startswith("not CSV") for bad in got.bad)


@pytest.mark.parametrize("seed", range(8))
def test_csv_in_pieces_is_csv_as_a_whole(tmp_path, monkeypatch, seed):
    """Rows and invalid rows do not depend on the batches. Valid files are read as by Python's csv module."""
    generator = random.Random(seed)
    strays = [0, 0.002, 0.02, 0.2][seed % 4]
    records = ["label,text\n"]
    for number in range(generator.randint(50, 300)):
        pieces = ["a", " ", "\n", '"', ",", "word ", "line\n"]
        stream = io.StringIO()
        quoting: Literal[0, 1] = csv.QUOTE_ALL if generator.random() < 0.5 else csv.QUOTE_MINIMAL
        text = f"{number} {''.join(generator.choices(pieces, k=generator.randint(1, 30)))}"
        csv.writer(stream, quoting=quoting, lineterminator="\n").writerow([generator.choice("xyz"), text])
        record = stream.getvalue()
        if generator.random() < strays:
            at = generator.randrange(len(record) - 1)
            record = f'{record[:at]}"{record[at:]}'
        records.append(record)
    content = "".join(records)
    (tmp_path / "a.csv").write_text(content)
    sources, reading = find_sources([str(tmp_path / "a.csv")]), ReadOptions()
    expected = Read(tmp_path, sources, reading)
    if not strays:
        _, *rows = map(tuple, csv.reader(io.StringIO(content)))
        assert [(row[1], row[2]) for row in expected.rows] == rows
        assert expected.bad == []
    for size in (100, 2500):
        monkeypatch.setattr(lines, "BATCH_BYTES", size)
        monkeypatch.setattr(lines, "PIECE", 64)
        got = Read(tmp_path, sources, reading, ahead=3)
        assert (got.rows, got.bad) == (expected.rows, expected.bad)


class TestJsonLines:
    def test_keys_are_found_and_scalars_are_labels(self, tmp_path):
        content = '{"id": 1, "text": "caf\\u00e9", "label": 1.50}\n\n{"text": "b", "label": true}\n'
        assert read(tmp_path, "a.jsonl", content).rows == [(1, "1.50", "café"), (3, "true", "b")]

    def test_keys_inside_of_objects(self, tmp_path):
        content = '{"id": 1, "meta": {"kind": "x"}, "data": {"body": "words", "n": {"a": [1]}}}\n{"meta": {}}\n'
        with pytest.raises(UserError, match="which column is the label") as caught:
            read(tmp_path, "a.jsonl", content)
        assert "meta.kind, data.body" in caught.value.why
        got = read(tmp_path, "b.jsonl", content, label="meta.kind", text="data.body")
        assert got.rows == [(1, "x", "words")]
        assert got.reasons[0][1].startswith("no such key: 'data.body'")

    def test_bad_lines(self, tmp_path):
        good = '{"text": "a", "label": "x"}'
        lines = [
            good,
            "{",
            '{"\\ud800": 1, "label": "a"}',
            '["a"]',
            '{"label": "x"}',
            '{"text": true, "label": "x"}',
            '{"text": "a", "label": ["x"]}',
            '{"text": "a"}',
            '{"text": "\\ud800", "label": "x"}',
            "[" * 5000,
            good,
        ]
        got = read(tmp_path, "a.json", "\n".join(lines))
        assert [row[0] for row in got.rows] == [1, 11]
        kinds = [reason.split(":")[0] for _, reason in got.reasons]
        assert kinds == [
            *("not JSON", "no such key", "not a JSON object", "no such key", "not a text", "several labels"),
            *("no label", "not UTF-8", "not JSON"),
        ]


def test_the_name_of_an_amazon_5_core_file_gives_the_class(tmp_path):
    records = [{"summary": "Great", "reviewText": "I's good", "overall": 5.0}, {"reviewText": "no title"}]
    content = gzip.compress("\n".join(map(json.dumps, records)).encode())
    got = read(tmp_path, "reviews_Cell_Phones_and_Accessories_5.json.gz", content)
    assert [row[2] for row in got.rows] == ["Great | I's good", "no title"]
    assert {row[1] for row in got.rows} == {"Cell_Phones_and_Accessories"}


class TestParquet:
    @staticmethod
    def write(path, table, **options):
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(table), path, **options)

    def test_nan_is_no_label(self, tmp_path):
        self.write(tmp_path / "a.parquet", {"label": [1.0, math.nan, 2.5], "text": ["one", "two", "three"]})
        got = Read(tmp_path, find_sources([str(tmp_path / "a.parquet")]))
        assert [row[1] for row in got.rows] == ["1", "2.5"]
        assert got.reasons == [(2, "no label")]
        got = read(tmp_path, "a.jsonl", '{"label": "a", "text": "one"}\n{"label": NaN, "text": "two"}\n')
        assert (got.rows, got.reasons) == ([(1, "a", "one")], [(2, "no label")])

    def test_hugging_face_folder(self, tmp_path):
        """Files are named after their split, in the folder of a configuration, and contain the names of the classes."""
        features = {"text": {"dtype": "string"}, "label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
        schema = pa.schema(
            [("text", pa.string()), ("label", pa.int64())],
            {"huggingface": json.dumps({"info": {"features": features}})},
        )
        for part, rows in (("train-00000-of-00002", 3), ("train-00001-of-00002", 2), ("test-00000-of-00001", 2)):
            table = pa.table({"text": [f"{part} {n}" for n in range(rows)], "label": [n % 2 for n in range(rows)]})
            path = tmp_path / "hf" / "plain_text" / f"{part}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.cast(schema), path)
        sources = find_sources([str(tmp_path / "hf")])
        assert [source.split for source in sources] == ["test", "train", "train"]
        got = Read(tmp_path, sources)
        assert [row[1] for row in got.rows] == ["neg", "pos", "neg", "pos", "neg", "neg", "pos"]
        assert got.bad == []

    def test_bytes_that_are_not_utf_8_cost_one_row(self, tmp_path):
        texts = pa.array([b"fine", b"caf\xe9"], pa.binary()).view(pa.string())
        self.write(tmp_path / "a.parquet", {"text": texts, "label": ["x", "y"]})
        got = Read(tmp_path, find_sources([str(tmp_path / "a.parquet")]))
        assert (len(got.rows), got.reasons) == (1, [(2, "not UTF-8")])

    def test_broken_pages_are_bad_rows(self, tmp_path):
        rows = [f"text {random.Random(n).random()}" for n in range(4_000)]
        options = {"row_group_size": 2_000, "compression": "zstd", "use_dictionary": False}
        self.write(tmp_path / "a.parquet", {"text": rows, "label": ["x"] * 4_000}, **options)
        content = bytearray((tmp_path / "a.parquet").read_bytes())
        content[2_000:12_000] = bytes(10_000)
        (tmp_path / "a.parquet").write_bytes(content)
        got = Read(tmp_path, find_sources([str(tmp_path / "a.parquet")]))
        assert [row[0] for row in got.rows] == list(range(2_001, 4_001))
        assert [(bad["line"], bad["lines"]) for bad in got.bad] == [(1, 2_000)]


class TestFolders:
    @staticmethod
    def write(folder, **files):
        for name, content in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return str(folder)

    def test_a_folder_for_each_class(self, tmp_path):
        files = {"pos__1_9.txt": b"fine\n", "pos__2_8.gz": gzip.compress(b"good"), "neg__a__1": b"bad", "neg__2": b" "}
        folder = self.write(tmp_path / "texts", **files, pos__3=b"\xff\xfeu\x00", **{"pos__.hidden": b"no"})
        got = Read(tmp_path, find_sources([folder]), ahead=3)
        texts = [("neg", "bad"), ("pos", "fine"), ("pos", "good"), ("pos", "u")]
        assert [(row[1], row[2]) for row in got.rows] == texts
        assert [(bad["reason"], bad["excerpt"]) for bad in got.bad] == [("empty text", "2")]

    def test_a_test_file_beside_files_of_no_part_is_asked_about(self, tmp_path):
        folder = self.write(tmp_path / "all", **{"reviews.csv": b"", "test.csv": b""})
        with pytest.raises(UserError, match="which files are for training"):
            find_sources([folder])

    def test_links_to_folders_are_followed_once(self, tmp_path):
        folder = self.write(tmp_path / "texts", a__1=b"one", b__1=b"two")
        self.write(tmp_path / "texts" / ".far", away=b"three")
        (tmp_path / "texts" / "a" / "more").symlink_to(tmp_path / "texts" / ".far")
        (tmp_path / "texts" / "b" / "loop").symlink_to(tmp_path / "texts" / "b")
        (tmp_path / "link").symlink_to(folder)
        got = Read(tmp_path, find_sources([folder]))
        assert [row[1:] for row in got.rows] == [("a", "one"), ("a", "three"), ("b", "two")]
        assert len(find_sources([str(tmp_path / "link")])) == 2  # A link that the user passed may lead anywhere.

    @pytest.mark.parametrize(
        ("name", "target"),
        [("texts/pos/evil.txt", "/etc/passwd"), ("texts/all", "../outside"), ("texts/train.csv", "/")],
    )
    def test_links_out_of_the_folder_are_refused(self, tmp_path, name, target):
        self.write(tmp_path, outside__pos__1=b"secret")
        folder = self.write(tmp_path / "texts", pos__1=b"one", neg__1=b"two")
        link = tmp_path / name
        link.symlink_to(tmp_path / "outside" if target.startswith(".") else target)
        with pytest.raises(UserError, match=f"{link} is a symbolic link out of {folder}") as caught:
            find_sources([folder])
        assert "cp -rL" in caught.value.remedy

    @pytest.mark.parametrize("given", [["nowhere.csv"], ["empty"], ["-", "-"], ["only"]])
    def test_what_is_not_there_is_refused(self, tmp_path, monkeypatch, given):
        monkeypatch.chdir(tmp_path)
        self.write(tmp_path / "only", **{"test.csv": b"x,a\n"})
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError):
            find_sources(given)


class TestEncodings:
    CONTENT = "label,text\n" + "".join(f"да,текст номер {n}\nнет,その他 {n}\n" for n in range(40))

    @pytest.mark.parametrize("pack", [bytes, gzip.compress])
    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
    def test_unicode_is_recognised(self, tmp_path, pack, encoding):
        for text in ("x,a\n" * 5, self.CONTENT, self.CONTENT.replace(",", "\t")):
            want = read(tmp_path, "a.csv", text)
            got = read(tmp_path, "b.csv", pack(text.encode(encoding)))
            assert (got.rows, got.bad, got.files[0]["reads"]) == (want.rows, [], want.files[0]["reads"])

    @pytest.mark.parametrize(
        ("encoding", "name"), [("cp1252", "a.csv"), ("shift_jis", "a.tsv.gz"), ("utf-32-le", "a.jsonl")]
    )
    def test_others_are_named(self, tmp_path, name, encoding):
        text = "テスト" if encoding == "shift_jis" else "Größe 5 €"
        line = json.dumps({"label": "x", "text": text}, ensure_ascii=False) if "json" in name else f"x,{text}"
        content = "".join(f"{line}\n" for _ in range(9)).replace("," if "tsv" in name else "\0", "\t").encode(encoding)
        got = read(tmp_path, name, gzip.compress(content) if "gz" in name else content, encoding=encoding)
        assert got.rows == [(number, "x", text) for number in range(1, 10)]

    def test_wrong_bytes_spoil_their_row_alone(self, tmp_path):
        got = read(tmp_path, "a.csv", b"x,caf\xe9\ny,\x81\nz,ok\n", encoding="cp1252")
        assert (got.rows, got.reasons) == ([(1, "x", "café"), (3, "z", "ok")], [(2, "not UTF-8")])
        content = b"\xff\xfe" + "x,a\ny,".encode("utf-16-le") + b"\0\xd8" + "\nz,ok\nx,odd".encode("utf-16-le") + b"\0"
        got = read(tmp_path, "b.csv", content)
        assert (got.rows, got.reasons) == ([(1, "x", "a"), (3, "z", "ok")], [(2, "not UTF-8"), (4, "not UTF-8")])
        with pytest.raises(UserError, match="cannot be read as idna"):
            read(tmp_path, "c.csv", b"x,\xe9\n", encoding="idna")


class TestWorkbooks:
    @staticmethod
    def write(path, *sheets):
        book = openpyxl.Workbook(write_only=True)
        for rows in sheets:
            sheet = book.create_sheet()
            for row in rows:
                sheet.append(row)
        book.save(path)
        return path

    def test_rows_have_the_numbers_of_the_sheet(self, tmp_path):
        rows = [
            ["ticket", "label", "text", "when"], [7, "a", "two\nlines, “quoted”\t…", date(2026, 5, 1)], [],
            [8.5, "b", 'a "quote"'], [9, "a", None], [None, None, "no label"], [1, "b", "more", None, "than named"],
        ]  # fmt: skip
        path = self.write(tmp_path / "a.xlsx", rows, [["label", "text"], ["c", "of another sheet"]])
        got = Read(tmp_path, find_sources([str(path)]))
        assert got.rows == [(2, "a", "two\nlines, “quoted”\t…"), (4, "b", 'a "quote"')]
        assert got.reasons == [(5, "empty text"), (6, "no label"), (7, "wrong columns: 5 instead of 4")]
        assert got.files[0]["reads"] == "label: label, text: text"
        assert got.files[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_strings_are_those_of_openpyxl(self, tmp_path):
        marked = "<si><r><t>t</t></r><r><rPr><b/></rPr><t xml:space='preserve'>wo </t></r></si>"
        spelled = [
            "<si><t>a</t></si>", "<si/>", "<si><t/></si>", "<si><t>x<!-- -->y _x000D_ x005F_</t></si>", marked,
            "<si><t>漢字</t><rPh sb='0' eb='1'><t>かんじ</t></rPh><phoneticPr fontId='1'/></si>", "<si><t> b </t></si>",
        ]  # fmt: skip
        rows = [f'<row><c t="s"><v>0</v></c><c t="s"><v>{i}</v></c></row>'.encode() for i in range(len(spelled))]
        workbook(tmp_path / "a.xlsx", rows, [each.encode() for each in spelled])
        found = tables.ExcelReader(tmp_path / "a.xlsx", "a").first_rows
        sheet = openpyxl.load_workbook(tmp_path / "a.xlsx").worksheets[0]
        assert [[*cells, ""][1] for _, cells in found] == [cell or "" for _, cell in sheet.values]

    def test_what_is_damaged_or_hostile_is_refused(self, tmp_path, monkeypatch):
        path = self.write(tmp_path / "a.xlsx", [["label", "text"], *([["x", "a"]] * 999)])
        content, broken = path.read_bytes(), tmp_path / "b.xlsx"
        with zipfile.ZipFile(path) as whole, zipfile.ZipFile(broken, "w") as archive:
            for each in whole.namelist():
                archive.writestr(each, whole.read(each).replace(b'r="9"', b'r="999999999999"'))
        for data in (broken.read_bytes(), b"", content[:-30], content[:99] + bytes(200) + content[299:]):
            broken.write_bytes(data)
            with pytest.raises(UserError, match="cannot be read as a workbook"):
                Read(tmp_path, find_sources([str(broken)]))
        monkeypatch.setattr(tables, "MAX_WORKBOOK_BYTES", 10_000)
        with pytest.raises(UserError, match="expands to"):
            Read(tmp_path, find_sources([str(path)]))


class TestLimits:
    def test_a_line_over_the_limit(self, tmp_path):
        rows = ["x,a", f"y,{'b' * (MAX_RECORD + 10)}", f"z,{'c' * (9 << 20)}", "x,d"]
        for name, content in (("a.csv", "\n".join(rows)), ("a.tsv", "\n".join(rows).replace(",", "\t"))):
            got = read(tmp_path, name, content)
            assert [row[2] for row in got.rows] == ["a", "d"]
            assert got.reasons == [(2, "longer than 1,048,576 bytes"), (3, "longer than 1,048,576 bytes")]

    def test_several_members_and_padding(self, tmp_path):
        packed = gzip.compress(b"x,a\ny,") + gzip.compress(b"b\n") + bytes(1000)
        assert read(tmp_path, "a.csv.gz", packed).rows == [(1, "x", "a"), (2, "y", "b")]

    @pytest.mark.parametrize("content", [bz2.compress(b"x,a\n"), b"PK\x03\x04..."])
    def test_other_packings_are_refused_with_the_remedy(self, tmp_path, content):
        with pytest.raises(UserError) as caught:
            read(tmp_path, "a.csv", content)
        assert caught.value.remedy


def test_labels_by_classes_txt(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1,one\n2,two\n3,three\n0,zero\nb,name\nc,word\n")
    got = Read(tmp_path, [Source(path, "a.csv", format="csv")], class_names=("a", "b"))
    assert [row[1] for row in got.rows] == ["a", "b", "b"]
    assert [reason.split(":")[0] for _, reason in got.reasons] == ["unknown label"] * 3
