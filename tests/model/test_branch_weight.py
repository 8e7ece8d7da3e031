"""Weight of Crepe's convolutional branch: how it is fitted, and where a run stores it."""

import numpy as np
import pytest

import crepe_dist
from crepe_dist.data.dataset import open_dataset
from crepe_dist.distributed.init_process_group import init_process_group
from crepe_dist.model.branch_weight import WEIGHTS, BranchWeightFitter
from crepe_dist.runs import checkpoint
from crepe_dist.runs.record import open_run
from crepe_dist.training.evaluation import evaluate
from tests.conftest import QUICK, needs_kernels, train


def parts_of(share: float, rows: int = 2000, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Generate logits of two branches, and labels that follow from their sum with the second branch multiplied by a
    weight."""
    generator = np.random.default_rng(0)
    parts = generator.normal(0, 1, (rows, 2, classes))
    powers = np.exp(parts[:, 0] + share * parts[:, 1])
    below = np.cumsum(powers / powers.sum(axis=1, keepdims=True), axis=1)
    labels = (generator.random((rows, 1)) > below).sum(axis=1).clip(max=classes - 1)
    return parts.astype(np.float32), labels.astype(np.int32)


def fitted(parts: np.ndarray, labels: np.ndarray) -> float:
    counts = BranchWeightFitter()
    counts.add(parts, labels)
    return counts.best_weight()


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_weight_of_the_labels_is_found_at_any_temperature(weight):
    parts, labels = parts_of(weight)
    assert fitted(parts, labels) == weight
    assert fitted(parts * 2, labels) == weight
    assert fitted(parts / 2, labels) == weight


def test_few_texts_and_a_network_that_diverged_leave_the_weight_at_1():
    parts, labels = parts_of(0.0, rows=4)
    assert fitted(parts, labels) == BranchWeightFitter().best_weight() == 1
    assert fitted(np.full((9, 2, 3), np.nan, np.float32), np.zeros(9, np.int32)) == 1


def test_any_split_over_ranks_and_batches_gives_the_same_sums():
    parts, labels = parts_of(2.0, rows=700)
    whole, some = BranchWeightFitter(), [BranchWeightFitter() for _ in range(3)]
    whole.add(parts, labels)
    for place, each in enumerate(some):
        each.add(parts[place::3], labels[place::3])
        each.add(parts[:0], labels[:0])
    assert np.array_equal(sum(each.sums for each in some), whole.sums)


@pytest.fixture(scope="module")
def runs(data_with_validation, tmp_path_factory):
    """Folder with runs of one and two processes. The convolutional branch learns less than the n-gram branch."""
    folder = tmp_path_factory.mktemp("weighed")
    flags = ["--data", data_with_validation, *QUICK, "--optimizer=adam", "--epochs=2"]
    flags += ["--learning-rate=0.0001", "--refit=false"]
    for processes in (1, 2):
        train(*flags, "--run-dir", folder / str(processes), processes=processes)
    return folder


@needs_kernels
def test_ranks_agree_on_the_weight_and_the_checkpoint(runs):
    one, two = (open_run(runs / name) for name in ("1", "2"))
    assert one.metrics["tower_weight"] == two.metrics["tower_weight"]
    assert one.metadata["sha256"] == two.metadata["sha256"]
    assert one.metadata["calibration"] == two.metadata["calibration"]
    assert one.metadata["calibration"]["temperature"] != 1


@needs_kernels
def test_the_scores_of_the_run_are_those_of_its_checkpoint(runs, data_with_validation):
    path = checkpoint.resolve_model(str(runs / "1"))
    about = checkpoint.read_metadata(path) or {}
    assert about["metrics"]["tower_weight"] in set(WEIGHTS) - {1}
    with init_process_group() as world:
        model = crepe_dist.load(path)
        for name in ("validation", "test"):
            split = open_dataset(data_with_validation).splits[name]
            scores = evaluate(model.engine, split, 64, world, model.calibration)
            assert scores.accuracy == about["metrics"][f"{name}_accuracy"]
            assert scores.loss == pytest.approx(about["metrics"][f"{name}_loss"])
    assert scores.calibration_error == pytest.approx(about["metrics"]["test_calibration_error"], abs=1e-5)
