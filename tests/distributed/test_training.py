"""N processes compute the same as one process; chaos/test_exact_resume.py kills and resumes them."""

from __future__ import annotations

import numpy as np
import pytest

import crepe_dist
from crepe_dist.native import library
from crepe_dist.runs import checkpoint
from tests import conftest
from tests.conftest import PAPER, QUICK, command, losses, readable, records, run

# MXNet's operators add up in another order: differences seen are below 1e-6 in 21 steps.
TOLERANCE = 1e-5
# What changes a loss or a gradient; balanced weights of equally frequent classes would change little.
SHAPED = ("--clip-norm=0.05", "--typos=0.1", "--label-smoothing=0.1", '--class-weights={"first": 2, "third": 0.5}')
CLIPPED = (*PAPER, "--clip-norm=0.05")


def flags(data, run_dir, *more):
    return readable("--data", data, "--run-dir", run_dir, *QUICK, "--precision=float32", "--epochs=3", *more)


def train(data, run_dir, processes, *more):
    return run(command("train", *flags(data, run_dir, *more), processes=processes), data.parent)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The runs of one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name, more in (("shaped", SHAPED), ("paper", CLIPPED)):
        conftest.train(*flags(data, folder / name, *more))
    return folder


@pytest.mark.parametrize(
    ("processes", "name", "more"),
    [(3, "shaped", SHAPED), (2, "paper", CLIPPED)],
)
def test_parity_with_one_process(data, alone, tmp_path, processes, name, more):
    """21 steps; 50 documents divide by neither 3 nor 4, and an epoch's last batch has a single document."""
    printed = train(data, tmp_path / "run", processes, *more)
    assert f"{processes} processes" in printed
    assert ("21 steps may be too few" in printed) == (name == "paper")
    assert "Traceback" not in printed
    assert "shut down" not in printed
    expected = losses(alone / name)
    assert len(expected) == 21
    one, many = (checkpoint.resolve_model(str(folder)) for folder in (alone / name, tmp_path / "run"))
    tolerance = 0.0 if library.find()[0] else TOLERANCE
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=0, abs=tolerance)
    assert (many.read_bytes() == one.read_bytes()) or tolerance
    before, after = (crepe_dist.load(path).engine.arrays for path in (one, many))
    for (key, array), other in zip(before.items(), after.values()):
        np.testing.assert_allclose(other, array, rtol=0, atol=tolerance * min(1, np.abs(array).max()), err_msg=key)
    for mine, theirs in zip(records(tmp_path / "run", "epoch"), records(alone / name, "epoch")):
        assert mine["test_accuracy"] == theirs["test_accuracy"]
        assert mine["test_loss"] == pytest.approx(theirs["test_loss"], rel=0, abs=tolerance)
    mine, theirs = (scores_of(folder) for folder in (tmp_path / "run", alone / name))
    assert mine.confusion.tolist() == theirs.confusion.tolist()
    assert mine.is_correct.tolist() == theirs.is_correct.tolist()
    assert [each.row for each in mine.mistakes] == [each.row for each in theirs.mistakes]


def scores_of(run_dir):
    return checkpoint.read_scores(checkpoint.resolve_model(str(run_dir)))["test"]


def test_the_kernels_train_as_mxnet_s_operators_do(data, alone, tmp_path):
    train(data, tmp_path / "mxnet", 2, *CLIPPED, "--kernels=mxnet")
    assert losses(tmp_path / "mxnet") == pytest.approx(losses(alone / "paper"), abs=TOLERANCE)
