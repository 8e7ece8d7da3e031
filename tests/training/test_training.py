"""Training in one process, by the commands and by the Python API."""

import json
from pathlib import Path

import pytest

import crepe_dist.train
from crepe_dist.runs.resume_state import TrainerState
from crepe_dist.settings.config import parse
from crepe_dist.settings.options import OptimizerOptions
from crepe_dist.training.context import lr_at, next_lr
from tests import conftest
from tests.conftest import NGRAMS, PAPER, QUICK, needs_kernels, records


def train(data, run_dir, *more):
    return conftest.train("--data", data, "--run-dir", run_dir, *QUICK, *more, cwd=data.parent)


class TestOptions:
    @needs_kernels
    def test_a_validation_part_chooses_the_epoch_and_stops_the_run(self, data_with_validation, tmp_path):
        # With a learning rate this small nothing improves after the first epoch, and the later ones are as good.
        flags = (*NGRAMS, "--refit=false", "--epochs=9", "--patience=2", "--learning-rate=1e-15")
        printed = train(data_with_validation, tmp_path / "run", *flags)
        assert "training  up to 9 epochs" in printed
        assert "epoch 3 of 9: validation " in printed
        assert "stopped early, after epoch 3 of 9: " in printed
        assert "run is finished" in train(data_with_validation, tmp_path / "run", *flags)
        epochs = records(tmp_path / "run", "epoch")
        result = json.loads((tmp_path / "run" / "result.json").read_text())
        assert [record["epoch"] for record in epochs] == [1, 2, 3]
        assert (result["epoch"], result["chosen_by"]) == (3, "validation split")
        assert Path(result["checkpoint"]).name == epochs[2]["checkpoint"]

    @needs_kernels
    def test_a_weight_of_a_class_that_is_not_there(self, data, tmp_path, complaint):
        weights = '--class-weights={"fourth": 2}'
        said = complaint("train", "--data", data, "--run-dir", tmp_path / "run", *QUICK, weights, cwd=tmp_path)
        assert "names fourth, which is not a class" in said

    @needs_kernels
    def test_weights_that_would_switch_the_other_classes_off(self, data, tmp_path, complaint):
        flags = ("--data", data, "--run-dir", tmp_path / "run", *QUICK, '--class-weights={"first": 1.01e6}')
        assert "too far apart" in complaint("train", *flags, cwd=tmp_path)

    def test_divergence_is_told(self, data, tmp_path, complaint):
        flags = ("--data", data, "--run-dir", tmp_path / "run", *QUICK, *PAPER, "--learning-rate=1000")
        assert "training diverged" in complaint("train", *flags, cwd=tmp_path)


class TestSchedule:
    @pytest.mark.parametrize(
        ("options", "epochs", "rates"),
        [
            ({"schedule": "constant"}, (0, 3.5, 9.9), [1.0] * 3),
            ({"schedule": "halving"}, (0, 2.9, 3, 6, 30, 60), [1, 1, 0.5, 0.25, 1 / 1024, 1 / 1024]),  # the paper's
            ({"schedule": "cosine"}, (0, 2, 4), [1.0, 0.5, 0.0]),
        ],
    )
    def test_each_schedule(self, options, epochs, rates):
        options = OptimizerOptions(learning_rate=1.0, **options)
        assert [lr_at(options, epoch, 4) for epoch in epochs] == pytest.approx(rates)

    def test_a_run_goes_through_the_whole_schedule(self):
        config = parse(["--epochs=2", "--learning-rate=1"])
        positions = [TrainerState(epoch=epoch, documents=done) for epoch, done in ((1, 0), (2, 0), (2, 100))]
        rates = [next_lr(config, progress, num_rows=100) for progress in positions]
        assert rates == pytest.approx([1, 0.5, 0])


def test_a_missing_test_split_is_answered_with_a_share_that_gives_it_a_row(tmp_path, complaint):
    (tmp_path / "three.csv").write_text("label,text\na,one\nb,two\na,three\n")
    crepe_dist.prepare(tmp_path / "three.csv", tmp_path / "three")  # a fifth of three rows is none
    share = complaint("train", "--data", "three", cwd=tmp_path).rpartition("--test ")[2]
    report = crepe_dist.prepare(tmp_path / "three.csv", tmp_path / "three", test=float(share), overwrite=True)
    assert report["splits"]["test"]["rows"] == 1
