"""Hyperparameter search with Optuna. The search has a time limit and can be resumed."""

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
    signal_name,
    terminate,
    training_subprocess,
)
from crepe_dist.errors import UserError
from crepe_dist.files.atomic_write import write_text
from crepe_dist.files.csv_cells import write_csv
from crepe_dist.files.json_file import read_json
from crepe_dist.runs import checkpoint
from crepe_dist.runs.metrics import METRICS, iter_records, loss_of
from crepe_dist.settings.config import Config, group_settings
from crepe_dist.training.model_setup import select_network_config
from crepe_dist.training.training_data import resolve_epochs

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.trial import FrozenTrial

JOURNAL, BEST, TABLE, RUN = "trials.jsonl", "best.yaml", "trials.csv", "run"  # Files and folder of a search.
NETWORK, LEARNING_RATE, EPOCHS = "model.network", "optimizer.learning_rate", "training.epochs"
DROPOUT, WIDTH = "model.dropout", "model.width"
PATIENCE = 3  # Early-stopping patience of each trial, in epochs.
POLL_SECONDS = 0.2  # Seconds between two polls of the subprocess of a trial.
NUM_RANDOM_TRIALS = 8  # Number of random trials before Optuna models the outcomes.
DONE, PRUNED, TIMED_OUT, FAILED, KILLED = "done", "pruned", "out of time", "failed", "killed"
SCORES = ("validation", "test", "loss", "epoch")
COLUMNS = ("folder", "end", *SCORES, "seconds", "settings")
# Keys: ``end`` (one of the five constants above), ``seconds``, ``problem``, and ``SCORES`` if an epoch was evaluated.
TrialOutcome = dict[str, Any]
Show = Callable[[dict[str, Any], str], None]


def first_trials(data: Dataset) -> list[dict[str, Any]]:
    """Return the hyperparameters of the first three trials.

    The first trial trains a fast network, so that even a short search has a result. The second trial uses the default
    hyperparameters for these data. The third trial changes the learning rate and the number of epochs of the second.
    """
    config = resolve_epochs(Config(), data)
    network = select_network_config(config.model, data)
    defaults = {
        NETWORK: config.model.network,
        LEARNING_RATE: config.optimizer.learning_rate,
        EPOCHS: config.training.epochs,
        DROPOUT: network.dropout,
        WIDTH: config.model.width,
    }
    return [
        {NETWORK: "ngrams", LEARNING_RATE: 0.003, EPOCHS: 10},
        defaults,
        {**defaults, LEARNING_RATE: 0.002, EPOCHS: 10},
    ]


def suggest(trial: "Trial") -> dict[str, Any]:
    """Return the hyperparameters of a trial by their dotted names.

    For the trial of the defaults, the result is empty, so that training uses its own defaults.
    """
    settings: dict[str, Any] = {
        NETWORK: trial.suggest_categorical(NETWORK, ["crepe", "ngrams"]),
        LEARNING_RATE: trial.suggest_float(LEARNING_RATE, 2e-4, 2e-2, log=True),
        EPOCHS: trial.suggest_int(EPOCHS, 2, 20, log=True),
    }
    if settings[NETWORK] == "crepe":
        settings[DROPOUT] = trial.suggest_float(DROPOUT, 0.0, 0.5, step=0.1)
        settings[WIDTH] = trial.suggest_categorical(WIDTH, [64, 128, 192])
    return {} if trial.user_attrs.get("defaults") else {**settings, "training.patience": PATIENCE}


