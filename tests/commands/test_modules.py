"""Tests that `python -m crepe_dist.NAME` runs a command, and of contradictory names of data."""

import shutil
import sys

import pytest

from crepe_dist import cli
from tests.conftest import QUICK, needs_kernels, run, train, write_csv


@pytest.fixture(scope="module")
def place(data, tmp_path_factory):
    """A folder with prepared data without a validation split, a run, and a labelled file."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "data").symlink_to(data)
    train("--data=data", "--run-dir=run", *QUICK, cwd=folder)
    write_csv(folder / "new.csv", 60, 5)
    return folder


FLAGS = {
    "train data --data other": "two data folders are given: data by position, and other by --data",
    "evaluate run new.csv --split train": "new.csv has no train split",
    "evaluate run new.csv --input-format csv --data data": "FILE and --data exclude each other",
}


@needs_kernels
@pytest.mark.parametrize("words", FLAGS)
def test_it_is_refused(place, words, complaint):
    name, *flags = words.split()
    said = complaint(name, *flags, cwd=place)
    assert said.startswith(f"error: {FLAGS[words]}")
    assert "\n  do:  " in said


@needs_kernels
@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name not in ("runs", "supervise")])
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
