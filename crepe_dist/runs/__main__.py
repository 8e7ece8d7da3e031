"""Command that lists the runs in ``runs/``: ``python -m crepe_dist.runs``."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from crepe_dist import command, invocation
from crepe_dist.errors import UserError, visible
from crepe_dist.runs import checkpoint, run_folder
from crepe_dist.runs.run_folder import IDENTITY, RunFolder
from crepe_dist.settings import flags as arguments
from crepe_dist.settings.yaml_file import read
from crepe_dist.wording import percent, size

EXAMPLES = """  python -m crepe_dist.runs
  python -m crepe_dist.use runs/reviews-1f2e3d4c5b
"""


def parser() -> arguments.Parser:
    return arguments.parser(
        "runs",
        "List the runs in runs/, the newest first, with their data, test score, size on disk, and time of their end. A "
        "star marks the model of commands that are given none.",
        EXAMPLES,
    )


def main() -> None:
    parser().parse_args()
    runs = [path.parent for path in checkpoint.RUNS.glob(f"*/{IDENTITY}") if RunFolder(path.parent).is_run]
    if not runs:
        print(f"there is no run in {checkpoint.RUNS}/\n  do:  {invocation.typed('train')}")
        return
    candidates = checkpoint.trained()
    used = str(candidates[0]) if len(candidates) == 1 else ""
    with suppress(UserError):  # the chosen one is gone
        used = checkpoint.in_use() or used
    rows: list[tuple[str, ...]] = [("", "run", "data", "test", "size", "finished", "name")]
    rows += [_row(run, used) for run in sorted(runs, key=_changed, reverse=True)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    print(f"* is the model of predict, evaluate, serve and export; choose another: {invocation.typed('use')} RUN")


def _row(run: Path, used: str) -> tuple[str, ...]:
    folder = RunFolder(run)
    result, settings = folder.result, read(run / checkpoint.CONFIG)
    data = settings.get("data")
    source = Path(str(data.get("source", ""))).name if isinstance(data, dict) else ""
    scored, ended = "–", "no"
    if result is not None:
        scored, ended = percent(result["test_accuracy"]), time.strftime("%Y-%m-%d %H:%M", time.localtime(_changed(run)))
    cells = ("*" if Path(used) == run else "", str(run), source, scored, size(run_folder.size(run)), ended, folder.name)
    return tuple(map(visible, cells))


def _changed(run: Path) -> float:
    result = run / checkpoint.RESULT
    return (result if result.is_file() else run / IDENTITY).stat().st_mtime


if __name__ == "__main__":
    command.run(main)
