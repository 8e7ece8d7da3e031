"""Commands that manage runs: `runs`, `use`, `report` and `clean`."""

import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crepe_dist import extras, invocation
from crepe_dist.data.dataset import Dataset
from crepe_dist.errors import UserError, escape_controls
from crepe_dist.files.folders import cache_folder, list_abandoned
from crepe_dist.formatting import align_columns, percent, size
from crepe_dist.runs import checkpoint, run_dir
from crepe_dist.runs.checkpoint import RUN_KEY_FILE
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.sealed_json import write_sealed_json
from crepe_dist.settings.fields import NON_EMPTY, PATH_ARGUMENT, Repeated, setting
from crepe_dist.settings.flags import Command
from crepe_dist.settings.yaml_file import read

TUNE_DIR = Path("tune")  # Default folder for the searches of `tune`. Each search contains runs.


@dataclass
class Runs(Command):
    """List the runs in runs/, newest first, with their data, test score, size on disk and end time.

    A star marks the default model. Commands use this model if no other model is specified.
    """

    usage = """
        crepe runs
        crepe use runs/reviews-1f2e3d4c5b
        """

    def run(self) -> None:
        runs = [path.parent for path in checkpoint.RUNS.glob(f"*/{RUN_KEY_FILE}") if RunDir(path.parent).is_run]
        if not runs:
            print(f"there is no run in {checkpoint.RUNS}/\n  do:  {invocation.command_line('train')}")
            return
        newest = [*checkpoint.newest_run_per_dataset(checkpoint.list_runs()).values()]
        used = str(newest[0]) if len(newest) == 1 else ""
        with suppress(UserError):  # The default model that the user chose has been deleted.
            used = checkpoint.default_model() or used
        rows: list[tuple[str, ...]] = [("", "run", "data", "test", "size", "finished")]
        rows += [_row(run, used) for run in sorted(runs, key=_changed, reverse=True)]
        print(*align_columns(rows), sep="\n")
        use = f"{invocation.command_line('use')} RUN"
        if used:
            model = "*" if any(row[0] for row in rows) else escape_controls(used)
            print(f"{model} is the model of predict, evaluate, serve and export; choose another: {use}")
        elif newest:
            print(f"the runs have different data: predict, evaluate, serve and export need a name, or first {use}")


def _row(run: Path, used: str) -> tuple[str, ...]:
    folder = RunDir(run)
    result, settings = folder.result, read(run / checkpoint.CONFIG)
    data = settings.get("data")
    source = Path(str(data.get("source", ""))).name if isinstance(data, dict) else ""
    score, end_time = "–", "no"
    if result is not None:
        score = percent(result["test_accuracy"])
        end_time = time.strftime("%Y-%m-%d %H:%M", time.localtime(_changed(run)))
    mark, on_disk = "*" if Path(used) == run else "", size(run_dir.disk_usage(run))
    cells = (mark, str(run), source, score, on_disk, end_time)
    return tuple(map(escape_controls, cells))


def _changed(run: Path) -> float:
    result = run / checkpoint.RESULT
    return (result if result.is_file() else run / RUN_KEY_FILE).stat().st_mtime


@dataclass
class Use(Command):
    """Choose the default model of predict, evaluate, serve and export in this folder.

    If no model is chosen, the default model is the newest run in runs/. If the runs have different data, these
    commands require a name.
    """

    usage = """
        crepe use reviews                        the only run whose name starts with "reviews"
        crepe use runs/reviews-1f2e3d4c5b
        crepe use hf://owner/name
        """

    model: str = setting(
        None,
        "Model: a run folder or the start of its name, a .params file, an exported folder or its URL.",
        NON_EMPTY,
        positional="",
    )

    def run(self) -> None:
        path = checkpoint.resolve_model(self.model)
        checkpoint.RUNS.mkdir(exist_ok=True)
        chosen = self.model if "://" in self.model else str(checkpoint.resolve_run_name(self.model))
        write_sealed_json(checkpoint.DEFAULT_MODEL_FILE, checkpoint.FORMAT, {"model": chosen})
        print(f"predict, evaluate, serve and export now use {escape_controls(str(path))}")


