"""A search over settings of training with Optuna, which is bounded in time and resumes where it stopped."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from crepe_dist import extras
from crepe_dist.data.dataset import Dataset
from crepe_dist.elastic.training_subprocess import (
    error_from_log,
    group_settings,
    signal_name,
    terminate,
    training_subprocess,
)
from crepe_dist.errors import UserError
from crepe_dist.files.atomic_write import write_text
from crepe_dist.files.csv_cells import write_csv
from crepe_dist.files.json_file import read_json
from crepe_dist.runs import checkpoint
from crepe_dist.runs.metrics import METRICS, loss_of, read
from crepe_dist.settings.config import Config
from crepe_dist.training.model_setup import select_network_config
from crepe_dist.training.training_data import resolve_epochs

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.trial import FrozenTrial

JOURNAL, BEST, TABLE, RUN = "trials.jsonl", "best.yaml", "trials.csv", "run"
NETWORK, RATE, EPOCHS = "model.network", "optimizer.learning_rate", "training.epochs"
DROPOUT, WIDTH = "model.dropout", "model.width"
PATIENCE = 3  # epochs
POLL = 0.2  # seconds
STARTUP = 8  # random trials before Optuna models the outcomes
DONE, PRUNED, TIMED_OUT, FAILED, KILLED = "done", "pruned", "out of time", "failed", "killed"
SCORES = ("validation", "test", "loss", "epoch")
COLUMNS = ("folder", "end", *SCORES, "seconds", "settings")
TrialOutcome = dict[str, Any]  # ``end``, ``seconds``, ``problem``, and ``SCORES`` if an epoch was scored
Show = Callable[[dict[str, Any], str], None]


def first_trials(data: Dataset) -> list[dict[str, Any]]:
    """Return the values of the first three trials.

    The first trial is a fast network, so that a short search has a result. The second trial has the values that
    training chooses by default for these data. The third trial has another learning rate and number of epochs.
    """
    config = resolve_epochs(Config(), data)
    network = select_network_config(config.model, data)
    defaults = {
        NETWORK: config.model.network,
        RATE: config.optimizer.learning_rate,
        EPOCHS: config.training.epochs,
        DROPOUT: network.dropout,
        WIDTH: config.model.width,
    }
    return [{NETWORK: "ngrams", RATE: 0.003, EPOCHS: 10}, defaults, {**defaults, RATE: 0.002, EPOCHS: 10}]


def suggest(trial: Trial) -> dict[str, Any]:
    """Choose the settings of a trial, by their dotted names; none for that with the defaults."""
    settings: dict[str, Any] = {
        NETWORK: trial.suggest_categorical(NETWORK, ["crepe", "ngrams"]),
        RATE: trial.suggest_float(RATE, 2e-4, 2e-2, log=True),
        EPOCHS: trial.suggest_int(EPOCHS, 2, 20, log=True),
    }
    if settings[NETWORK] == "crepe":
        settings[DROPOUT] = trial.suggest_float(DROPOUT, 0.0, 0.5, step=0.1)
        settings[WIDTH] = trial.suggest_categorical(WIDTH, [64, 128, 192])
    return {} if trial.user_attrs.get("defaults") else {**settings, "training.patience": PATIENCE}


class Search:
    """A search in a folder; several searches of the same folder, one after the other, are one.

    Each of Optuna's trials notes its ``Outcome``, its ``settings`` and its ``folder``, which a resumed one shares.

    Args:
        data: prepared data with a validation split.
        folder: folder of the search; created if it is missing.
    """

    def __init__(self, data: Dataset, folder: Path, seed: int) -> None:
        if "validation" not in data.splits:
            raise UserError(
                f"{data.folder} has no validation split, which decides which settings are the best",
                remedy=f"prepare the data with --validation 0.1 --out {data.folder}-tuned",
            )
        extras.require("tune", "tune")
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._data, self._folder = data, folder.absolute()  # trials run in folders of their own
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of features that are experimental
            journal = JournalFileBackend(str(self._folder / JOURNAL))
            self._study = optuna.create_study(
                storage=optuna.storages.JournalStorage(journal),
                study_name="tune",
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.PercentilePruner(75.0, n_startup_trials=4, n_warmup_steps=1),
            )
            # A resumed search draws other random numbers than it drew before.
            self._study.sampler = optuna.samplers.TPESampler(
                seed=seed + len(self._study.trials), n_startup_trials=STARTUP, multivariate=True, group=True
            )
        if self._study.user_attrs.setdefault("data", data.fingerprint) != data.fingerprint:
            raise UserError(f"{folder} is a search on other data", remedy="choose another --out, or delete that folder")
        if not self._study.trials:
            self._study.set_user_attr("data", data.fingerprint)
            for number, values in enumerate(first_trials(data)):
                self._study.enqueue_trial(values, user_attrs={"defaults": number == 1})
        for trial in self._study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # its process was killed
        newest = {trial.user_attrs["folder"]: trial for trial in self._study.trials if "folder" in trial.user_attrs}
        for trial in newest.values():
            if trial.user_attrs.get("end", KILLED) in (TIMED_OUT, KILLED) and trial.state.is_finished():
                kept: TrialOutcome = {name: trial.user_attrs.get(name) for name in ("folder", "defaults")}
                self._study.enqueue_trial(trial.params, user_attrs=kept)

    def run(self, deadline: float, most: int | None, processes: int, show: Show) -> Iterator[FrozenTrial]:
        """Run trials until the deadline by ``time.monotonic``; yield each one that ended or was interrupted.

        Args:
            most: largest number of finished trials, including those of earlier searches; ``None``: no limit.
            show: called again and again with the settings of a trial and how far it is.
        """
        from optuna.trial import TrialState

        while time.monotonic() < deadline and (most is None or len(self.ended()) < most):
            trial = self._study.ask()
            settings, is_default = suggest(trial), bool(trial.user_attrs.get("defaults"))
            name = trial.user_attrs.get("folder", f"trial-{trial.number:04d}")
            trial.set_user_attr("folder", name)
            trial.set_user_attr("settings", settings)

            def prune(epoch: int, accuracy: float, trial: Trial = trial, is_default: bool = is_default) -> bool:
                trial.report(accuracy, epoch)
                return trial.should_prune() and not is_default

            of_all = {"training.refit": False, "logging.report": False}
            complete = {**settings, **of_all, "data.source": str(self._data.folder.absolute())}
            outcome = run_trial(complete, self._folder / name, processes, deadline, prune, partial(show, settings))
            for key, value in outcome.items():
                trial.set_user_attr(key, value)
            state = {DONE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED}.get(outcome["end"], TrialState.FAIL)
            ended = self._study.tell(trial, outcome["validation"] if outcome["end"] == DONE else None, state)
            if is_default and outcome["end"] == FAILED and self.best() is None:
                raise UserError(*outcome["problem"].split("\n"))
            self._keep_best()
            yield ended

    def trials(self) -> list[FrozenTrial]:
        """Return the newest outcome in each folder: of trials that ended or were interrupted, in order."""
        trials = self._study.get_trials(deepcopy=False)
        newest = {trial.user_attrs["folder"]: trial for trial in trials if "end" in trial.user_attrs}
        return [newest[name] for name in sorted(newest)]

    def ended(self) -> list[FrozenTrial]:
        """Return the trials that neither the deadline nor a kill interrupted."""
        return [trial for trial in self.trials() if trial.user_attrs.get("end") in (DONE, PRUNED, FAILED)]

    def best(self) -> FrozenTrial | None:
        """Return the best trial so far, also if it was interrupted; ``None`` if no epoch was scored."""
        scored = [trial for trial in self.trials() if "validation" in trial.user_attrs]
        return min(scored, key=trial_sort_key, default=None)

    def checkpoint(self, trial: FrozenTrial, folder: Path) -> Path:
        """Find the checkpoint of the scored epoch of a trial, or its run's folder if that is gone."""
        run = folder / str(trial.user_attrs["folder"]) / RUN
        return next((run / checkpoint.FOLDER).glob(f"crepe_epoch_{trial.user_attrs['epoch']}_*.params"), run)

    def _keep_best(self) -> None:
        """Write the settings of the best trial and the table of all, and delete the runs of the others."""
        best = self.best()
        for trial in self.ended():  # an interrupted one needs its run
            if best is None or trial.number != best.number:
                shutil.rmtree(self._folder / trial.user_attrs["folder"], ignore_errors=True)
        rows = []
        for trial in self.trials():
            about = dict(trial.user_attrs)
            about["settings"] = yaml.safe_dump(about["settings"], default_flow_style=True, width=10**6).strip()
            rows.append({column: about.get(column) for column in COLUMNS})
        write_csv(self._folder / TABLE, rows, COLUMNS)
        if best is not None:
            settings = group_settings({"data.source": str(self._data.folder), **best.user_attrs["settings"]})
            write_text(self._folder / BEST, yaml.safe_dump(settings, sort_keys=False))


