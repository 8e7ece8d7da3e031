"""Command that frees the disk space of finished runs: ``python -m crepe_dist.clean``."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from crepe_dist import command, invocation
from crepe_dist.errors import UserError, visible
from crepe_dist.files import cache_folder
from crepe_dist.runs import checkpoint, run_folder
from crepe_dist.runs.checkpoint import RUNS
from crepe_dist.runs.run_folder import IDENTITY, RunFolder
from crepe_dist.scratch import abandoned
from crepe_dist.settings import flags as arguments
from crepe_dist.wording import size

SEARCHES = Path("tune")
EXAMPLES = """  python -m crepe_dist.clean                 list what can be removed
  python -m crepe_dist.clean --yes           remove it
  python -m crepe_dist.clean runs/reviews-1f2e3d4c5b --yes
"""


def parser() -> arguments.Parser:
    flags = arguments.parser(
        "clean",
        "List what runs no longer need, and remove it with --yes: saved states of finished runs, their checkpoints "
        "except the reported and the last one, and leftovers of killed processes. A run in training stays as it is. An "
        "unfinished run keeps its states and checkpoints, from which it resumes. Without folders, also what the user's "
        "cache holds: models copied from URLs, and unfinished answers for URLs.",
        EXAMPLES,
    )
    flags.add_argument(
        "folders",
        type=Path,
        nargs="*",
        metavar="DIR",
        help=f"run folders, or folders that contain runs; default: {RUNS} and {SEARCHES}",
    )
    flags.add_argument("--yes", action="store_true", help="remove what is listed")
    return flags


def main() -> None:
    args = parser().parse_args()
    for folder in args.folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder", remedy="name a run, or a folder that contains runs")
    freed = 0
    for run in runs(args.folders or [RUNS, SEARCHES]):
        try:
            with run.lock():
                freed += _clean(run, args.yes)
        except (UserError, OSError) as error:
            reason = error.what if isinstance(error, UserError) else f"{run.path}: {error.strerror}"
            print(f"left as it is: {visible(reason)}")
    for path in [*abandoned(), *([] if args.folders else cached())]:
        freed += _listed(path)
        if args.yes:
            shutil.rmtree(path, ignore_errors=True)
    if not freed:
        print("nothing to remove")
    elif args.yes:
        print(f"{size(freed)} freed")
    else:
        again = " ".join([invocation.typed("clean"), *map(shlex.quote, map(str, args.folders)), "--yes"])
        print(f"{size(freed)} can be freed; nothing was removed\n  do:  {visible(again)}")


def runs(folders: list[Path]) -> Iterator[RunFolder]:
    """Yield the runs in these folders, and in the folders within, each once."""
    paths = {path.parent.resolve(): path.parent for folder in folders for path in sorted(folder.rglob(IDENTITY))}
    yield from filter(lambda run: run.is_run, map(RunFolder, paths.values()))


def cached() -> list[Path]:
    """List what the user's cache holds and no process writes: copies of models, and unfinished answers."""
    # Not at the top: they import all of preparing.
    from crepe_dist.predicting import resumable

    models, answers = cache_folder() / checkpoint.CACHED, cache_folder() / resumable.CACHED
    copies = [path.parent for path in sorted(models.glob(f"*/{checkpoint.DESCRIBED}"))]
    return [*copies, *abandoned(models), *abandoned(answers, "*")]


def _clean(run: RunFolder, remove: bool) -> int:
    """List what a run no longer needs; return its size in bytes."""
    paths = run.superfluous()
    total = sum(map(_listed, paths))
    if remove:
        run.remove(paths)
    return total


def _listed(path: Path) -> int:
    freed = run_folder.size(path)
    print(f"{size(freed):>9}  {visible(str(path))}")
    return freed


if __name__ == "__main__":
    command.run(main)
