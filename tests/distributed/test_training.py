"""N processes compute the same as one process. chaos/test_exact_resume.py kills and resumes processes."""

from threading import Timer
from unittest import mock

import numpy as np
import pytest

import crepe_dist
from crepe_dist.errors import UserError
from crepe_dist.native import library
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.training import job
from tests import conftest
from tests.conftest import PAPER, QUICK, command, losses, needs_kernels, records, run

# MXNet's operators add in a different order. The observed differences are below 1e-6 after 21 steps.
TOLERANCE = 1e-5
# Options that change the loss or the gradient. Balanced class weights would change little, because the classes are
# equally frequent.
SHAPED = ("--typos=0.1", '--class-weights={"first": 2, "third": 0.5}')
CLIPPED = PAPER


def flags(data, run_dir, *more):
    return ("--data", data, "--run-dir", run_dir, *QUICK, "--precision=float32", "--epochs=3", *more)


def train(data, run_dir, processes, *more):
    return run(command("train", *flags(data, run_dir, *more), processes=processes), data.parent)


@pytest.fixture(scope="module")
def data(data_with_capitals):
    return data_with_capitals


@pytest.fixture(scope="module")
def single_process_runs(data, tmp_path_factory):
    """Train the runs of a single process."""
    folder = tmp_path_factory.mktemp("single")
    for name, more in (("shaped", SHAPED), ("paper", CLIPPED)):
        if name == "paper" or library.find()[0] is not None:
            conftest.train(*flags(data, folder / name, *more))
    return folder


@pytest.mark.parametrize(
    ("processes", "name", "more"),
    [pytest.param(3, "shaped", SHAPED, marks=needs_kernels), (2, "paper", CLIPPED)],
)
def test_parity_with_one_process(data, single_process_runs, tmp_path, processes, name, more):
    """The run has 21 steps. The batch of 50 documents is not divisible by 3. The last batch has a single document."""
    printed = train(data, tmp_path / "run", processes, *more)
    assert f"{processes} processes" in printed
    assert ("21 steps of 50 documents may be too few" in printed) == (name == "paper")
    assert "Traceback" not in printed
    assert "shut down" not in printed
    expected = losses(single_process_runs / name)
    assert len(expected) == 21
    one, many = (checkpoint.resolve_model(str(folder)) for folder in (single_process_runs / name, tmp_path / "run"))
    tolerance = 0.0 if library.find()[0] else TOLERANCE
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=0, abs=tolerance)
    assert (many.read_bytes() == one.read_bytes()) or tolerance
    one_arrays, many_arrays = (crepe_dist.load(path).engine.arrays for path in (one, many))
    for (key, array), many_array in zip(one_arrays.items(), many_arrays.values()):
        np.testing.assert_allclose(many_array, array, rtol=0, atol=tolerance * min(1, np.abs(array).max()), err_msg=key)
    for many_record, one_record in zip(
        records(tmp_path / "run", "epoch"), records(single_process_runs / name, "epoch")
    ):
        assert many_record["test_accuracy"] == one_record["test_accuracy"]
        assert many_record["test_loss"] == pytest.approx(one_record["test_loss"], rel=0, abs=tolerance)
    many_scores, one_scores = (scores_of(folder) for folder in (tmp_path / "run", single_process_runs / name))
    assert many_scores.confusion.tolist() == one_scores.confusion.tolist()
    assert many_scores.is_correct.tolist() == one_scores.is_correct.tolist()
    assert [mistake.row for mistake in many_scores.mistakes] == [mistake.row for mistake in one_scores.mistakes]


def scores_of(run_dir):
    return checkpoint.read_scores(checkpoint.resolve_model(str(run_dir)))["test"]


@needs_kernels
def test_our_kernels_train_like_mxnet_s_operators(data, single_process_runs, tmp_path):
    train(data, tmp_path / "mxnet", 2, *CLIPPED, "--kernels=mxnet")
    assert losses(tmp_path / "mxnet") == pytest.approx(losses(single_process_runs / "paper"), abs=TOLERANCE)


@needs_kernels
def test_only_a_process_that_may_replace_a_lost_one_waits_for_the_lock(data, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:  # A run that ends early leaves its directory.
        patch.setattr(job, "verify_data", mock.Mock(side_effect=UserError("lost")))
        with pytest.raises(UserError, match="lost"):
            conftest.train(*flags(data, run_dir))
    lock = RunDir(run_dir).lock()
    with pytest.raises(UserError, match="another process is training"):
        conftest.train(*flags(data, run_dir))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    Timer(1, lock.close).start()
    conftest.train(*flags(data, run_dir))
    assert (run_dir / "result.json").exists()
