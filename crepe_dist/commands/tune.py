"""Command that searches for better settings."""

import math
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crepe_dist import invocation
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.formatting import duration, percent, pluralize
from crepe_dist.settings.fields import PATH_ARGUMENT, float_range, int_range, setting
from crepe_dist.settings.flags import Command
from crepe_dist.tuning.search import BEST, DONE, TABLE, TIMED_OUT, Search, trial_sort_key

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

MAX_SHOWN_TRIALS = 10  # Number of trials in the table on the terminal.


@dataclass
class Tune(Command):
    """Search for better training settings: network, learning rate, epochs, and for crepe also dropout and width.

    The validation score selects the best settings. The first trial is the fastest network. The second trial has the
    default settings, so the validation score of the result is at least as high as the validation score of the default
    settings. The third trial is the default network with a higher learning rate and 10 epochs. Run the same command
    again to resume the search.
    """

    usage = """
        crepe tune data/reviews --minutes 10
        crepe tune data/reviews --minutes 60     resume the same search
        crepe train --config tune/reviews/best.yaml
        """
    interrupted = "interrupted; run the same command again to resume the search"

    data: Path = setting(None, "Prepared folder with a validation split.", PATH_ARGUMENT, positional="")
    minutes: float = setting(10.0, "Time limit of the search, in minutes.", float_range(0, 1e6, open_below=True))
    out: Path | None = setting(None, "Folder of the search. Default: tune/DATA.", PATH_ARGUMENT)
    trials: int | None = setting(
        None,
        "Maximum number of finished trials, including the trials of earlier searches. Default: no limit.",
        int_range(1, 10**6),
    )
    processes: int = setting(1, "Number of training processes.", int_range(1, 4096), "-np")
    seed: int = setting(0, "Random seed.", int_range(0, 2**31))

    def run(self) -> None:
        deadline = time.monotonic() + 60 * self.minutes
        data = open_dataset(self.data)
        out = self.out or Path("tune") / data.name
        search = Search(data, out, self.seed)
        console = Console(highlight=False)
        if earlier_trials := search.trials():
            console.print(f"{out} has {pluralize(len(earlier_trials), 'trial')}; resuming the search")
        with console.status("") as status:
            for trial in search.run(
                deadline,
                self.trials,
                self.processes,
                lambda settings, text: status.update(escape(f"{text}   {format_settings(settings)}")),
            ):
                console.print(_line(trial), markup=False, soft_wrap=True)
        arguments = [str(self.data), *(["--out", str(self.out)] if self.out else [])]
        _show(search, out, console, f"{shlex.join(arguments)} --minutes {math.ceil(max(30, 3 * self.minutes))}")


def _line(trial: "FrozenTrial") -> str:
    outcome = trial.user_attrs
    validation = f"validation {percent(outcome['validation'])}" if "validation" in outcome else outcome["end"]
    validation += " so far" * (outcome["end"] == TIMED_OUT and "validation" in outcome)
    problem = f": {outcome['problem'].splitlines()[0]}" if outcome["problem"] else ""
    seconds, settings = duration(outcome["seconds"]), format_settings(outcome["settings"])
    return f"{outcome['folder']}  {validation:<26} {seconds:>7}  {settings}{problem}"


def format_settings(settings: dict[str, Any]) -> str:
    """Format the settings of a trial for the terminal."""
    if not settings:
        return "the defaults"
    texts = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in settings.items()}
    return ", ".join(f"{name.rpartition('.')[2]} {text}" for name, text in texts.items() if name != "training.patience")


def _show(search: Search, out: Path, console: Console, resume_arguments: str) -> None:
    """Print the table of the best trials, and how to resume the search.

    Raises:
        UserError: No epoch was evaluated.
    """
    trials, best = search.trials(), search.best()
    resume_command = f"{invocation.command_line('tune')} {resume_arguments}"
    if best is None:
        raise UserError(
            "no trial completed an epoch within the time limit; the interrupted training is saved",
            remedy=f"resume the search with more time: {resume_command}",
        )
    table = Table("trial", "validation", "test", "epoch", "time", "settings", box=None, pad_edge=False)
    scored = sorted((trial for trial in trials if "validation" in trial.user_attrs), key=trial_sort_key)
    done = [trial for trial in scored if trial.user_attrs["end"] == DONE]
    # The trial of the defaults is always shown, because it is the baseline.
    default_trials = [trial for trial in scored[MAX_SHOWN_TRIALS:] if trial.user_attrs.get("defaults")]
    for trial in [*scored[:MAX_SHOWN_TRIALS], *default_trials]:
        outcome = trial.user_attrs
        scores = percent(outcome["validation"]), percent(outcome["test"]), str(outcome["epoch"])
        table.add_row(outcome["folder"], *scores, duration(outcome["seconds"]), format_settings(outcome["settings"]))
    console.print(table)
    lines = [
        f"{pluralize(len(trials), 'trial')}, {len(done)} finished; the validation score selects the best trial",
        f"all trials   {out / TABLE}",
        f"best model   {search.checkpoint(best, out)}",
        f"train it     {invocation.command_line('train')} --config {out / BEST}",
    ]
    if best not in done:
        lines.append(f"{best.user_attrs['folder']} is the best so far, but it is not finished: {resume_command}")
    console.print("\n".join(lines), soft_wrap=True, markup=False)
