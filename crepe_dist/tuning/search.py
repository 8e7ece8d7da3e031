"""A search over settings, with Optuna, that is bounded in time and resumes where it stopped."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from crepe_dist import extras
from crepe_dist.data.dataset import Dataset
from crepe_dist.errors import UserError
from crepe_dist.files import read_json, write_csv, write_json, write_text
from crepe_dist.runs import checkpoint
from crepe_dist.supervising.training_process import nested
from crepe_dist.tuning.attempt import RUN, Attempt, attempt
from crepe_dist.tuning.search_space import DEFAULTS, first, suggest

if TYPE_CHECKING:
    from optuna import Study
    from optuna import Trial as OptunaTrial

JOURNAL, BEST, TABLE, MANIFEST = "trials.jsonl", "best.yaml", "trials.csv", "tune.json"
FORMAT = 2
INTERRUPTED = ("out of time", "killed")
STARTUP = 8  # random trials before Optuna models the outcomes
Show = Callable[[int, dict[str, Any], str], None]
COLUMNS = ("trial", "end", "validation", "test", "epoch", "seconds", "settings")


@dataclass(frozen=True)
class Trial:
    """A trial that ended.

    Attributes:
        number: number of the trial, from 0; trial ``DEFAULTS`` has the defaults.
        settings: settings that differ from the defaults, by their dotted names.
    """

    number: int
    settings: dict[str, Any]
    outcome: Attempt

    @property
    def rank(self) -> tuple[float, bool, float, int]:
        """Sort key, the best first: validation accuracy, then finished ones, validation loss, and the earlier one."""
        out = self.outcome
        return -(out.validation or 0), out.end != "done", out.loss or 0, self.number


class Search:
    """A search in a folder; several searches of the same folder, one after the other, are one.

    Args:
        data: prepared data with a validation split.
        folder: folder of the search; created if it is missing.
    """

    def __init__(self, data: Dataset, folder: Path, seed: int) -> None:
        if "validation" not in data.splits:
            raise UserError(
                f"{data.folder} has no validation split",
                "it decides which settings are the best; the test split must not",
                f"prepare the data with --validation 0.1 --out {data.folder}-tuned",
            )
        optuna = _optuna()
        self._data, self._folder = data, folder.absolute()  # trials run in folders of their own
        folder.mkdir(parents=True, exist_ok=True)
        _check_same_data(folder, data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of features that are experimental
            self._study: Study = optuna.create_study(
                storage=optuna.storages.JournalStorage(
                    optuna.storages.journal.JournalFileBackend(str(self._folder / JOURNAL))
                ),
                study_name="tune",
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.PercentilePruner(75.0, n_startup_trials=4, n_warmup_steps=1),
            )
            self._study.sampler = optuna.samplers.TPESampler(
                # A resumed search draws other random numbers than it drew before.
                seed=seed + len(self._study.trials),
                n_startup_trials=STARTUP,
                multivariate=True,
                group=True,
            )
        self._requeue()

    def run(
        self, deadline: float, most: int | None, processes: int, memory: int, show: Show = lambda *_: None
    ) -> Iterator[Trial]:
        """Run trials until the deadline by ``time.monotonic``; yield each one that ended or was interrupted.

        Args:
            most: largest number of trials, including those of earlier searches in the folder; ``None``: no limit.
            memory: largest memory of a trial, in bytes.
            show: called again and again with the number of the trial, its settings, and how far it is.
        """
        from optuna.trial import TrialState

        while time.monotonic() < deadline and (most is None or len(self.ended()) < most):
            trial = self._study.ask()
            # An interrupted trial is asked for again, with its number and settings.
            settings = trial.user_attrs.get("settings", suggest(trial))
            number = trial.user_attrs.get("number", trial.number)
            trial.set_user_attr("settings", settings)
            trial.set_user_attr("number", number)

            def prune(epoch: int, accuracy: float, trial: OptunaTrial = trial, number: int = number) -> bool:
                trial.report(accuracy, epoch)
                return number > DEFAULTS and trial.should_prune()

            folder = self._folder / f"trial-{number:04d}"
            complete = {**settings, "data.source": str(self._data.folder.absolute()), "logging.report": False}
            showing = partial(show, number, settings)
            showing("starting")
            outcome = attempt(complete, folder, processes, deadline, memory, prune, showing)
            trial.set_user_attr("outcome", asdict(outcome))
            if outcome.end == "done":
                self._study.tell(trial, outcome.validation)
            else:
                self._study.tell(trial, state=TrialState.PRUNED if outcome.end == "pruned" else TrialState.FAIL)
            if number == DEFAULTS and self.best() is None and outcome.end in ("failed", "out of memory"):
                raise _defaults_failed(outcome, memory)
            self._keep_best()
            yield Trial(number, settings, outcome)

    def ended(self) -> list[Trial]:
        """Return all trials that ended, except those that the deadline or a kill interrupted, in order."""
        return [trial for trial in self.trials() if trial.outcome.end not in INTERRUPTED]

    def trials(self) -> list[Trial]:
        """Return all trials that ended or were interrupted, in order."""
        trials = {}
        for trial in self._study.get_trials(deepcopy=False):
            if outcome := trial.user_attrs.get("outcome"):
                number = trial.user_attrs["number"]
                trials[number] = Trial(number, trial.user_attrs["settings"], Attempt(**outcome))
        return [trials[number] for number in sorted(trials)]

    def best(self, *, interrupted: bool = True) -> Trial | None:
        """Return the best trial; ``None`` if no epoch was scored.

        Args:
            interrupted: count those that the deadline interrupted, with their best epoch so far.
        """
        scored = [trial for trial in self.trials() if trial.outcome.validation is not None]
        finished = [trial for trial in scored if trial.outcome.end == "done"]
        return min(scored if interrupted else finished, key=lambda trial: trial.rank, default=None)

    @staticmethod
    def checkpoint(trial: Trial, folder: Path) -> Path:
        """Find the checkpoint of the scored epoch of a trial, or its run's folder if that is gone."""
        run = folder / f"trial-{trial.number:04d}" / RUN
        return next((run / checkpoint.FOLDER).glob(f"crepe_epoch_{trial.outcome.epoch}_*.params"), run)

    def _keep_best(self) -> None:
        """Write the settings of the best trial and the table of all, and delete the runs of the others."""
        best = self.best()
        for trial in self.ended():  # an interrupted one needs its run
            if trial not in (best, self.best(interrupted=False)):
                shutil.rmtree(self._folder / f"trial-{trial.number:04d}", ignore_errors=True)
        rows = []
        for trial in self.trials():
            out, changed = trial.outcome, yaml.safe_dump(trial.settings, default_flow_style=True, width=10**6).strip()
            values = trial.number, out.end, out.validation, out.test, out.epoch, round(out.seconds, 1), changed
            rows.append(dict(zip(COLUMNS, values)))
        write_csv(self._folder / TABLE, rows, COLUMNS)
        if best is not None:
            settings = nested({"data.source": str(self._data.folder), **best.settings})
            write_text(self._folder / BEST, yaml.safe_dump(settings, sort_keys=False))

    def _requeue(self) -> None:
        """Ask for the first trials, and again for trials that a deadline or a kill interrupted."""
        from optuna.trial import TrialState

        trials = self._study.get_trials(deepcopy=False)
        if not trials:
            for values in first(self._data):
                self._study.enqueue_trial(dict(values))
        newest = {}
        for trial in trials:
            if trial.state == TrialState.RUNNING:  # its process was killed
                self._study.tell(trial.number, state=TrialState.FAIL)
            if "number" in trial.user_attrs:
                newest[trial.user_attrs["number"]] = trial
        for number, trial in newest.items():
            ended = trial.user_attrs.get("outcome", {"end": "killed"})["end"]
            if ended in INTERRUPTED and trial.state != TrialState.WAITING:
                attributes = {"number": number, "settings": trial.user_attrs["settings"]}
                self._study.enqueue_trial(trial.params, user_attrs=attributes)


def _optuna() -> Any:
    extras.require("tune", "tune")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _check_same_data(folder: Path, data: Dataset) -> None:
    about = {"format": FORMAT, "data": data.name, "fingerprint": data.fingerprint}
    path = folder / MANIFEST
    if not path.is_file():
        write_json(path, about)
    elif read_json(path) != about:
        raise UserError(
            f"{folder} is a search on other data or by another version",
            f"{MANIFEST} in it has another format than {FORMAT}, or another fingerprint than {data.folder}",
            "choose another --out, or delete that folder",
        )


def _defaults_failed(outcome: Attempt, memory: int) -> UserError:
    if outcome.end == "out of memory":
        return UserError(
            "training with the defaults needs too much memory",
            f"it took more than {memory / 1e9:.1f} GB",
            "raise --memory, or close other programs",
        )
    what, why, remedy = outcome.problem.split("\n")
    return UserError(what, why, remedy)