class Search:
    """Hyperparameter search. A new search in the same folder resumes the previous search.

    Each Optuna trial has these user attributes: the entries of its ``TrialOutcome``, its ``settings`` and its
    ``folder``. If a trial is resumed, Optuna gets a new trial with the same folder.

    Args:
        data: Prepared data with a validation split.
        folder: Folder of the search. It is created if it does not exist.
        seed: Random seed.
    """

    def __init__(self, data: Dataset, folder: Path, seed: int) -> None:
        if "validation" not in data.splits:
            raise UserError(
                f"{data.folder} has no validation split, but the validation score selects the best settings",
                remedy=f"prepare the data with --validation 0.1 --out {data.folder}-tuned",
            )
        extras.require("tune", "tune")
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # The path is absolute, because the trial processes run in different working directories.
        self._data, self._folder = data, folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna warns about experimental features.
            journal = JournalFileBackend(str(self._folder / JOURNAL))
            self._study = optuna.create_study(
                storage=optuna.storages.JournalStorage(journal),
                study_name="tune",
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.PercentilePruner(75.0, n_startup_trials=4, n_warmup_steps=1),
            )
            # The seed depends on the number of trials, so that a resumed search does not repeat its random numbers.
            self._study.sampler = optuna.samplers.TPESampler(
                seed=seed + len(self._study.trials), n_startup_trials=NUM_RANDOM_TRIALS, multivariate=True, group=True
            )
        if self._study.user_attrs.setdefault("data", data.fingerprint) != data.fingerprint:
            raise UserError(f"{folder} is a search on other data", remedy="choose another --out, or delete that folder")
        if not self._study.trials:
            self._study.set_user_attr("data", data.fingerprint)
            for number, values in enumerate(first_trials(data)):
                self._study.enqueue_trial(values, user_attrs={"defaults": number == 1})
        for trial in self._study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            # A trial is still marked as running only if an earlier search was killed.
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        newest = {trial.user_attrs["folder"]: trial for trial in self._study.trials if "folder" in trial.user_attrs}
        for trial in newest.values():
            if trial.user_attrs.get("end", KILLED) in (TIMED_OUT, KILLED) and trial.state.is_finished():
                attributes: TrialOutcome = {name: trial.user_attrs.get(name) for name in ("folder", "defaults")}
                self._study.enqueue_trial(trial.params, user_attrs=attributes)

    def run(self, deadline: float, max_trials: int | None, num_processes: int, show: Show) -> Iterator["FrozenTrial"]:
        """Run trials until the deadline. Yield each trial when it has finished or was interrupted.

        Args:
            deadline: End of the search, on the clock of ``time.monotonic``.
            max_trials: Maximum number of finished trials, including the trials of earlier searches. If it is ``None``,
                there is no limit.
            num_processes: Number of training processes per trial.
            show: Callback for progress. It receives the settings and the progress of the running trial.
        """
        from optuna.trial import TrialState

        while time.monotonic() < deadline and (max_trials is None or len(self.finished()) < max_trials):
            trial = self._study.ask()
            settings, is_default = suggest(trial), bool(trial.user_attrs.get("defaults"))
            name = trial.user_attrs.get("folder", f"trial-{trial.number:04d}")
            trial.set_user_attr("folder", name)
            trial.set_user_attr("settings", settings)

            def prune(epoch: int, accuracy: float, trial: "Trial" = trial, is_default: bool = is_default) -> bool:
                trial.report(accuracy, epoch)
                return trial.should_prune() and not is_default

            common = {
                "training.refit": False,
                "logging.report": False,
                "data.source": str(self._data.folder.absolute()),
            }
            folder, show_progress = self._folder / name, partial(show, settings)
            outcome = run_trial({**settings, **common}, folder, num_processes, deadline, prune, show_progress)
            for key, value in outcome.items():
                trial.set_user_attr(key, value)
            state = {DONE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED}.get(outcome["end"], TrialState.FAIL)
            told = self._study.tell(trial, outcome["validation"] if outcome["end"] == DONE else None, state)
            if is_default and outcome["end"] == FAILED and self.best() is None:
                # If training fails with the defaults, it most likely fails with all settings.
                raise UserError(*outcome["problem"].split("\n"))
            self._write_results()
            yield told

    def trials(self) -> list["FrozenTrial"]:
        """Return the trials that finished or were interrupted, in order. Only the newest trial of a folder counts."""
        trials = self._study.get_trials(deepcopy=False)
        newest = {trial.user_attrs["folder"]: trial for trial in trials if "end" in trial.user_attrs}
        return [newest[name] for name in sorted(newest)]

    def finished(self) -> list["FrozenTrial"]:
        """Return the trials that ended by themselves: they completed, were pruned, or failed.

        Trials that were interrupted by the deadline or killed are not included.
        """
        return [trial for trial in self.trials() if trial.user_attrs.get("end") in (DONE, PRUNED, FAILED)]

    def best(self) -> "FrozenTrial | None":
        """Return the best trial so far, including interrupted trials. ``None`` if no epoch was evaluated."""
        scored = [trial for trial in self.trials() if "validation" in trial.user_attrs]
        return min(scored, key=trial_sort_key, default=None)

    def checkpoint(self, trial: "FrozenTrial", folder: Path) -> Path:
        """Return the checkpoint of a trial's best epoch, or the trial's run folder if the checkpoint was removed."""
        run = folder / str(trial.user_attrs["folder"]) / RUN
        return next((run / checkpoint.FOLDER).glob(f"crepe_epoch_{trial.user_attrs['epoch']}_*.params"), run)

    def _write_results(self) -> None:
        """Write the table of all trials and the settings of the best trial.

        The runs of all other finished trials are deleted. The runs of interrupted trials are not deleted, because these
        trials can be resumed.
        """
        best = self.best()
        for trial in self.finished():
            if best is None or trial.number != best.number:
                shutil.rmtree(self._folder / trial.user_attrs["folder"], ignore_errors=True)
        rows = []
        for trial in self.trials():
            attributes = dict(trial.user_attrs)
            attributes["settings"] = yaml.safe_dump(
                attributes["settings"], default_flow_style=True, width=10**6
            ).strip()
            rows.append({column: attributes.get(column) for column in COLUMNS})
        write_csv(self._folder / TABLE, rows, COLUMNS)
        if best is not None:
            settings = group_settings({"data.source": str(self._data.folder), **best.user_attrs["settings"]})
            write_text(self._folder / BEST, yaml.safe_dump(settings, sort_keys=False))


