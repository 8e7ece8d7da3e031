"""Training in one process, by the commands and by the Python API."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

import crepe_dist.train
from crepe_dist.data.dataset import open_dataset
from crepe_dist.distributed.signals import SUPERVISED_AS
from crepe_dist.errors import UserError
from crepe_dist.runs import checkpoint, resume_state
from crepe_dist.runs.resume_state import Progress
from crepe_dist.runs.run_dir import RunFolder, choose
from crepe_dist.sealed_json import write_sealed
from crepe_dist.settings.config import parse
from crepe_dist.settings.options import OptimizerOptions
from crepe_dist.training import context
from crepe_dist.training.context import learning_rates, rate_at
from crepe_dist.training.model_setup import chosen_shape, initial_parameters
from tests import conftest
from tests.chaos import harness
from tests.conftest import NGRAMS, PAPER, QUICK, losses, readable, records


def train(data, run_dir, *more):
    return conftest.train("--data", data, "--run-dir", run_dir, *readable(*QUICK, *more), cwd=data.parent)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run of two epochs of seven steps, and what it printed."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    return run_dir, train(data, run_dir, "--logging.tensorboard=true")


class TestRunFolder:
    def test_checkpoints_are_named_by_epoch_and_accuracy(self, finished):
        run_dir, _ = finished
        for record in records(run_dir, "epoch")[1:]:
            percent = int(record["test_accuracy"] * 10000) / 100
            path = run_dir / "checkpoints" / f"crepe_epoch_{record['epoch']}_test_acc_{percent}.params"
            about = json.loads(path.with_suffix(".json").read_text())
            assert about["classes"] == ["first", "second", "third"]
            assert about["encoding"]["mode"] == "paper"
            assert about["encoding"]["feature_len"] == 123
            assert len(about["encoding"]["alphabet"]) == 69
            sizes = {"longest": 6, "buckets": 4096, "letters": 36, "words": 1024, "reach": 5, "rows": 1024, "width": 16}
            more = {"kind": "crepe", "blocks": 1, "stride": 2, "dropout": 0.0, "precision": "auto"}
            assert about["network"] == sizes | more
            assert about["metrics"]["test_loss"] == record["test_loss"]

    def test_every_step_is_recorded_once(self, finished):
        run_dir, _ = finished
        steps = records(run_dir, "step")
        assert [record["step"] for record in steps] == list(range(1, 15))
        assert [record["epoch"] for record in steps] == [1] * 7 + [2] * 7
        assert {"step", "epoch", "loss", "learning_rate", "documents_per_second", "wait_fraction"} <= steps[0].keys()
        assert all(0 <= record["wait_fraction"] <= 1 < record["documents_per_second"] for record in steps)
        for epoch in records(run_dir, "epoch"):
            assert {"epoch", "train_loss", "test_loss", "test_accuracy", "seconds"} <= epoch.keys()
            weights = [50] * 6 + [1]
            mine = [record["loss"] for record in steps if record["epoch"] == epoch["epoch"]]
            assert epoch["train_loss"] == pytest.approx(np.average(mine, weights=weights))

    def test_tensorboard_shows_scalars(self, finished):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        run_dir, _ = finished
        events = EventAccumulator(str(run_dir / "tensorboard"))
        events.Reload()
        assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses(run_dir))
        accuracies = [record["test_accuracy"] for record in records(run_dir, "epoch")]
        assert [event.value for event in events.Scalars("epoch/test_accuracy")] == pytest.approx(accuracies)

    def test_the_resolved_settings_are_saved_and_can_be_used_again(self, finished):
        run_dir, _ = finished
        saved = yaml.safe_load((run_dir / "config.yaml").read_text())
        assert saved["data"]["batch_size"] == 50
        assert parse(["--config", str(run_dir / "config.yaml")]).identity() == {
            "batch_size": 50,
            "typos": 0.0,
            "model": saved["model"],
            "optimizer": saved["optimizer"],
            "training": saved["training"],
        }

    def test_without_a_validation_split_the_last_epoch_is_reported_and_alone_kept(self, finished):
        run_dir, printed = finished
        result = json.loads((run_dir / "result.json").read_text())
        assert (result["epoch"], result["chosen_by"]) == (2, "last epoch")
        assert {int(path.name.split("_")[2]) for path in (run_dir / "checkpoints").iterdir()} == {2}
        assert not (run_dir / "state").exists()
        assert "(epoch 2, last epoch)" in printed

    def test_the_same_command_reports_a_finished_run(self, data, finished):
        run_dir, first = finished
        again = train(data, run_dir, "--logging.tensorboard=true")
        assert "is finished" in again
        assert again.splitlines()[-1] == first.splitlines()[-1]

    def test_a_reported_checkpoint_that_is_gone_is_not_replaced_by_another(self, data, finished, complaint):
        run_dir, _ = finished
        path = checkpoint.find(str(run_dir))
        kept = path.rename(path.with_suffix(".kept"))
        for name, *flags in (["train", "--data", data, "--run-dir", run_dir, *QUICK], ["predict", run_dir]):
            said = complaint(name, *flags, cwd=data.parent)
            assert f"the checkpoint {path} is gone" in said
            assert f"python -m crepe_dist train --config {run_dir}/config.yaml --fresh" in said
        kept.rename(path)

    def test_fresh_starts_another_beside_it(self, data, finished):
        run_dir, _ = finished
        train(data, run_dir, "--fresh", "--epochs=1")
        assert len(records(run_dir.with_name("finished-2"), "step")) == 7
        assert len(records(run_dir, "step")) == 14

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
        manifest = newest / resume_state.MANIFEST
        write_sealed(manifest, resume_state.FORMAT, {**json.loads(manifest.read_text()), "version": "0.0.1"})
        (best,) = (run_dir / "checkpoints").glob("crepe_epoch_1_*.params")
        kept = best.rename(run_dir / "kept")
        assert f"the checkpoint {best} is gone" in complaint("train", *flags, cwd=data.parent)
        kept.rename(best)
        printed = train(data, run_dir)
        assert f"saved by crepe_dist 0.0.1; version {crepe_dist.__version__} continues the run" in printed
        assert losses(run_dir) == losses(finished[0])


class TestOptions:
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

    def test_clipping_limits_the_step(self, data, tmp_path):
        """With SGD without momentum the first update has the norm learning rate × clip_norm."""
        more = [*PAPER, "--momentum=0", "--weight-decay=0"]
        whole = ["--batch-size=301", "--epochs=1", "--learning-rate=1"]
        train(data, tmp_path / "clipped", *more, *whole, "--clip-norm=0.001")
        after = crepe_dist.load(tmp_path / "clipped").engine.arrays
        start = crepe_dist.settings.config.Config(model=parse([*readable(*QUICK, *PAPER)]).model)
        shape = chosen_shape(start.model, open_dataset(data))
        before = {name: each.value for name, each in initial_parameters(start, shape).items()}
        norm = np.sqrt(sum(((after[name] - before[name]) ** 2).sum() for name in before))
        assert norm == pytest.approx(0.001, rel=0.01)

    def test_a_weight_of_a_class_that_is_not_there(self, data, tmp_path, complaint):
        weights = '--class-weights={"fourth": 2}'
        said = complaint("train", "--data", data, "--run-dir", tmp_path / "run", *QUICK, weights, cwd=tmp_path)
        assert "names fourth, which is not a class" in said

    def test_weights_that_would_switch_the_other_classes_off(self, data, tmp_path, complaint):
        flags = ("--data", data, "--run-dir", tmp_path / "run", *QUICK, '--class-weights={"first": 1.01e6}')
        assert "too far apart" in complaint("train", *flags, cwd=tmp_path)

    def test_divergence_is_told(self, data, tmp_path, complaint):
        flags = ("--data", data, "--run-dir", tmp_path / "run", *readable(*QUICK, *PAPER), "--learning-rate=1000")
        assert "training diverged" in complaint("train", *flags, cwd=tmp_path)


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_valid_and_gives_its_command(path):
    parse(["--config", str(path)])
    assert f"--config {path}" in path.read_text()


class TestWhichFolder:
    def chosen(self, base, *flags):
        return choose(parse([f"--run-dir={base}", *flags]), "data", "fingerprint").path.name

    def test_a_supervisor_s_processes_come_back_to_the_run_that_its_first_ones_began(self, tmp_path, monkeypatch):
        base = tmp_path / "run"
        assert [self.chosen(base), self.chosen(base, "--fresh")] == ["run", "run-2"]
        monkeypatch.setenv(SUPERVISED_AS, "one")
        assert [self.chosen(base, "--fresh") for _ in range(2)] == ["run-3", "run-3"]
        monkeypatch.setenv(SUPERVISED_AS, "two")
        assert self.chosen(base, "--fresh") == "run-4"
        monkeypatch.delenv(SUPERVISED_AS)
        assert self.chosen(base) == "run-4"

    def test_runs_are_named_by_data_and_settings(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        names = {
            choose(parse(more), "data", "f").path.name for more in ([], ["--logging.tensorboard=false"], ["--seed=1"])
        }
        assert len(names) == 2  # what it logs decides nothing
        assert all(name.startswith("data-") for name in names)

    def test_neighbours_of_other_settings_are_passed_over(self, tmp_path):
        base = tmp_path / "run"
        assert [self.chosen(base), self.chosen(tmp_path / "run-2", "--epochs=9")] == ["run", "run-2"]
        assert self.chosen(base) == "run"
        assert self.chosen(base, "--epochs=9") == "run-2"
        with pytest.raises(UserError, match=r"run was started with other settings"):
            self.chosen(base, "--epochs=3")


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
        assert [rate_at(options, epoch, 4) for epoch in epochs] == pytest.approx(rates)

    def test_a_run_goes_through_the_whole_schedule(self):
        at = learning_rates(parse(["--epochs=2", "--schedule=cosine", "--learning-rate=1"]), rows=100)
        positions = [Progress(epoch=epoch, documents=done) for epoch, done in ((1, 0), (2, 0), (2, 100))]
        assert list(map(at, positions)) == pytest.approx([1, 0.5, 0])


def test_a_missing_test_split_is_answered_with_a_share_that_gives_it_a_row(tmp_path, complaint):
    (tmp_path / "three.csv").write_text("label,text\na,one\nb,two\na,three\n")
    crepe_dist.prepare(tmp_path / "three.csv", tmp_path / "three")  # a fifth of three rows is none
    share = complaint("train", "--data", "three", cwd=tmp_path).rpartition("--test ")[2]
    report = crepe_dist.prepare(tmp_path / "three.csv", tmp_path / "three", test=float(share), overwrite=True)
    assert report["splits"]["test"]["rows"] == 1


def test_the_memory_of_tables_is_for_the_largest_share_of_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(context, "Metrics", lambda *_, **__: None)
    monkeypatch.setattr(context.EpochChoice, "of", lambda *_: None)
    given: list[int] = []
    engine: Any = SimpleNamespace(group_size=8, open_exchange=lambda world, options, documents: given.append(documents))
    display = SimpleNamespace(say=print)
    for rank in range(3):  # all processes of a host lay out the same memory
        world = SimpleNamespace(rank=rank, size=3, is_root=rank == 0, on_root=lambda *_: None)
        job: Any = SimpleNamespace(world=world, display=display)
        context.TrainContext.create(parse(["--data", "x", "--batch-size=50"]), None, engine, RunFolder(tmp_path), job)  # type: ignore[arg-type]
    assert given == [24, 24, 24]
