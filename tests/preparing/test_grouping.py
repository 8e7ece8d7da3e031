"""Groups of rows: whole groups are drawn for a split, in any order of reading, and the numbers of groups are stored."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

import crepe_dist
from crepe_dist.data.dataset import SPLITS, open_dataset
from crepe_dist.data.verification import verify
from crepe_dist.errors import UserError
from crepe_dist.preparing.grouping import connected_components
from crepe_dist.preparing.splitting import MIN_ROWS_FOR_VALIDATION
from tests.conftest import command, run, write_frame

GENERATOR = np.random.default_rng(0)
NO_PRINT: Any = {"feature_len": 123, "verbose": False}


def frame(rows=1000, hosts=60, classes=2, seed=0):
    """Texts of hosts of different sizes. Each host prefers a class."""
    generator = np.random.default_rng(seed)
    host = (hosts * generator.random(rows) ** 2).astype(int)
    label = np.where(generator.random(rows) < 0.7, host % classes, generator.integers(0, classes, rows))
    texts = [f"number {row} of all" for row in range(rows)]
    return pd.DataFrame({"host": [f"h{value}" for value in host], "label": label, "text": texts})


def prepared(table, folder, **options):
    crepe_dist.prepare(table, folder, **{"group": "host", **NO_PRINT, **options})
    return open_dataset(folder)


def groups_of(data, split):
    """Return the set of the numbers of the groups in a split."""
    return set(np.asarray(data.splits[split].groups).tolist())


def rows_of(data, split):
    """Return the numbers of the rows of a table that are in a split."""
    return np.array([data.origin(split, row).line - 1 for row in range(len(data.splits[split]))])


def values_of(data, table, column="host"):
    """Return the set of values of each split."""
    return {split: set(table[column].iloc[rows_of(data, split)]) for split in data.splits}


def assert_disjoint(sets):
    values = [value for members in sets.values() for value in members]
    assert len(values) == len(set(values))


def reference_components(table):
    """Return the component of each row of a table of ints, by merging sets. 0 is a missing value."""
    components = list(range(len(table)))
    for column in range(table.shape[1]):
        for value in set(table[:, column].tolist()) - {0}:
            merged = {components[row] for row in np.flatnonzero(table[:, column] == value)}
            components = [min(merged) if component in merged else component for component in components]
    return components


@pytest.mark.parametrize("seed", range(20))
def test_rows_that_share_a_value_in_any_column_are_connected(seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 200))
    table = generator.integers(0, generator.integers(2, 2 * count + 2), (count, 3))
    columns = [(column.astype(np.uint64), column == 0) for column in table.T]
    expected = reference_components(table)
    numbers = {component: number for number, component in enumerate(dict.fromkeys(expected))}
    assert connected_components(columns, count).tolist() == [numbers[component] for component in expected]


def test_a_long_chain_is_one_component():
    rows = np.arange(20_000)
    one, two = (rows // 2 + 1).astype(np.uint64), ((rows + 1) // 2 + 1).astype(np.uint64)
    for order in (rows, rows[::-1], GENERATOR.permutation(rows)):
        columns = [(keys[order], np.zeros(len(rows), np.bool_)) for keys in (one, two)]
        assert not connected_components(columns, len(rows)).any()


@pytest.mark.parametrize("options", [{}, {"dedupe": "near"}])
def test_no_group_is_in_two_splits_and_fractions_are_met(tmp_path, options):
    table = frame()
    data = prepared(table, tmp_path / "out", test=0.2, validation=0.1, **options)
    assert_disjoint(values_of(data, table))
    total = sum(map(len, data.splits.values()))
    for split, fraction in (("test", 0.2), ("validation", 0.1)):
        assert len(data.splits[split]) == pytest.approx(fraction * total, abs=0.01 * total)
    verify(data)
    assert data.manifest["groups"]["count"] == len(set(table["host"]))
    for split in SPLITS:
        hosts = table["host"].iloc[rows_of(data, split)].tolist()
        groups = data.splits[split].groups.tolist()
        assert len(set(zip(hosts, groups))) == len(set(hosts)) == len(set(groups))


def test_the_order_of_reading_changes_nothing(tmp_path):
    table = frame(hosts=300)
    first = prepared(table, tmp_path / "first", validation=0.1)
    hosts = values_of(first, table)
    order = GENERATOR.permutation(len(table))
    shuffled = table.iloc[order].reset_index(drop=True)
    assert values_of(prepared(shuffled, tmp_path / "shuffled", validation=0.1), shuffled) == hosts
    assert values_of(prepared(table, tmp_path / "seed", validation=0.1, seed=1), table) != hosts


def test_a_group_keeps_its_random_number_if_other_groups_are_added(tmp_path):
    """So most of a test split stays the same if rows are added."""
    table = frame(hosts=400)
    more = pd.concat([table, frame(rows=100, hosts=40, seed=1).assign(host=lambda rows: "new" + rows["host"])])
    more["text"] = [f"number {row} of all" for row in range(len(more))]
    before, after = (
        values_of(prepared(each, tmp_path / f"{len(each)}"), each)["test"] for each in (table, more.reset_index())
    )
    assert len(before & after) > 0.7 * len(before)


def test_a_row_without_a_value_is_a_group_by_itself(tmp_path):
    table = frame(rows=300)
    table.loc[table.index % 3 == 0, "host"] = [None, "", "  ", float("nan")] * 25
    data = prepared(table, tmp_path / "out")
    assert data.manifest["groups"]["count"] == 100 + table["host"][table.index % 3 != 0].nunique()
    missing = [len([row for row in rows_of(data, split) if row % 3 == 0]) for split in ("train", "test")]
    assert min(missing) > 5
    assert_disjoint({split: {value for value in values if str(value).startswith("h")}
                     for split, values in values_of(data, table).items()})  # fmt: skip


def test_rows_that_share_a_value_in_any_of_several_columns_stay_together(tmp_path):
    rows = np.arange(400)
    table = frame(rows=400).assign(host=rows // 4, author=np.where(rows % 8 == 4, (rows - 1) // 4, 1000 + rows))
    table.loc[rows % 8 == 3, "author"] = rows[rows % 8 == 3] // 4  # It connects two hosts.
    data = prepared(table, tmp_path / "out", group=["host", "author"])
    assert data.manifest["groups"] == {"columns": ["host", "author"], "count": 50}
    assert_disjoint({split: set(rows_of(data, split) // 8) for split in data.splits})
    assert prepared(table, tmp_path / "one", group="host").manifest["groups"]["count"] == 100


def test_near_duplicates_that_are_kept_are_one_group(tmp_path):
    table = frame(rows=400).assign(host=np.arange(400))
    table["text"] = [f"Text {row // 2}{'!' * (row % 2)}" for row in range(400)]
    data = prepared(table, tmp_path / "kept")
    assert data.manifest["groups"]["count"] == 200
    assert_disjoint({split: set(rows_of(data, split) // 2) for split in data.splits})
    assert prepared(table, tmp_path / "left_out", dedupe="near").manifest["groups"]["count"] == 200
    assert len(prepared(table, tmp_path / "left_out", dedupe="near", overwrite=True).splits["train"]) == 160


@pytest.mark.parametrize("form", ["csv", "bare.csv", "tsv", "jsonl", "parquet"])
def test_every_table_may_have_groups(tmp_path, form, printed_by):
    table = frame(rows=200)[["label", "host", "text"]].assign(label=lambda rows: "c" + rows["label"].astype(str))
    path = write_frame(table, tmp_path / f"table.{form}")
    options = ["--group", "2"] if form == "bare.csv" else ["--group", "host"]
    printed = printed_by("prepare", path, "--out", "out", *options, cwd=tmp_path)
    assert f"{table['host'].nunique()} groups by " in printed
    data = open_dataset(tmp_path / "out")
    lines = {split: [data.origin(split, row).line for row in range(len(data.splits[split]))] for split in data.splits}
    first = min(line for split in lines.values() for line in split)
    assert_disjoint({split: set(table["host"].iloc[np.array(values) - first]) for split, values in lines.items()})
    assert "groups" not in json.dumps(data.manifest["reading"])


def test_groups_change_nothing_else(tmp_path):
    """A group column is no text, may have any other purpose, and no data set has groups unless they are requested."""
    table = frame()
    plain = prepared(table, tmp_path / "plain", group=())
    assert plain.splits["test"].groups is None
    assert "groups" not in plain.manifest
    assert not list((tmp_path / "plain").glob("*.groups.npy"))
    only = prepared(
        {"url": table["host"], "label": table["label"], "words": table["text"]}, tmp_path / "u", group="url"
    )
    assert only.preprocessor.columns == ("words",)
    as_id = prepared(table, tmp_path / "id", id="host")
    assert as_id.origin("test", 0).id == table["host"][as_id.origin("test", 0).line - 1]
    of_text = prepared(table.assign(text=table["host"]), tmp_path / "text", group="text", dedupe="no")
    assert of_text.manifest["groups"]["count"] == table["host"].nunique()


def test_groups_of_test_files_are_named_if_they_are_also_trained_on(tmp_path):
    table = frame(hosts=20)
    test = frame(rows=50, hosts=2, seed=3).assign(text=lambda rows: "other " + rows["text"])
    test.loc[:9, "host"] = "unknown"
    options = {"test": test, "validation": 0.1}
    summary = crepe_dist.prepare(table, tmp_path / "out", group="host", **options, **NO_PRINT)
    shared = summary["groups"]["across"]
    assert (
        shared.pop("test in train", {"groups": 0})["groups"] + shared.pop("test in validation", {"groups": 0})["groups"]
        == 2
    )
    assert shared == {}
    (warning,) = (each for each in summary["warnings"] if "also in the train split" in each["what"])
    assert "host 'h0'" in warning["why"] + str(summary["warnings"])
    assert "of the test rows" in warning["why"]
    data = open_dataset(tmp_path / "out")
    assert groups_of(data, "test") & groups_of(data, "train")
    unknown = frame(rows=50, seed=3).assign(host="unknown", text=lambda rows: "other " + rows["text"])
    for held_out in (unknown, unknown.drop(columns="host")):
        options = {"test": held_out, "validation": 0.1, "overwrite": True}
        summary = crepe_dist.prepare(table, tmp_path / "out", group="host", **options, **NO_PRINT)
        assert summary["groups"]["across"] == {}
        assert len(groups_of(open_dataset(tmp_path / "out"), "test")) == (1 if "host" in held_out else 50)


def test_fractions_that_groups_do_not_allow_are_reported(tmp_path):
    table = frame(rows=300).assign(host=np.minimum(np.arange(300) // 90, 3))  # Three groups of 90 rows, and one of 30.
    summary = crepe_dist.prepare(table, tmp_path / "out", group="host", test=0.2, **NO_PRINT)
    assert summary["groups"]["fractions"]["test"] == [0.2, pytest.approx(0.3, abs=0.21)]
    path = write_frame(table, tmp_path / "table.csv")
    printed = run(command("prepare", path, "--group", "host", "--out", "o"), tmp_path)
    drawn = len(open_dataset(tmp_path / "o").splits["test"]) / 3
    assert f"test {drawn:.1f} % of the rows instead of 20.0 %: groups stay together" in " ".join(printed.split())
    assert f"the test split has {drawn:.1f} % of the rows instead of 20.0 %" in " ".join(printed.split())
    for hosts, largest, remedy in ((1, "100.0 %", "other columns with group="), (2, "50.0 %", "test=")):
        table["host"] = np.arange(300) * hosts // 300
        with pytest.raises(UserError, match="no group is small enough for the test split") as caught:
            crepe_dist.prepare(table, tmp_path / "none", group="host", **NO_PRINT)
        assert 'dedupe="near"' in caught.value.remedy
        assert remedy in caught.value.remedy
        assert f"the largest has {largest}" in caught.value.why


def test_columns_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(UserError, match="no column 'hots'") as caught:
        prepared(frame(), tmp_path / "out", group="hots")
    assert "did you mean 'host'" in caught.value.remedy
    (tmp_path / "lines.txt").write_text("__label__a text one\n__label__b text two\n" * 20)
    with pytest.raises(UserError, match="no column 'host'"):
        prepared(tmp_path / "lines.txt", tmp_path / "out")


def test_unlabelled_texts_have_no_groups(tmp_path):
    table = frame(rows=MIN_ROWS_FOR_VALIDATION)
    data = prepared(table, tmp_path / "out", unlabelled={"text": ["one text", "and another"]})
    assert len(data.unlabelled) == 2
    assert not list((tmp_path / "out").glob("unlabelled.groups*"))
    assert len(data.splits["validation"]) == pytest.approx(0.1 * MIN_ROWS_FOR_VALIDATION, abs=5)
