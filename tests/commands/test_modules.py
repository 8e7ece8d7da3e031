"""Tests that `python -m crepe_dist.NAME` runs a command, and of contradictory names of data."""

import shutil
import sys

import pytest

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
def test_a_module_works(place):
    printed = run([sys.executable, "-m", "crepe_dist.predict", "run", "--text", "zig"], place)
    assert "%" in printed


@needs_kernels
def test_the_data_are_named_by_position_or_by_flag(place, tmp_path):
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
