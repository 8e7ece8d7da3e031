"""Command that searches for better settings: ``python -m crepe_dist.tune DATA --minutes 10``."""

from __future__ import annotations

import math
import shlex
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from crepe_dist import command, invocation, machine
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.settings import arguments
from crepe_dist.settings.limits import real, whole
from crepe_dist.tuning.search import BEST, TABLE, Search, Trial
from crepe_dist.tuning.search_space import DEFAULTS
from crepe_dist.wording import counted, duration, percent

MOST_MEMORY = 0.8  # of the memory that is available at the start
SHOWN = 10  # trials in the table
SILENT = 5.0  # seconds between two lines about a trial, where a line cannot be overwritten
EXAMPLES = """  python -m crepe_dist.tune data/reviews --minutes 10
  python -m crepe_dist.tune data/reviews --minutes 60     go on with the same search
  python -m crepe_dist.train --config tune/reviews/best.yaml
"""


def parser() -> arguments.Parser:
    flags = arguments.parser(
        "tune",
        "Search for better settings of training: network, learning rate, epochs, n-grams, dropout and width. The "
        "validation split decides. The first trial is the fastest network, and the second has the defaults, so the "
        "result is never worse on that split. The same command goes on with the search.",
        EXAMPLES,
    )
    flags.add_argument("data", type=Path, metavar="DATA", help="prepared folder with a validation split")
    flags.add_argument(
        "--minutes", type=real(0, 1e6, open_below=True), default=10.0, metavar="M", help="time to search; default: 10"
    )
    flags.add_argument("--out", type=Path, metavar="DIR", help="folder of the search; default: tune/DATA")
    flags.add_argument(
        "--trials", type=whole(1, 10**6), metavar="N", help="stop after N trials, those of before included"
    )
    flags.add_argument(
        "-np", "--processes", type=whole(1, 4096), default=1, metavar="N", help="processes that train; default: 1"
    )
    flags.add_argument(
        "--memory",
        type=real(0, 1e6, open_below=True),
        metavar="GB",
        help=f"largest memory of a trial; default: {100 * MOST_MEMORY:g} %% of what is available",
    )
    flags.add_argument("--seed", type=whole(0, 2**31), default=0, metavar="N", help="random seed; default: 0")
    return flags


def main() -> None:
    args = parser().parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    memory = int(1e9 * args.memory) if args.memory else int(MOST_MEMORY * machine.available_memory())
    data = open_dataset(args.data)
    out = args.out or Path("tune") / data.name
    search = Search(data, out, args.seed)
    console = Console(highlight=False)
    if before := search.trials():
        console.print(f"{out} has {counted(len(before), 'trial')}; the search goes on")
    with console.status("") as status:
        show = _Progress(console, status)
        for trial in search.run(deadline, args.trials, args.processes, memory, show):
            console.print(_line(trial), markup=False, soft_wrap=True)
    again = [str(args.data), *(["--out", str(args.out)] if args.out else [])]
    _show(search, out, console, f"{shlex.join(again)} --minutes {math.ceil(max(30, 3 * args.minutes))}")


class _Progress:
    """Line that tells how far a trial is; where it cannot be overwritten, a further line now and then."""

    def __init__(self, console: Console, status: Status) -> None:
        self._console, self._status = console, status
        self._said = ("", 0.0)

    def __call__(self, number: int, settings: dict[str, Any], text: str) -> None:
        line = f"trial {number:<4} {text}   {spelled(settings)}"
        self._status.update(escape(line))
        if not self._console.is_terminal and line != self._said[0] and time.monotonic() - self._said[1] > SILENT:
            self._console.print(line, markup=False, soft_wrap=True)
            self._said = (line, time.monotonic())


def _line(trial: Trial) -> str:
    out = trial.outcome
    accuracy = f"validation {percent(out.validation)}" if out.validation is not None else out.end
    accuracy += " so far" * (out.end == "out of time" and out.validation is not None)
    problem = f": {out.problem.splitlines()[0]}" if out.problem else ""
    return f"trial {trial.number:<4} {accuracy:<26} {duration(out.seconds):>7}  {spelled(trial.settings)}{problem}"


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
            "no trial completed an epoch",
            "the time was too short for the smallest network; its training so far is saved",
            f"continue with more time: {invocation.typed('tune')} {more}",
        )
    table = Table("trial", "validation", "test", "epoch", "time", "settings", box=None, pad_edge=False)
    done = sorted((trial for trial in trials if trial.outcome.end == "done"), key=lambda trial: trial.rank)
    rows = [*done[:SHOWN], *(trial for trial in done[SHOWN:] if trial.number == DEFAULTS)]
    if best not in rows:
        rows.insert(0, best)  # interrupted by the deadline
    for trial in rows:
        scores = [percent(score) for score in (trial.outcome.validation, trial.outcome.test) if score is not None]
        table.add_row(
            str(trial.number),
            *scores,
            str(trial.outcome.epoch or 0),
            duration(trial.outcome.seconds),
            spelled(trial.settings),
        )
    console.print(table)
    lines = [
        f"{counted(len(trials), 'trial')}, {len(done)} finished; the validation split chose the best",
        f"all trials   {out / TABLE}",
        f"its model    {search.checkpoint(best, out)}",
        f"train it     {invocation.typed('train')} --config {out / BEST}",
    ]
    if best not in done:
        lines.append(f"trial {best.number} is the best so far, and not finished: {invocation.typed('tune')} {more}")
    console.print("\n".join(lines), soft_wrap=True, markup=False)


if __name__ == "__main__":
    command.run(main, "interrupted; run the same command again to continue the search")