def trial_sort_key(trial: FrozenTrial) -> tuple[float, bool, float, int]:
    """Return a sort key, the best first: validation accuracy, then finished ones, validation loss, and the earlier."""
    about = trial.user_attrs
    return -about["validation"], about["end"] != DONE, about["loss"], trial.number


def run_trial(
    settings: Mapping[str, Any],
    folder: Path,
    processes: int,
    deadline: float,
    prune: Callable[[int, float], bool],
    show: Callable[[str], None],
) -> TrialOutcome:
    """Train, or resume what was interrupted in the same folder.

    Args:
        folder: folder of the trial; the run is in ``run``.
        deadline: time by ``time.monotonic`` at which it must end.
        prune: called with the number and the validation accuracy of each epoch; True ends the trial.
    """
    folder.mkdir(exist_ok=True)
    run, started, known, reason = folder / RUN, time.monotonic(), 0, ""
    show("starting")
    with training_subprocess({**settings, "run_dir": str(run)}, folder, processes) as process:
        while process.poll() is None and not reason:
            time.sleep(POLL)
            epochs = _epochs(run)
            for epoch in epochs[known:]:
                show(f"epoch {epoch['epoch']}, validation {100 * epoch['validation_accuracy']:.1f} %")
                reason = PRUNED if prune(epoch["epoch"], epoch["validation_accuracy"]) else reason
            known = len(epochs)
            if not reason and time.monotonic() > deadline:
                reason = TIMED_OUT
        if reason:
            terminate(process)
        code = process.wait()
    outcome = {"seconds": time.monotonic() - started, "problem": ""}
    epochs = _epochs(run)
    if code == 0:  # perhaps just before it was to be ended
        reported = read_json(run / "result.json")["epoch"]
        return {**outcome, "end": DONE, **_scores(next(each for each in epochs if each["epoch"] == reported))}
    if reason == TIMED_OUT and epochs:
        best = max(epochs, key=lambda epoch: (epoch["validation_accuracy"], epoch["epoch"]))
        return {**outcome, "end": TIMED_OUT, **_scores(best)}
    if not reason:
        error = error_from_log(folder, code)
        reason = KILLED if signal_name(code) else FAILED
        outcome["problem"] = "\n".join((error.what, error.why, error.remedy))
    return {**outcome, "end": reason}


def _scores(epoch: dict[str, Any]) -> TrialOutcome:
    loss, _ = loss_of(epoch, "validation")
    return dict(zip(SCORES, (epoch["validation_accuracy"], epoch["test_accuracy"], loss, epoch["epoch"])))


def _epochs(run: Path) -> list[dict[str, Any]]:
    """Return the records of the epochs so far, each of which has scores on the validation split."""
    records = {record["epoch"]: record for record in read(run / METRICS) if record["event"] == "epoch"}
    return [records[epoch] for epoch in sorted(records)]
