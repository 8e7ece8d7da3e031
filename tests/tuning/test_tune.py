"""The command tune: the defaults first, a deadline, resuming, and the settings of the best trial."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import yaml

from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.settings.config import flag, parse, settings
from crepe_dist.supervising import training_process
from crepe_dist.tuning import search
from crepe_dist.tuning.attempt import Attempt, _so_far, attempt
from crepe_dist.tuning.search import Search
from tests.conftest import NGRAMS, QUICK

SOON = 3600.0


def done(validation, loss=1.0):
    return Attempt("done", validation, loss, validation - 0.1, 1, 2.0)


class Played:
    """Outcomes instead of trainings; notes the settings that it is given."""

    def __init__(self, *outcomes):
        self.outcomes, self.given = list(outcomes), []

    def __call__(self, settings, folder, processes, deadline, memory, prune, show):
        folder.mkdir(exist_ok=True)
        self.given.append((folder.name, {name: value for name, value in settings.items() if "." in name}))
        if not self.outcomes:
            raise KeyboardInterrupt
        return self.outcomes.pop(0)


@pytest.fixture
def play(monkeypatch, data_with_validation, tmp_path):
    """Runs a search with outcomes that are given; returns the search and what trials were given."""

    def run(*outcomes, most=None):
        played = Played(*outcomes)
        monkeypatch.setattr(search, "attempt", played)
        made = Search(open_dataset(data_with_validation), tmp_path / "out", seed=0)
        list(made.run(time.monotonic() + SOON, len(outcomes) if most is None else most, 1, 10**12))
        return made, played.given

    return run


def test_the_fastest_network_comes_first_then_the_defaults_and_the_best_is_kept(play, tmp_path, data_with_validation):
    made, given = play(done(0.8), done(0.7), done(0.9), Attempt("failed", problem="it broke\nso\nmend"), done(0.9, 0.5))
    assert set(given[1][1]) == {"data.source", "logging.report"}
    assert [settings.get("model.network") for _, settings in given[:3]] == ["ngrams", None, "crepe"]
    assert all("optimizer.learning_rate" in settings for _, settings in [given[0], *given[2:]])
    best = made.best()
    assert best is not None
    assert best.number == 4  # as accurate as number 2, with a lower loss
    assert [path.name for path in sorted((tmp_path / "out").glob("trial-*"))] == ["trial-0004"]
    config = parse(["--config", str(tmp_path / "out" / "best.yaml")])
    assert config.data.source == str(data_with_validation)
    assert config.optimizer.learning_rate == given[4][1]["optimizer.learning_rate"]
    rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").open()))
    assert [(row["trial"], row["end"]) for row in rows][3:] == [("3", "failed"), ("4", "done")]
    assert yaml.safe_load(rows[1]["settings"]) == {}


def test_a_search_goes_on_where_it_was_killed_or_ran_out_of_time(play):
    with pytest.raises(KeyboardInterrupt):
        play(done(0.8), most=9)
    _, again = play(Attempt("out of time"), most=1)  # a deadline at once
    assert again == []
    made, given = play(done(0.7), done(0.85), most=3)
    assert [name for name, _ in given] == ["trial-0002", "trial-0001"]
    assert [each.number for each in made.ended()] == [0, 1, 2]
    assert made.best().number == 1


def test_what_was_interrupted_counts_with_its_best_epoch_and_is_asked_for_again(play, tmp_path):
    part = Attempt("out of time", 0.9, 0.4, 0.8, 2, 60.0)
    made, _ = play(part, Attempt("killed", problem="training was ended by SIGKILL\n\n"), done(0.8), most=1)
    assert made.best().number == 0
    assert made.best(interrupted=False).number == 2
    assert [each.number for each in made.ended()] == [2]
    assert [each.number for each in made.trials()] == [0, 1, 2]
    assert {path.name for path in (tmp_path / "out").glob("trial-*")} == {"trial-0000", "trial-0001", "trial-0002"}
    assert "model" in yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())
    made, given = play(done(0.7), done(0.85), most=3)
    assert sorted(name for name, _ in given) == ["trial-0000", "trial-0001"]
    assert made.best().outcome.end == "done"


def test_a_finished_trial_is_better_than_an_interrupted_one_that_is_as_accurate(play):
    made, _ = play(Attempt("out of time", 0.8, 0.1, 0.7, 2, 60.0), done(0.8, 0.5), done(0.8, 0.6), most=2)
    assert made.best().number == 1


def test_too_little_time_names_the_command_to_go_on(play, complaint, data_with_validation, tmp_path):
    play(Attempt("out of time"), done(0.1), most=1)
    (tmp_path / "out" / "trials.jsonl").unlink()
    line = (data_with_validation, "--out", tmp_path / "out", "--minutes", "1e-9")
    said = complaint("tune", *line, cwd=tmp_path)
    assert "no trial completed an epoch" in said
    assert f"tune {data_with_validation} --out {tmp_path / 'out'} --minutes 30" in said


def test_defaults_that_fail_are_an_error(play):
    failed = Attempt("failed", problem="the data are odd\nreason\nremedy")
    with pytest.raises(UserError) as caught:
        play(failed, failed)
    assert (caught.value.what, caught.value.why, caught.value.remedy) == ("the data are odd", "reason", "remedy")


def test_data_without_a_validation_split_and_other_data(complaint, data, data_with_validation, play, tmp_path):
    assert "has no validation split" in complaint("tune", data, "--out", "elsewhere", cwd=tmp_path)
    play(done(0.8))
    (tmp_path / "out" / "tune.json").write_text('{"data": "other", "fingerprint": "0"}')
    assert "is a search on other data" in complaint("tune", data_with_validation, "--out", "out", cwd=tmp_path)


def test_optuna_is_optional(monkeypatch, data_with_validation, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError) as caught:
        Search(open_dataset(data_with_validation), tmp_path / "out", seed=0)
    assert caught.value.what == "tune needs optuna"
    assert not (tmp_path / "out").exists()


def settings_of(flags, data):
    names = {flag(name): name for name in settings()}
    given = dict(each.split("=", 1) for each in flags)
    return {**{names[name]: yaml.safe_load(value) for name, value in given.items()}, "data.source": str(data)}


def test_a_trial_trains_and_its_epochs_are_watched(data_with_validation, tmp_path):
    seen: list[tuple[int, float]] = []

    def prune(epoch, accuracy):
        seen.append((epoch, accuracy))
        return False

    settings = {**settings_of([*QUICK, *NGRAMS], data_with_validation), "training.patience": 2}
    outcome = attempt(settings, tmp_path / "trial", 1, time.monotonic() + SOON, 10**12, prune)
    assert (outcome.end, outcome.epoch is not None, outcome.problem) == ("done", True, "")
    assert outcome.validation is not None
    assert all(0 <= accuracy <= 1 for _, accuracy in seen)
    assert _so_far(tmp_path / "trial", []).startswith("at most about ")


@pytest.mark.parametrize(("seconds", "memory", "end"), [(SOON, 10**7, "out of memory"), (0.5, 10**12, "out of time")])
def test_a_trial_is_ended(data_with_validation, tmp_path, seconds, memory, end):
    settings = {**settings_of(QUICK, data_with_validation), "training.epochs": 10**6}
    outcome = attempt(settings, tmp_path / "trial", 1, time.monotonic() + seconds, memory, lambda *_: False)
    assert outcome.end == end
    left = subprocess.run(["pgrep", "-f", str(tmp_path / "trial")], stdout=subprocess.PIPE, text=True, check=False)
    assert [pid for pid in left.stdout.split() if int(pid) != os.getpid()] == []


def test_a_training_that_fails_says_why(data_with_validation, tmp_path):
    settings = {"data.source": str(data_with_validation), "optimizer.learning_rate": -1}
    outcome = attempt(settings, tmp_path / "trial", 1, time.monotonic() + SOON, 10**12, lambda *_: False)
    assert outcome.end == "failed"
    assert outcome.problem.startswith("optimizer.learning_rate is -1")


@pytest.mark.slow
def test_the_command_is_bounded_and_resumable(data_with_validation, tmp_path):
    line = [sys.executable, "-m", "crepe_dist.tune", str(data_with_validation), "--out", "out", "--minutes"]
    first = subprocess.run([*line, "1", "--trials", "2"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "the defaults" in first.stdout
    process = subprocess.Popen([*line, "2"], cwd=tmp_path, stdout=subprocess.PIPE)
    time.sleep(8)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0
    again = subprocess.run([*line, "1", "--trials", "4"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "the search goes on" in again.stdout
    assert "--config out/best.yaml" in again.stdout


@pytest.mark.parametrize(
    ("codes", "ends"), [([-9, 0], True), ([137, 75, 0], True), ([-9, -9, -9], "SIGKILL"), ([1], "")]
)
def test_a_killed_training_of_another_command_is_resumed_twice(monkeypatch, tmp_path, codes, ends):
    """verify and inspect train in a folder of their own, and would lose what was done."""
    left = list(codes)
    (tmp_path / training_process.LOG).write_text("epoch 0")

    @contextmanager
    def started(*_):
        yield SimpleNamespace(wait=lambda timeout: left.pop(0))

    monkeypatch.setattr(training_process, "training", started)
    if ends is True:
        assert training_process.train({}, tmp_path)
    else:
        with pytest.raises(UserError) as caught:
            training_process.train({}, tmp_path)
        assert ends in caught.value.what
        assert caught.value.code == ExitCode.FAILURE
    assert left == []
