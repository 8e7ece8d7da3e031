"""Output files of predict: Parquet, URLs, links and pipes, and what an interruption leaves."""

import datetime
import decimal
import json
import os

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crepe_dist.commands import predict
from crepe_dist.errors import UserError
from crepe_dist.predicting import arrow_file
from crepe_dist.preparing import remote
from crepe_dist.preparing.formats import lines
from tests.conftest import needs_kernels, write_csv

pytestmark = needs_kernels

ROWS = 1500


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with files of all formats that contain the same texts. Every 100th text is missing."""
    folder = tmp_path_factory.mktemp("answers")
    texts = pd.read_csv(write_csv(folder / "rows.csv", ROWS, seed=5), names=["label", "text"])["text"]
    frame = pd.DataFrame({"id": range(ROWS), "text": texts.where(texts.index % 100 > 0, "")})
    frame.loc[7, "text"] = '=quote " comma,\nline\r\n'
    frame.to_csv(folder / "a.csv", index=False)
    kept = frame.assign(list=pd.Series([[row] for row in range(ROWS)]))
    kept.to_parquet(folder / "a.parquet", index=False, row_group_size=250)
    frame.to_json(folder / "a.jsonl", orient="records", lines=True)
    return folder


def classify(printed_by, *flags: object) -> None:
    """Run ``predict``, and check the error about the rows without a text."""
    with pytest.raises(UserError, match=f"{ROWS // 100} of {ROWS:,} rows could not be classified"):
        printed_by("predict", *flags)


def interrupt_after(groups: int, monkeypatch) -> None:
    """Make ``predict`` raise KeyboardInterrupt after some groups of rows."""
    count = predict.RowCounts.add

    def interrupted(self, results):
        for number, output in enumerate(count(self, results)):
            if number == groups:
                raise KeyboardInterrupt
            yield output

    monkeypatch.setattr(predict.RowCounts, "add", interrupted)


@pytest.mark.parametrize(
    ("source", "target", "filtered"),
    [
        ("a.csv", "out.jsonl", ()),
        ("a.parquet", "out.csv", ("--score-class", "first", "--min-score", "0.4", "--windows")),
        ("a.jsonl", "memory://out/out.parquet", ("--score-class", "first", "--min-score", "1")),
        ("a.parquet", "out.parquet", ("--score-class", "first", "--min-score", "0.34")),
    ],
)
def test_the_number_of_processes_and_urls_do_not_change_the_file(
    source, target, filtered, folder, quick_run, tmp_path, printed_by, monkeypatch
):
    memory = fsspec.filesystem("memory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    # A version that could resume left a folder of this name. Its contents do not matter.
    (tmp_path / f".{target.rpartition('/')[2]}.partial").mkdir()
    (tmp_path / f".{target.rpartition('/')[2]}.partial" / "answers").write_text("old")

    def taken() -> bytes:
        if "://" in target:
            content: bytes = memory.cat_file("/out/out.parquet")
            memory.rm("/out/out.parquet")
            return content
        content = (tmp_path / target).read_bytes()
        (tmp_path / target).unlink()
        return content

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    classify(printed_by, quick_run, "--file", folder / source, "--out", target, *filtered)
    want = taken()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # Several processes then share the file.
    monkeypatch.setattr(lines, "PIECE", 1 << 12)
    memory.pipe(f"/in/{source}", (folder / source).read_bytes())
    classify(printed_by, quick_run, "--file", f"memory://in/{source}", "--out", target, *filtered)
    assert taken() == want
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".partial"} <= {"cache"}
    assert not list(tmp_path.glob("cache/crepe_dist/predictions/*"))


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
@pytest.mark.parametrize("source", ["a.csv", "a.parquet"])
def test_an_interruption_keeps_the_target_and_the_temporary_file(
    name, source, folder, quick_run, tmp_path, printed_by, monkeypatch, capfd
):
    """The temporary file is beside the target of a link, and the next command replaces that target."""
    (tmp_path / "far").mkdir()
    (tmp_path / "link").mkdir()
    target, link = tmp_path / "far" / name, tmp_path / "link" / name
    target.write_text("old")
    link.symlink_to(target)
    flags = (quick_run, "--file", folder / source, "--out", link)
    monkeypatch.setattr(arrow_file, "GROUP_ROWS", 1)
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            printed_by("predict", *flags)
    (temporary,) = set((tmp_path / "far").iterdir()) - {target}
    assert f"{link} was not written; the incomplete predictions are in {temporary}" in capfd.readouterr().err
    written = pd.read_csv(temporary) if name == "out.csv" else pq.read_table(temporary)
    assert 0 < len(written) < ROWS
    assert target.read_text() == "old"
    assert os.listdir(tmp_path / "link") == [name]
    temporary.unlink()
    classify(printed_by, *flags)
    assert link.is_symlink()
    assert target.stat().st_size > ROWS
    assert os.listdir(tmp_path / "far") == [name]


def test_a_failed_upload_keeps_the_predictions(folder, quick_run, tmp_path, printed_by, monkeypatch, capfd):
    def fail(*_args: object) -> None:
        raise UserError("no network")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "upload", fail)
    with pytest.raises(UserError, match="no network"):
        printed_by("predict", quick_run, "--file", folder / "a.csv", "--out", "memory://out/out.csv")
    (kept,) = tmp_path.glob("cache/crepe_dist/predictions/*/out.csv")
    assert len(pd.read_csv(kept)) == ROWS
    assert f"out.csv was not written; all predictions are in {kept}" in capfd.readouterr().err


def test_answers_are_written_to_a_pipe_as_to_standard_output(folder, quick_run, tmp_path, printed_by):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "texts").write_text("one\ntwo\n")
    flags = (quick_run, "--file", tmp_path / "texts", "--format", "csv")
    for name in ("pipe", "link"):
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        printed_by("predict", *flags, "--out", tmp_path / name)
        assert os.read(reader, 1 << 16).decode() == printed_by("predict", *flags)
        os.close(reader)
        with pytest.raises(UserError, match="--format parquet requires a file"):
            printed_by("predict", *flags[:-1], "parquet", "--out", tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe", "texts"]


def test_all_files_of_scores_follow_links(folder, quick_run, tmp_path, printed_by):
    names = {"--json": "a.json", "--html": "a.html", "--mistakes": "a.csv"}
    (tmp_path / "far").mkdir()
    for name in names.values():
        (tmp_path / name).symlink_to(f"far/{name}")
    flags = {flag: (flag, tmp_path / name) for flag, name in names.items()}
    printed_by("evaluate", quick_run, *flags["--json"], *flags["--html"], *flags["--mistakes"])
    assert sorted(os.listdir(tmp_path / "far")) == sorted(names.values())
    assert all((tmp_path / name).is_symlink() for name in names.values())


def of_all_kinds(rows: int) -> pa.Table:
    """Return a table with metadata and with columns of many types, including nested types."""
    now = datetime.datetime(2026, 1, 2, 3, 4, 5, 678, datetime.UTC)

    def every(kind: pa.DataType, *values: object) -> pa.Array:
        return pa.array([values[row % len(values)] for row in range(rows)], kind)

    columns = {
        "text": every(pa.string(), "quaqua", "=1+1 zig", 'a "quote",\r\n\nvex', "\n"),
        "null text": every(pa.large_string(), None, "", "x" * 99, '"\n'),
        "small": every(pa.int8(), 1, None),
        "number": every(pa.float64(), 0.1 + 0.2, None, float("inf")),
        "flag": every(pa.bool_(), True, None, False),
        "time": every(pa.timestamp("us", "Europe/Berlin"), now, None),
        "day": every(pa.date32(), now.date(), None),
        "took": every(pa.duration("ms"), datetime.timedelta(seconds=3), None),
        "price": every(pa.decimal128(9, 2), decimal.Decimal("1.20"), None),
        "bytes": every(pa.binary(), b"\xff\0\n", None, b""),
        "key": every(pa.binary(4), b"\xff\0\n1", None),
        "kind": every(pa.string(), "=a", "b", None).dictionary_encode(),
        "list": every(pa.list_(pa.float32()), [1.5, None], [], None),
        "struct": every(pa.struct([("a.b", pa.list_(pa.string())), ("c", pa.int64())]), {"a.b": ["x"], "c": 1}, None),
        "map": every(pa.map_(pa.string(), pa.int32()), [("k", 1)], None),
        "a.b": every(pa.list_(pa.struct([("x", pa.string())])), [{"x": "y"}, None], None),
        "nothing": pa.nulls(rows),
    }
    schema = pa.schema([pa.field(name, each.type, metadata={"of": name}) for name, each in columns.items()])
    return pa.table(list(columns.values()), schema.with_metadata({"by": "test"}))


ADDED = ["predicted_class", "predicted_probability", "characters_cut", "problem"]


@pytest.mark.parametrize("flags", [(), ("--score-class", "first", "--min-score", "0.36")])
def test_parquet_keeps_all_columns_and_their_types(flags, quick_run, tmp_path, printed_by, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    table = of_all_kinds(1000)
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=300)
    table = pq.read_table(tmp_path / "in.parquet")  # With the types that any reader of the file gets.
    with pytest.raises(UserError, match="250 of 1,000 rows could not be classified"):
        printed_by("predict", quick_run, "--file", tmp_path / "in.parquet", "--out", tmp_path / "out.parquet", *flags)
    got = pq.read_table(tmp_path / "out.parquet")
    added = [ADDED[0], ADDED[1], *["score"] * bool(flags), *ADDED[2:]]
    assert got.column_names == [*table.column_names, *added]
    assert [str(got.schema.field(name).type) for name in ADDED] == ["string", "double", "int64", "string"]
    assert got.schema.metadata == table.schema.metadata
    scores = got.column("score").to_pylist() if flags else ()
    assert all(each is None or each >= 0.36 for each in scores)
    if flags:
        kept = {text for text, score in zip(got.column("text").to_pylist(), scores) if score is not None}
        assert 0 < len(kept) < 3
        table = table.filter(pa.array([text in kept or text == "\n" for text in table.column("text").to_pylist()]))
    own = got.select(table.column_names)
    assert own.schema.equals(table.schema, check_metadata=True)
    assert own.equals(table)
    empty = pa.array([text == "\n" for text in table.column("text").to_pylist()])
    assert got.filter(empty).column("problem").to_pylist()[0].startswith("line 4: empty text")
    assert set(got.filter(empty).column("predicted_probability").to_pylist()) == {None}


def test_parquet_keeps_nan(quick_run, tmp_path, printed_by):
    values = [float("nan"), None, -0.0, 5e-324]
    pq.write_table(pa.table({"text": ["quaqua"] * 4, "x": values}), tmp_path / "in.parquet")
    printed_by("predict", quick_run, "--file", tmp_path / "in.parquet", "--out", tmp_path / "out.parquet")
    assert repr(pq.read_table(tmp_path / "out.parquet").column("x").to_pylist()) == repr(values)


def test_csv_names_the_columns_that_it_cannot_hold(quick_run, tmp_path, printed_by):
    pq.write_table(pa.table({"text": ["quaqua"], "list": [[1]], "n": [1]}), tmp_path / "in.parquet")
    with pytest.warns(
        UserWarning,
        match="the columns list of .* are not copied: their values are nested; --format parquet copies them",
    ):
        printed = printed_by("predict", quick_run, "--file", tmp_path / "in.parquet", "--format", "csv")
    assert printed.startswith("text,n,predicted_class")


@pytest.mark.parametrize("is_required", [False, True])
def test_rows_whose_own_columns_are_damaged_keep_their_answers(is_required, quick_run, tmp_path, printed_by):
    fields = [pa.field("text", pa.string(), not is_required), pa.field("list", pa.list_(pa.int64()))]
    table = pa.table([["quaqua zig"] * 900, [[row] * 9 for row in range(900)]], pa.schema(fields))
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=300, use_dictionary=False)
    chunk = pq.read_metadata(tmp_path / "in.parquet").row_group(1).column(1)
    content = bytearray((tmp_path / "in.parquet").read_bytes())
    content[chunk.data_page_offset : chunk.data_page_offset + 40] = bytes(range(215, 255))
    (tmp_path / "in.parquet").write_bytes(content)
    with pytest.warns(UserWarning, match="300 rows could not be read a second time: their copied columns are null"):
        printed_by("predict", quick_run, "--file", tmp_path / "in.parquet", "--out", tmp_path / "out.parquet")
    got = pq.read_table(tmp_path / "out.parquet")
    assert got.column("list").to_pylist() == [None if 300 <= row < 600 else [row] * 9 for row in range(900)]
    assert got.column("predicted_class").null_count == 0
    problems = got.column("problem").to_pylist()
    assert [row for row in range(900) if problems[row]] == list(range(300, 600))
    assert problems[300].startswith("line 301: unreadable: ")


def test_a_file_that_changes_under_way_is_not_mixed_with_its_answers(quick_run, tmp_path, printed_by, monkeypatch):
    pq.write_table(pa.table({"text": ["quaqua"]}), tmp_path / "in.parquet")
    count = predict.RowCounts.add

    def changed(self, results):
        yield from count(self, results)
        os.utime(tmp_path / "in.parquet")

    monkeypatch.setattr(predict.RowCounts, "add", changed)
    with pytest.raises(UserError, match="has changed while its rows were classified"):
        printed_by("predict", quick_run, "--file", tmp_path / "in.parquet", "--out", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_parquet_keeps_texts_of_any_characters(quick_run, tmp_path, printed_by):
    texts = ["\ufeffa", 'a "quoted"\n\n"word\0', "\r\n.", '".', "x" * 200, "last\n", 'zig "\n\n"\n' * 50_000] * 3
    records = [json.dumps({"text": text, "more": "x\ud800"}) for text in texts]
    (tmp_path / "in.jsonl").write_text("\n".join(records))
    flags = ("--file", tmp_path / "in.jsonl", "--text-column", "text", "--out", tmp_path / "out.parquet")
    printed_by("predict", quick_run, *flags)
    got = pq.read_table(tmp_path / "out.parquet")
    assert got.column("text").to_pylist() == texts
    assert set(got.column("more").to_pylist()) == {"x?"}  # UTF-8 has no lone surrogates


def test_a_table_with_a_column_of_the_answers(quick_run, tmp_path, printed_by, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twice.csv").write_text("text,problem\na,b\n")
    flags = ("--out", "b.parquet", "--text-column", "text", "--file", "twice.csv")
    with pytest.raises(UserError, match="two columns 'problem'"):
        printed_by("predict", quick_run, *flags)
    assert os.listdir(tmp_path) == ["twice.csv"]
