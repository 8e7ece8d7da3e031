"""Tests that flags without effect are refused, and that `python -m crepe_dist.NAME` runs a command."""

import shutil
import sys

import pandas as pd
import pytest

import crepe_dist
from crepe_dist import cli
from crepe_dist.errors import UserError
from crepe_dist.settings.config import parse
from tests.conftest import QUICK, needs_kernels, run, train, write_csv


@pytest.fixture(scope="module")
def place(data, tmp_path_factory):
    """A folder with prepared data without a validation split, a run, and files of several formats."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "data").symlink_to(data)
    train("--data=data", "--run-dir=run", *QUICK, cwd=folder)
    write_csv(folder / "new.csv", 60, 5)
    pd.read_csv(folder / "new.csv", names=["label", "text"]).to_parquet(folder / "new.parquet")
    for label in "ab":
        (folder / "classes" / label).mkdir(parents=True)
        (folder / "classes" / label / "1.txt").write_text("some text")
    return folder


FLAGS = {
    "train data --model ngrams --width 32": "--width has no effect\n  why: --model ngrams does not read this setting",
    "train data --model paper --buckets 64": "--buckets has no effect",
    "train data --model paper --refit true": "--refit has no effect",
    "train data --refit true": "--refit has no effect\n  why: the data have no validation split",
    "train data --refit true --init-from run": "--refit has no effect\n  why: --init-from",
    "train data --metric-for-best-model macro_f1": "--metric-for-best-model has no effect",
    "train data --unlabelled true": "--unlabelled has no effect\n  why: the data have no unlabelled texts",
    "train data --data other": "two data folders are given: data by position, and other by --data",
    "inspect data --num-suggestions 100": "--num-suggestions has no effect",
    "inspect data --encoding cp1252": "--encoding has no effect",
    "evaluate run --input-format csv": "--input-format has no effect\n  why: these flags apply to a labelled file",
    "evaluate run --label y --text-column x": "--label and --text-column have no effect",
    "evaluate run --header no --data data": "--header has no effect",
    "evaluate run new.csv --split train": "new.csv has no train split",
    "evaluate run new.parquet --encoding cp1252": "--encoding has no effect on new.parquet",
    "evaluate run new.csv --input-format csv --data data": "FILE and --data exclude each other",
    "predict run --text x --header no": "--header has no effect",
    "predict run --text x --encoding utf-8": "--encoding has no effect",
    "predict run --input-format lines --text-column 2 --file new.csv": "--text-column has no effect on new.csv",
    "predict run --file new.parquet --header no": "--header has no effect on new.parquet",
    "drift run new.parquet --encoding cp1252": "--encoding has no effect on new.parquet",
    "prepare --verify data --seed 3": "--seed has no effect",
    "prepare classes --text x --out new": "--text-column has no effect on a, b",
    "prepare classes --label x --out new": "--label has no effect on a, b",
    "prepare classes --input-format csv --out new": "--input-format has no effect on a, b",
    "prepare new.parquet --encoding cp1252 --out new": "--encoding has no effect on new.parquet",
    "prepare sample --header no --out new": "--header has no effect",
    "prepare new.csv --test new.csv --validation new.csv --stratified --out new": "--stratified has no effect",
}


@needs_kernels
@pytest.mark.parametrize("words", FLAGS)
def test_it_is_refused(place, words, complaint):
    name, *flags = words.split()
    said = complaint(name, *flags, cwd=place)
    assert said.startswith(f"error: {FLAGS[words]}")
    assert "\n  do:  " in said
    assert not (place / "new").exists()


@needs_kernels
def test_what_has_an_effect_on_one_of_several_sources_is_accepted(place, tmp_path, printed_by):
    printed_by("prepare", "new.csv", "classes", "--header", "no", "--out", tmp_path / "out", cwd=place)
    printed_by("predict", "run", "--file", "new.csv", "--text-column", 2, "--header", "no", cwd=place)


@needs_kernels
def test_python_says_so_in_its_words(place, tmp_path):
    new = str(place / "new.csv")
    with pytest.raises(UserError, match="stratified=True has no effect"):
        crepe_dist.prepare(new, tmp_path / "out", test=new, validation=new, stratified=True)
    with pytest.raises(UserError, match="--refit has no effect"):
        crepe_dist.fit(str(place / "data"), refit=True, model="paper")


def test_settings_of_a_file_may_have_no_effect(tmp_path):
    """A settings file of another run contains all settings. Those without effect are ignored."""
    (tmp_path / "config.yaml").write_text("model:\n  network: ngrams\n  width: 32\n")
    assert parse(["--config", str(tmp_path / "config.yaml")]).model.width == 32
    with pytest.raises(UserError, match="--width has no effect"):
        parse(["--config", str(tmp_path / "config.yaml"), "--width", "64"])


@needs_kernels
@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name not in (*cli.MANAGE_COMMANDS, "supervise")])
def test_each_module_of_a_command_is_that_command(name, place):
    printed = run([sys.executable, "-m", f"crepe_dist.{name}", "--help"], place)
    assert printed.startswith(f"usage: python -m crepe_dist {name} ")


@needs_kernels
def test_a_module_works_and_another_names_the_commands(place, tmp_path):
    printed = run([sys.executable, "-m", "crepe_dist.predict", "run", "--text", "zig"], place)
    assert "%" in printed
    said = run([sys.executable, "-m", "crepe_dist.manage"], place, code=1)
    assert "there is no command manage" in said
    assert "runs, use" in said


@needs_kernels
def test_the_data_are_named_as_by_inspect_and_tune(place, tmp_path):
    shutil.copytree(place / "data", tmp_path / "data")
    printed = train("data", "--run-dir=flags", *QUICK, cwd=tmp_path)
    assert "finished" in train(*QUICK, "--run-dir=flags", "data/", "--data=data", cwd=tmp_path), printed
    for start in (
        [sys.executable, "-m", "crepe_dist.train", "data"],
        [sys.executable, "-m", "crepe_dist", "supervise", "-np", "2", "data"],
    ):
        said = run([*start, "--run-dir=flags", *QUICK], tmp_path)
        assert "flags is finished" in said
        assert "crepe_dist evaluate flags\n" in said
        assert said.count("crepe_dist serve flags\n") == 1
