"""Progress of a run. Rank 0 prints it to standard output: as a progress bar on a terminal, otherwise as plain lines."""

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from crepe_dist.command_runner import silence_stdout
from crepe_dist.distributed.launch import OPEN_MPI, read_launcher_env
from crepe_dist.errors import escape_controls
from crepe_dist.formatting import percent, timestamp

LINE_SECONDS = 10.0  # Number of seconds between two plain lines of progress.


@dataclass(frozen=True)
class Throughput:
    """Throughput of the steps since the last log, over all ranks.

    Attributes:
        documents_per_second: Number of documents per second.
        ms_per_step: Number of milliseconds per step.
    """

    documents_per_second: float
    ms_per_step: float

    def __str__(self) -> str:
        decimals = 0 if self.ms_per_step >= 100 else 1
        return f"{self.documents_per_second:,.0f}/s  {self.ms_per_step:,.{decimals}f} ms per step"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Continue without output after the reader has closed the pipe. By default, Rich would end the process."""
        silence_stdout()


class ProgressDisplay:
    """Display on standard output. It prints nothing on ranks other than 0."""

    def __init__(self, is_root: bool) -> None:
        # Open MPI connects the output to a pseudo-terminal, also if a log file receives it in the end.
        force_terminal = False if read_launcher_env().launcher == OPEN_MPI else None
        self._console = _Console(highlight=False, soft_wrap=True, quiet=not is_root, force_terminal=force_terminal)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._total = 0
        self._next_line = 0.0

    def print(self, line: str) -> None:
        """Print a line. It stays visible above the progress bar."""
        # Standard output may be a file on a full disk. In this case, training continues without the line.
        with suppress(OSError):
            self._console.print(escape_controls(line), markup=False)

    def log(self, line: str) -> None:
        """Print a line about the progress of the run, with the date and time."""
        self.print(f"{timestamp()} {line}")

    def print_lines(self, lines: Iterable[str]) -> None:
        """Print lines with ``print``."""
        for line in lines:
            self.print(line)

    def begin_epoch(self, epoch: int, num_epochs: int, num_documents: int, num_done: int) -> None:
        """Show the start of an epoch.

        Args:
            num_done: Number of documents of this epoch that were processed before the run was resumed.
        """
        self._title = f"epoch {epoch} of {num_epochs}"
        self._total = num_documents
        self._next_line = time.monotonic() + LINE_SECONDS
        if self._console.is_terminal and not self._console.quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                *([BarColumn()] if self._console.width >= 130 else []),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}  {task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(self._title, total=num_documents, completed=num_done, rate="")
            self._bar.start()

    def update(self, documents: int, smoothed_loss: float, throughput: Throughput) -> None:
        """Show the number of documents processed in this epoch, the smoothed loss and the throughput."""
        is_narrow = self._bar is not None and self._console.width < 120
        shown = f"loss {smoothed_loss:.4f}  " + (
            f"{throughput.documents_per_second:,.0f}/s" if is_narrow else str(throughput)
        )
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=documents, rate=shown)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            left = (self._total - documents) / max(throughput.documents_per_second, 1e-9)
            self.log(
                f"{self._title}: {documents:,}/{self._total:,} documents  {shown}  {left:,.0f} s left of the epoch"
            )

    def end_epoch(self) -> None:
        """Remove the progress bar after the last step of an epoch."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None


def epoch_line(record: dict[str, Any], num_epochs: int, verdict: str) -> str:
    """Format the record of an epoch (``checkpoint.epoch_record``) as one line.

    The validation scores come first, because they select the epoch.

    Args:
        num_epochs: Number of epochs of the run.
        verdict: Comparison with the earlier epochs (``ModelSelection.describe_latest``).
    """
    score_name = " F1" if "test_mean_average_precision" in record else ""
    scores = {}
    for name in ("validation", "test"):
        if f"{name}_accuracy" in record:
            scores[name] = (
                f"{name}{score_name} {percent(record[f'{name}_accuracy'])} (loss {record[f'{name}_loss']:.4f})"
            )
    if "validation" in scores and verdict:
        scores["validation"] += f", {verdict}"
    rest = f"train loss {record['train_loss']:.4f}  {record['seconds']:.0f} s"
    return f"epoch {record['epoch']} of {num_epochs}: " + "  ".join([*scores.values(), rest])
