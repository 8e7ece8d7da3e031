"""The command tune: the defaults, a deadline, resuming, and the settings of the best trial."""

import csv
import json
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import yaml

from crepe_dist.data.dataset import open_dataset
from crepe_dist.elastic import training_subprocess
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.settings.config import parse
from crepe_dist.tuning import search
from crepe_dist.tuning.search import DONE, FAILED, KILLED, TIMED_OUT, Search, run_trial
from tests.chaos import harness
from tests.conftest import needs_kernels

SOON = 3600.0


def outcome(end, validation=None, loss=1.0, problem=""):
    scores = {"validation": validation, "test": validation - 0.1, "loss": loss, "epoch": 1} if validation else {}
    return {"end": end, "seconds": 2.0, "problem": problem, **scores}


@pytest.fixture
def play(monkeypatch, data_with_validation, tmp_path):
    """Function that runs a search with these outcomes, and returns it with the folders and settings of its trials."""

    def run(*outcomes, most=None):
        left, given = list(outcomes), []

        def played(settings, folder, *_):
            folder.mkdir(exist_ok=True)
            given.append((folder.name, {name: value for name, value in settings.items() if "." in name}))
            if not left:
                raise KeyboardInterrupt
            return left.pop(0)

        monkeypatch.setattr(search, "run_trial", played)
        made = Search(open_dataset(data_with_validation), tmp_path / "out", seed=0)
        list(made.run(time.monotonic() + SOON, len(outcomes) if most is None else most, 1, lambda *_: None))
        return made, given

    return run


def folders(trials):
    return [trial.user_attrs["folder"] for trial in trials]


def test_the_fastest_network_comes_first_then_the_defaults_and_the_best_is_kept(play, tmp_path, data_with_validation):
    made, given = play(
        outcome(DONE, 0.8), outcome(DONE, 0.7), outcome(DONE, 0.9), outcome(FAILED, problem="it broke\n\n"),
        outcome(DONE, 0.9, 0.5),
    )  # fmt: skip
    assert set(given[1][1]) == {"data.source", "logging.report", "training.refit"}
    assert [settings.get("model.network") for _, settings in given[:3]] == ["ngrams", None, "crepe"]
    assert all("optimizer.learning_rate" in settings for _, settings in [given[0], *given[2:]])
    assert folders([made.best()]) == ["trial-0004"]  # as accurate as number 2, with a lower loss
    assert [path.name for path in sorted((tmp_path / "out").glob("trial-*"))] == ["trial-0004"]
    config = parse(["--config", str(tmp_path / "out" / "best.yaml")])
    assert config.data.source == str(data_with_validation)
    assert config.optimizer.learning_rate == given[4][1]["optimizer.learning_rate"]
    rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").open()))
    assert [(row["folder"], row["end"]) for row in rows][3:] == [("trial-0003", "failed"), ("trial-0004", "done")]
    assert yaml.safe_load(rows[1]["settings"]) == {}


def test_a_search_resumes_where_it_was_killed(play):
    with pytest.raises(KeyboardInterrupt):
        play(outcome(DONE, 0.8), most=9)
    made, given = play(outcome(DONE, 0.7), outcome(DONE, 0.85), most=3)
    assert sorted(name for name, _ in given) == ["trial-0001", "trial-0002"]
    assert dict(given)["trial-0001"] == {key: value for key, value in dict(given)["trial-0001"].items() if "." in key}
    assert "optimizer.learning_rate" not in dict(given)["trial-0001"]  # the defaults
    assert len(made.finished()) == 3


def test_an_interrupted_trial_counts_with_its_best_epoch_and_is_resumed(play, tmp_path):
    made, _ = play(
        outcome(TIMED_OUT, 0.9),
        outcome(KILLED, problem="training was ended by SIGKILL\n\n"),
        outcome(DONE, 0.8),
        most=1,
    )
    assert folders([made.best()]) == ["trial-0000"]
    assert folders(made.finished()) == ["trial-0002"]
    assert {path.name for path in (tmp_path / "out").glob("trial-*")} == {"trial-0000", "trial-0001"}
    assert "model" in yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())
    made, given = play(outcome(DONE, 0.7), outcome(DONE, 0.85), most=3)
    assert sorted(name for name, _ in given) == ["trial-0000", "trial-0001"]
    assert made.best().user_attrs["end"] == DONE


