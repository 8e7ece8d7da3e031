"""Choice of columns: it is printed, it is the same in all formats, and a column of numbers is never the text."""

import random

import pandas as pd
import pytest

import crepe_dist
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.open_source import open_source
from crepe_dist.preparing.sources import ReadOptions, find_sources
from tests.conftest import write_frame

KINDS = ("csv", "tsv", "jsonl", "parquet", "xlsx")


def products(rows: int = 90) -> pd.DataFrame:
    generator = random.Random(1)
    return pd.DataFrame(
        {
            "title": [f"{generator.choice(['red shoe', 'green hat', 'blue cup'])} {row}" for row in range(rows)],
            "category": ["ab"[row % 2] for row in range(rows)],
            "price": [round(generator.uniform(1, 99), 2) for _ in range(rows)],
            "sector": [generator.choice(["north", "south", "east"]) for _ in range(rows)],
            "added": pd.date_range("2026-01-01", periods=rows).astype(str),
        }
    )


def reads(frame, path, **columns):
    opened = open_source(
        find_sources([str(write_frame(frame, path))])[0],
        ReadOptions(columns=ColumnSpec(**columns)),
    )
    opened.file.close()
    return opened.columns_description, opened.hint


@pytest.mark.parametrize("names", [["title", "category", "price"], ["category", "price", "title", "added"], None])
def test_all_formats_choose_alike(tmp_path, names):
    frame = products()[names] if names else products().drop(columns="sector")
    found = {kind: reads(frame, tmp_path / f"a.{kind}") for kind in KINDS}
    assert {each[0] for each in found.values()} == {"label: category, text: title"}
    assert {each[1] for each in found.values()} == {
        f"not read: {', '.join(name for name in frame if name in ('price', 'added'))}"
    }


def test_a_column_without_a_usual_name_is_judged_by_its_values_in_parquet_as_well(tmp_path):
    frame = products().rename(columns={"title": "wording", "category": "kind"})[["wording", "kind", "price"]]
    # Nearly all values of `wording` differ, so it is not the label. `price` is not a text.
    kinds = ("jsonl", "parquet")
    want = {reads(frame.drop(columns="price"), tmp_path / f"a.{kind}")[0] for kind in kinds}
    assert want == {"label: kind, text: wording"}
    for kind in kinds:
        with pytest.raises(UserError, match="which column is the label"):
            reads(frame.assign(price=frame["price"].round(-1)), tmp_path / f"b.{kind}")


@pytest.mark.parametrize("values", [["1.5", "2"], ["9 €", "1.234,50 €"], ["2026", "12:30"], ["1e-3", "-7"]])
def test_numbers_are_no_text(tmp_path, values):
    frame = pd.DataFrame({"label": ["a", "b"] * 30, "size": values * 30})
    for kind in ("csv", "jsonl", "parquet"):
        with pytest.raises(UserError, match="which column is the text") as caught:
            reads(frame, tmp_path / f"a.{kind}")
        assert "numbers" in caught.value.why
        assert reads(frame, tmp_path / f"a.{kind}", texts=("size",))[0] == "label: label, text: size"
    (tmp_path / "b.csv").write_text("x,3.5,fine film\ny,4.5,bad film\n" * 9)
    opened = open_source(find_sources([str(tmp_path / "b.csv")])[0], ReadOptions())
    assert opened.columns_description == "label: column 1, text: column 3"
    assert opened.hint == "not read: column 2"


def test_what_is_read_is_printed_first(tmp_path, printed_by):
    frame = products()
    write_frame(frame, tmp_path / "shop.csv")
    printed = printed_by("prepare", "shop.csv", "--out", "out", cwd=tmp_path).splitlines()
    assert printed[0] == "reads shop.csv: label: category, text: title; csv in utf-8"
    assert printed[1] == "not read: price, sector, added"
    for label in "ab":
        (tmp_path / "texts" / label).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "texts" / label / f"{number}.txt").write_text(f"text {label} {number}")
    printed = printed_by("prepare", "texts", "--out", "folder", cwd=tmp_path).splitlines()
    assert printed[0] == "reads a (and 1 more): label: the name, text: whole files; folder in utf-8"
    assert not printed[1].startswith("reads")


def test_python_prints_it_beside_its_output(tmp_path, capsys):
    crepe_dist.prepare(products(), tmp_path / "out")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("reads table: label: category, text: title")
    crepe_dist.prepare(products(), tmp_path / "quiet", verbose=False)
    assert capsys.readouterr() == ("", "")
    assert open_dataset(tmp_path / "out").fingerprint == open_dataset(tmp_path / "quiet").fingerprint
