"""Files of a trained run: checkpoints, metrics and result."""

import json
import shutil
import sys

import numpy as np
import pytest

from crepe_dist.runs import checkpoint
from tests import conftest
from tests.chaos import harness
from tests.conftest import QUICK, losses, needs_kernels, records

pytestmark = needs_kernels


def train(data, run_dir, *more):
    return conftest.train("--data", data, "--run-dir", run_dir, *QUICK, *more, cwd=data.parent)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run of two epochs with seven steps each, and its standard output."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    return run_dir, train(data, run_dir)


class TestFilesOfARun:
    def test_checkpoints_are_named_by_epoch_and_accuracy(self, finished):
        run_dir, _ = finished
        for record in records(run_dir, "epoch")[1:]:
            percent = int(record["test_accuracy"] * 10000) / 100
            path = run_dir / "checkpoints" / f"crepe_epoch_{record['epoch']}_test_acc_{percent}.params"
            about = json.loads(path.with_suffix(".json").read_text())
            assert about["classes"] == ["first", "second", "third"]
            assert about["encoding"]["case"] == "fold"
            assert about["encoding"]["feature_len"] == 123
            assert len(about["encoding"]["alphabet"]) == 69
            ngrams = {"maxn": 6, "buckets": 4096, "num_word_char_ids": 36, "word_buckets": 1024}
            sizes = {**ngrams, "embedding_maxn": 5, "embedding_rows": 1024, "width": 16}
            more = {"kind": "crepe", "blocks": 1, "stride": 2, "dropout": 0.0, "precision": "auto"}
            assert about["network"] == sizes | more
            assert about["metrics"]["test_loss"] == record["test_loss"]

    def test_every_step_is_recorded_once(self, finished):
        run_dir, _ = finished
        steps = records(run_dir, "step")
        assert [record["step"] for record in steps] == list(range(1, 15))
        assert [record["epoch"] for record in steps] == [1] * 7 + [2] * 7
        assert {"step", "epoch", "loss", "learning_rate", "documents_per_second"} <= steps[0].keys()
        assert all(record["documents_per_second"] > 1 for record in steps)
        for epoch in records(run_dir, "epoch"):
            assert {"epoch", "train_loss", "test_loss", "test_accuracy", "seconds"} <= epoch.keys()
            weights = [50] * 6 + [1]
            mine = [record["loss"] for record in steps if record["epoch"] == epoch["epoch"]]
            assert epoch["train_loss"] == pytest.approx(np.average(mine, weights=weights))

    def test_tensorboard_shows_scalars(self, data, tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        run_dir = tmp_path / "run"
        train(data, run_dir, "--logging.report=true")
        events = EventAccumulator(str(run_dir / "tensorboard"))
        events.Reload()
        accuracies = [record["test_accuracy"] for record in records(run_dir, "epoch")]
        assert [event.value for event in events.Scalars("test_accuracy")] == pytest.approx(accuracies)

    def test_without_a_validation_split_the_last_epoch_is_reported_and_alone_kept(self, finished):
        run_dir, printed = finished
        result = json.loads((run_dir / "result.json").read_text())
        assert (result["epoch"], result["chosen_by"]) == (2, "last epoch")
        assert {int(path.name.split("_")[2]) for path in (run_dir / "checkpoints").iterdir()} == {2}
        assert not (run_dir / "state").exists()
        assert "(epoch 2, last epoch)" in printed

    def test_the_same_command_reports_a_finished_run(self, data, finished):
        run_dir, first = finished
        again = train(data, run_dir)
        assert "is finished" in again
        assert again.splitlines()[-1] == first.splitlines()[-1]

    def test_a_reported_checkpoint_that_is_gone_is_not_replaced_by_another(self, data, finished, complaint):
        run_dir, _ = finished
        path = checkpoint.resolve_model(str(run_dir))
        kept = path.rename(path.with_suffix(".kept"))
        for name, *flags in (["train", "--data", data, "--run-dir", run_dir, *QUICK], ["predict", run_dir]):
            said = complaint(name, *flags, cwd=data.parent)
            assert f"the checkpoint {path} is gone" in said
            assert f"python -m crepe_dist train --config {run_dir}/config.yaml --fresh" in said
        kept.rename(path)

    def test_the_best_checkpoint_of_an_unfinished_run_is_missed_before_training(
        self, data, finished, tmp_path, complaint
    ):
        run_dir = tmp_path / "unfinished"
        flags = ("--data", data, "--run-dir", run_dir, *QUICK, "--state.save-steps=4")
        fault = {"kind": "SIGKILL", "rank": 0, "phase": "train", "step": 13, "once": str(tmp_path / "once")}
        harness.run([sys.executable, "-m", "tests.chaos.worker", *map(str, flags)], tmp_path, fault)
        *older, newest = sorted((run_dir / "state").glob("step_*_0001"))
        for state_before in older:
            shutil.rmtree(state_before)
        assert {path.stat().st_mode for path in newest.iterdir()} == {(run_dir / "run.json").stat().st_mode}
        (best,) = (run_dir / "checkpoints").glob("crepe_epoch_1_*.params")
        kept = best.rename(run_dir / "kept")
        assert f"the checkpoint {best} is gone" in complaint("train", *flags, cwd=data.parent)
        kept.rename(best)
        train(data, run_dir)
        assert losses(run_dir) == losses(finished[0])
