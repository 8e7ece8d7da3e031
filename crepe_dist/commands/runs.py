"""Command `runs`, which lists the runs."""

import time
from dataclasses import dataclass
from pathlib import Path

from crepe_dist import invocation
from crepe_dist.errors import escape_controls
from crepe_dist.formatting import align_columns, percent
from crepe_dist.runs import checkpoint
from crepe_dist.runs.checkpoint import RUN_KEY_FILE
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.settings.flags import Command
from crepe_dist.settings.yaml_file import read


@dataclass
class Runs(Command):
    """List the runs in runs/, newest first, with their data, test score and end time."""

    usage = """
        crepe runs
        """

    def run(self) -> None:
        runs = [path.parent for path in checkpoint.RUNS.glob(f"*/{RUN_KEY_FILE}") if RunDir(path.parent).is_run]
        if not runs:
            print(f"there is no run in {checkpoint.RUNS}/\n  do:  {invocation.command_line('train')}")
            return
        rows: list[tuple[str, ...]] = [("run", "data", "test", "finished")]
        rows += [_row(run) for run in sorted(runs, key=_changed, reverse=True)]
        print(*align_columns(rows), sep="\n")


def _row(run: Path) -> tuple[str, ...]:
    result, settings = RunDir(run).result, read(run / checkpoint.CONFIG)
    data = settings.get("data")
    source = Path(str(data.get("source", ""))).name if isinstance(data, dict) else ""
    score, end_time = "–", "no"
    if result is not None:
        score = percent(result["test_accuracy"])
        end_time = time.strftime("%Y-%m-%d %H:%M", time.localtime(_changed(run)))
    cells = (str(run), source, score, end_time)
    return tuple(map(escape_controls, cells))


def _changed(run: Path) -> float:
    result = run / checkpoint.RESULT
    return (result if result.is_file() else run / RUN_KEY_FILE).stat().st_mtime
