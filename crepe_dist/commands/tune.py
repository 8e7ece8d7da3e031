"""Command that searches for better settings."""

import math
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

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

MAX_SHOWN = 10  # trials in the table


@dataclass
class Tune(Command):
    """Search for better settings of training: network, learning rate, epochs, and for crepe dropout and width.

    The validation split decides. The first trial is the fastest network. The second trial has the defaults, so the
    result is never worse on that split. The third trial is the default network with a higher learning rate and 10
    epochs. Run the same command again to continue the search.
    """

    usage = """
        crepe tune data/reviews --minutes 10
        crepe tune data/reviews --minutes 60     go on with the same search
        crepe train --config tune/reviews/best.yaml
        """
    interrupted = "interrupted; run the same command again to continue the search"

    data: Path = setting(None, "prepared folder with a validation split", PATH_ARGUMENT, positional="")
    minutes: float = setting(10.0, "time to search", float_range(0, 1e6, open_below=True))
    out: Optional[Path] = setting(None, "folder of the search; default: tune/DATA", PATH_ARGUMENT)
    trials: Optional[int] = setting(None, "stop after so many trials, those of before included", int_range(1, 10**6))
    processes: int = setting(1, "processes that train", int_range(1, 4096), "-np")
    seed: int = setting(0, "random seed", int_range(0, 2**31))

    def run(self) -> None:
        deadline = time.monotonic() + 60 * self.minutes
        data = open_dataset(self.data)
        out = self.out or Path("tune") / data.name
        search = Search(data, out, self.seed)
        console = Console(highlight=False)
        if before := search.trials():
            console.print(f"{out} has {pluralize(len(before), 'trial')}; the search goes on")
        with console.status("") as status:
            for trial in search.run(
                deadline,
                self.trials,
                self.processes,
                lambda settings, text: status.update(escape(f"{text}   {spelled(settings)}")),
            ):
                console.print(_line(trial), markup=False, soft_wrap=True)
        again = [str(self.data), *(["--out", str(self.out)] if self.out else [])]
        _show(search, out, console, f"{shlex.join(again)} --minutes {math.ceil(max(30, 3 * self.minutes))}")


def _line(trial: "FrozenTrial") -> str:
    about = trial.user_attrs
    validation = f"validation {percent(about['validation'])}" if "validation" in about else about["end"]
    validation += " so far" * (about["end"] == TIMED_OUT and "validation" in about)
    problem = f": {about['problem'].splitlines()[0]}" if about["problem"] else ""
    seconds, settings = duration(about["seconds"]), spelled(about["settings"])
    return f"{about['folder']}  {validation:<26} {seconds:>7}  {settings}{problem}"


def spelled(settings: dict[str, Any]) -> str:
    """Name the settings of a trial."""
    if not settings:
        return "the defaults"
    return ", ".join(
        f"{name.rpartition('.')[2]} {value:.3g}" if isinstance(value, float) else f"{name.rpartition('.')[2]} {value}"
        for name, value in settings.items()
        if name != "training.patience"
    )


def _show(search: Search, out: Path, console: Console, more: str) -> None:
    trials, best = search.trials(), search.best()
    if best is None:
        raise UserError(
            "no trial completed an epoch; its training so far is saved",
            remedy=f"continue with more time: {invocation.command_line('tune')} {more}",
        )
    table = Table("trial", "validation", "test", "epoch", "time", "settings", box=None, pad_edge=False)
    scored = sorted((trial for trial in trials if "validation" in trial.user_attrs), key=trial_sort_key)
    done = [trial for trial in scored if trial.user_attrs["end"] == DONE]
    for trial in [*scored[:MAX_SHOWN], *(each for each in scored[MAX_SHOWN:] if each.user_attrs.get("defaults"))]:
        about = trial.user_attrs
        scores = percent(about["validation"]), percent(about["test"]), str(about["epoch"])
        table.add_row(about["folder"], *scores, duration(about["seconds"]), spelled(about["settings"]))
    console.print(table)
    lines = [
        f"{pluralize(len(trials), 'trial')}, {len(done)} finished; the validation split chose the best",
        f"all trials   {out / TABLE}",
        f"its model    {search.checkpoint(best, out)}",
        f"train it     {invocation.command_line('train')} --config {out / BEST}",
    ]
    if best not in done:
        lines.append(
            f"{best.user_attrs['folder']} is the best so far, and not finished: {invocation.command_line('tune')} "
            f"{more}"
        )
    console.print("\n".join(lines), soft_wrap=True, markup=False)