def test_errors(play, complaint, data, data_with_validation, tmp_path, monkeypatch):
    with pytest.raises(UserError) as caught:
        play(outcome(TIMED_OUT), outcome(FAILED, problem="the data are odd\nreason\nremedy"), most=1)
    assert (caught.value.what, caught.value.why, caught.value.remedy) == ("the data are odd", "reason", "remedy")
    assert "has no validation split" in complaint("tune", data, "--out", "elsewhere", cwd=tmp_path)
    said = complaint("tune", data_with_validation, "--out", tmp_path / "new", "--minutes", "1e-9", cwd=tmp_path)
    assert "no trial completed an epoch" in said
    assert f"tune {data_with_validation} --out {tmp_path / 'new'} --minutes 30" in said
    other = open_dataset(data_with_validation)
    monkeypatch.setattr(type(other), "fingerprint", "0")
    with pytest.raises(UserError, match="is a search on other data"):
        Search(other, tmp_path / "out", seed=0)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="tune needs optuna"):
        Search(other, tmp_path / "none", seed=0)
    assert not (tmp_path / "none").exists()


@pytest.fixture
def quick_settings(data_with_validation):
    """Settings of a trial that trains in a second."""
    return {"data.source": str(data_with_validation), "model.network": "ngrams", "logging.report": False}


@needs_kernels
def test_a_trial_trains_and_its_epochs_are_watched(quick_settings, tmp_path):
    seen: list[tuple[int, float]] = []

    def prune(*epoch):
        seen.append(epoch)
        return False

    made = run_trial(
        {**quick_settings, "training.epochs": 2}, tmp_path / "trial", 1, time.monotonic() + SOON, prune, print
    )
    assert made["end"] == DONE
    assert (made["epoch"], made["validation"]) in seen or not seen  # The trial may end before it is first polled.


@needs_kernels
def test_the_values_of_the_default_trial_are_those_that_it_trains_with(data_with_validation, tmp_path):
    given = {"data.source": str(data_with_validation), "logging.report": False}
    run_trial(given, tmp_path / "trial", 1, time.monotonic() + SOON, lambda *_: True, print)
    folder = tmp_path / "trial" / "run"
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    network = json.loads(next(folder.glob("checkpoints/*[0-9t].json")).read_text())["network"]
    assert search.first_trials(open_dataset(data_with_validation))[1] == {
        "model.network": network["kind"],
        "optimizer.learning_rate": settings["optimizer"]["learning_rate"],
        "training.epochs": settings["training"]["epochs"],
        "model.dropout": network["dropout"],
        "model.width": network["width"],
    }


@needs_kernels
def test_a_trial_is_ended(quick_settings, tmp_path):
    given = {**quick_settings, "training.epochs": 10**6}
    made = run_trial(given, tmp_path / "trial", 1, time.monotonic() + 0.5, lambda *_: False, print)
    assert made["end"] == TIMED_OUT
    assert harness.processes(str(tmp_path / "trial")) == []


def test_a_training_that_fails_says_why(data_with_validation, tmp_path):
    given = {"data.source": str(data_with_validation), "optimizer.learning_rate": -1}
    made = run_trial(given, tmp_path / "trial", 1, time.monotonic() + SOON, lambda *_: False, print)
    assert made["end"] == FAILED
    assert made["problem"].startswith("optimizer.learning_rate is -1")


@pytest.mark.parametrize(
    ("codes", "ends"), [([-9, 0], True), ([137, 75, 0], True), ([-9, -9, -9], "SIGKILL"), ([1], "")]
)
def test_a_killed_training_of_another_command_is_resumed_twice(monkeypatch, tmp_path, codes, ends):
    """`verify` and `inspect` train in a temporary folder, and would otherwise lose the completed steps."""
    left = list(codes)
    (tmp_path / training_subprocess.LOG).write_text("epoch 0")

    @contextmanager
    def started(*_):
        yield SimpleNamespace(wait=lambda timeout: left.pop(0))

    monkeypatch.setattr(training_subprocess, "training_subprocess", started)
    if ends is True:
        assert training_subprocess.train_in_subprocess({}, tmp_path)
    else:
        with pytest.raises(UserError) as caught:
            training_subprocess.train_in_subprocess({}, tmp_path)
        assert ends in caught.value.what
        assert caught.value.code == ExitCode.FAILURE
    assert left == []