@dataclass
class Report(Command):
    """Write report.html and model_card.md into the folder of a run, as training does at its end."""

    usage = """
        crepe report runs/reviews-1f2e3d4c5b
        crepe report runs/reviews-1f2e3d4c5b --data /elsewhere/reviews
        """

    folder: Path = setting(None, "Folder of the run.", PATH_ARGUMENT, positional="")
    data: Path | None = setting(
        None, "Folder of the data set. Default: the data set that the run was trained on.", PATH_ARGUMENT
    )

    def run(self) -> None:
        extras.require("reports", "a report")
        # Imported here because the import of matplotlib takes a second.
        from crepe_dist.reports.model_card import CARD
        from crepe_dist.reports.run_page import REPORT, write_report
        from crepe_dist.runs.record import open_run

        record = open_run(self.folder)
        data: Dataset | UserError
        try:
            data = record.open_dataset(self.data)
        except UserError as error:
            if self.data is not None:
                raise
            data = error
        for _ in write_report(record, data):
            pass
        for name in (REPORT, CARD):
            print(escape_controls(str(record.path / name)))
        if isinstance(data, UserError):
            print(f"the report has no texts: {escape_controls(data.what)}")


@dataclass
class Clean(Command):
    """List files that runs no longer need, and remove them with --yes.

    A finished run only needs its selected checkpoint and its last checkpoint. After a refit, it only needs the selected
    checkpoint. The resume states and the refit folder of a finished run can be removed. Temporary files of killed
    processes are also listed. Runs that are being trained are not touched. Unfinished runs keep the files that they
    need to resume. If no folders are given, the list includes the cache (models copied from URLs, and predictions that
    were not uploaded).
    """

    usage = """
        crepe clean                 list what can be removed
        crepe clean --yes           remove it
        crepe clean runs/reviews-1f2e3d4c5b --yes
        """

    folders: tuple[Path, ...] = setting(
        (),
        f"Run folders, or folders that contain runs. Default: {checkpoint.RUNS} and {TUNE_DIR}.",
        Repeated(PATH_ARGUMENT),
        positional="*",
    )
    yes: bool = setting(False, "Remove the listed files.")

    def run(self) -> None:
        for folder in self.folders:
            if not folder.is_dir():
                raise UserError(f"{folder} is not a folder", remedy="name a run, or a folder that contains runs")
        freed = 0
        for run in find_runs(self.folders or (checkpoint.RUNS, TUNE_DIR)):
            try:
                with run.lock():
                    paths = run.removable_files()
                    freed += sum(map(_print_size, paths))
                    if self.yes:
                        run.remove(paths)
            except (UserError, OSError) as error:
                reason = error.what if isinstance(error, UserError) else f"{run.path}: {error.strerror}"
                print(f"not touched: {escape_controls(reason)}")
        for path in [*list_abandoned(), *([] if self.folders else list_cached())]:
            freed += _print_size(path)
            if self.yes:
                shutil.rmtree(path, ignore_errors=True)
        if not freed:
            print("nothing to remove")
        elif self.yes:
            print(f"{size(freed)} freed")
        else:
            command = " ".join([invocation.command_line("clean"), *map(shlex.quote, map(str, self.folders)), "--yes"])
            print(f"{size(freed)} can be freed; nothing was removed\n  do:  {escape_controls(command)}")


def find_runs(folders: tuple[Path, ...]) -> Iterator[RunDir]:
    """Yield the runs in these folders and in their subfolders. Yield each run only once."""
    paths = {path.parent.resolve(): path.parent for folder in folders for path in sorted(folder.rglob(RUN_KEY_FILE))}
    yield from filter(lambda run: run.is_run, map(RunDir, paths.values()))


def list_cached() -> list[Path]:
    """List the folders in the cache that can be removed: downloaded models, and predictions of killed processes."""
    # Imported here because it imports all of `preparing`.
    from crepe_dist.predicting import output_file

    models, answers = cache_folder() / checkpoint.MODEL_CACHE_FOLDER, cache_folder() / output_file.CACHED
    copies = [path.parent for path in sorted(models.glob(f"*/{checkpoint.MODEL_METADATA_FILE}"))]
    return [*copies, *list_abandoned(models), *list_abandoned(answers, "*")]


def _print_size(path: Path) -> int:
    freed = run_dir.disk_usage(path)
    print(f"{size(freed):>9}  {escape_controls(str(path))}")
    return freed