def trial_sort_key(trial: "FrozenTrial") -> tuple[float, bool, float, int]:
    """Return a sort key that puts the best trial first.

    Trials are sorted by validation accuracy, in descending order. Ties are broken in this order: finished trials before
    interrupted ones, lower validation loss first, earlier trials first.
    """
    outcome = trial.user_attrs
    return -outcome["validation"], outcome["end"] != DONE, outcome["loss"], trial.number


def run_trial(
    settings: Mapping[str, Any],
    folder: Path,
    num_processes: int,
    deadline: float,
    prune: Callable[[int, float], bool],
    show: Callable[[str], None],
) -> TrialOutcome:
    """Train with the hyperparameters of a trial. If an earlier run in the same folder was interrupted, resume it.

    Args:
        settings: Settings by dotted name.
        folder: Folder of the trial. The run is in its subfolder ``run``.
        num_processes: Number of training processes.
        deadline: Time when the training is stopped, on the clock of ``time.monotonic``.
        prune: Callback after each epoch. It receives the number and the validation accuracy of the epoch. If it returns
            True, the training is stopped.
        show: Callback for progress. It receives a description of the progress.
    """
    folder.mkdir(exist_ok=True)
    run, started, num_shown, reason = folder / RUN, time.monotonic(), 0, ""
    show("starting")
    with training_subprocess({**settings, "run_dir": str(run)}, folder, num_processes) as process:
        while process.poll() is None and not reason:
            time.sleep(POLL_SECONDS)
            epochs = _epochs(run)
            for epoch in epochs[num_shown:]:
                show(f"epoch {epoch['epoch']}, validation {100 * epoch['validation_accuracy']:.1f} %")
                reason = PRUNED if prune(epoch["epoch"], epoch["validation_accuracy"]) else reason
            num_shown = len(epochs)
            if not reason and time.monotonic() > deadline:
                reason = TIMED_OUT
        if reason:
            terminate(process)
        code = process.wait()
    outcome = {"seconds": time.monotonic() - started, "problem": ""}
    epochs = _epochs(run)
    # The training may have finished just before it was stopped, so exit code 0 takes precedence over ``reason``.
    if code == 0:
        selected = read_json(run / "result.json")["epoch"]
        return {**outcome, "end": DONE, **_scores(next(epoch for epoch in epochs if epoch["epoch"] == selected))}
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
    """Return the records of the epochs so far. Each record contains validation scores."""
    records = {record["epoch"]: record for record in iter_records(run / METRICS) if record["event"] == "epoch"}
    return [records[epoch] for epoch in sorted(records)]
