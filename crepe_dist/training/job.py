"""The training job around the training loop.

The data are opened, the run's folder is chosen and locked, networks are trained, and the report is written. On data
with unlabelled texts two networks are trained, by the same loop (``unlabelled``); and the n-gram table is refitted on
every row (``refit``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from threading import Thread

from crepe_dist import extras
from crepe_dist.data.dataset import Dataset
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.distributed.signals import SignalHandler
from crepe_dist.distributed.watchdog import Watchdog
from crepe_dist.errors import UserError
from crepe_dist.runs.run_dir import (
    Result,
    RunDir,
    lock_on_rank0,
    read_result,
    select_run_dir,
)
from crepe_dist.settings.config import Config
from crepe_dist.training import pseudo_labels, refit, train_loop
from crepe_dist.training.context import JobContext
from crepe_dist.training.display import ProgressDisplay
from crepe_dist.training.model_setup import build_engine
from crepe_dist.training.out_of_memory import oom_as_user_error
from crepe_dist.training.startup_messages import warn_unused_gpu
from crepe_dist.training.training_data import (
    open_training_data,
    resolve_epochs,
    uses_unlabelled,
    verify_data,
)


def run_training_job(config: Config, world: ProcessGroup, control: SignalHandler) -> Result:
    """Train a run, resume it if it is unfinished, or return its result if it is finished; every rank calls it.

    Raises:
        UserError: an error that the user can fix.
        Stopped: the run was asked to stop, and its state is saved.
    """
    oom_errors = oom_as_user_error("data.batch_size", config.data.batch_size, world.size)
    with Watchdog(control, config.safety.watchdog_s, world.rank) as watchdog, oom_errors:
        world.heartbeat, world.pause_watchdog = watchdog.heartbeat, watchdog.pause
        world.timeout = config.safety.watchdog_s / 2
        job = JobContext(world, control, watchdog, ProgressDisplay(world.is_root))
        display = job.display
        _note_missing_libraries(config, display)
        data = open_training_data(config, world, display)
        config, is_taught = resolve_epochs(config, data), uses_unlabelled(config, data)
        first = pseudo_labels.supervised_run(config, data) if is_taught else (config, data)
        # Before the run folder is created, because building the engine finds missing libraries and lack of memory.
        engine = build_engine(*first, world)
        has_refit = refit.refit_config(config, data, engine.config) is not None
        folder = select_run_dir(config, data, world)
        finished = world.run_on_all("result", lambda: read_result(folder))
        if finished is not None and (folder.is_refitted or not has_refit):
            if world.is_root:
                with suppress(UserError, OSError), folder.lock():  # in use, or not writable
                    folder.clean_up()  # if an earlier process was killed before it did
            display.print(f"{folder.describe()} is finished; --fresh starts another run\n{finished}")
            report(config, data, folder, job)  # if it is missing or older
            return finished

        with lock_on_rank0(folder, world, control.is_supervised, display.print):
            watchdog.open_stack_file(
                folder.stack_path(world.rank), world.all_gather_object(watchdog.identity(), "processes")
            )
            verify_data(data, world, folder.verified_files_path())
            if is_taught:
                result, learnt, engine = pseudo_labels.self_train(config, data, first, engine, folder, job)
            else:
                result, learnt = train_loop.train_or_load_result(config, data, engine, folder, job), data
            if world.is_root and _has_report(config):
                Thread(target=_import_report_libraries).start()  # The imports take half of the report's time.
            result = refit.refit_ngram_branch(config, learnt, engine, result, job)
            display.print(str(result))
            report(config, data, folder, job)
            display.print_lines(warn_unused_gpu(config, engine))
            return result


def report(config: Config, data: Dataset, folder: RunDir, job: JobContext) -> None:
    """Write the report of a finished run on rank 0, if the report is missing or older than the result."""
    job.group.run_steps_on_rank0("report", _write_report(config, data, folder, job.display))


def _write_report(config: Config, data: Dataset, folder: RunDir, display: ProgressDisplay) -> Iterator[None]:
    """Write the report if it is wanted and possible; yield every few seconds."""
    if _has_report(config):
        from crepe_dist.reports import run_page

        yield from run_page.write_for(folder, data, display.print)


def _has_report(config: Config) -> bool:
    """Return whether the run gets a report: the settings ask for it, and its libraries are installed."""
    return config.logging.report and not extras.missing_packages("reports")


def _import_report_libraries() -> None:
    from crepe_dist.reports import run_page

    run_page.load()


def _note_missing_libraries(config: Config, display: ProgressDisplay) -> None:
    """Print that rank 0 lacks the libraries of wanted reports."""
    missing = extras.missing_note("reports", "report and no TensorBoard events")
    if missing and (config.logging.report or config.logging.tensorboard):
        display.print(f"note: {missing}")
