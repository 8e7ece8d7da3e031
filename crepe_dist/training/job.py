"""The training job: everything that ``crepe train`` does around the training loop.

The job opens the data, selects and locks the run's directory, trains the networks and writes the report. If it uses
unlabelled texts, it trains two networks with the same training loop (``pseudo_labels``). At the end, it can refit the
n-gram branch on the train and validation splits (``refit``).
"""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace

from crepe_dist import extras
from crepe_dist.data.dataset import Dataset
from crepe_dist.distributed.launch import read_launcher_env
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.distributed.signals import SignalHandler
from crepe_dist.distributed.watchdog import Watchdog
from crepe_dist.errors import UserError
from crepe_dist.runs.result import Result, read_result
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.runs.run_dir_selection import lock_on_rank0, select_run_dir
from crepe_dist.runs.trackers import create_trackers
from crepe_dist.settings.config import Config
from crepe_dist.training import pseudo_labels, refit, train_loop
from crepe_dist.training.context import JobContext
from crepe_dist.training.display import ProgressDisplay
from crepe_dist.training.model_setup import build_engine
from crepe_dist.training.out_of_memory import oom_as_user_error
from crepe_dist.training.training_data import (
    open_training_data,
    resolve_epochs,
    uses_unlabelled,
    verify_data,
)


def run_training_job(config: Config, group: ProcessGroup, control: SignalHandler) -> Result:
    """Train a new run, resume an unfinished run, or return the result of a finished run. Every rank must call this
    function.

    Raises:
        UserError: An error that the user can fix.
        StopRequested: A signal requested a stop. The state has been saved.
    """
    oom_errors = oom_as_user_error(config.data.batch_size, group.size)
    with Watchdog(control, config.safety.watchdog_s, group.rank) as watchdog, oom_errors:
        group.heartbeat, group.pause_watchdog = watchdog.heartbeat, watchdog.pause
        group.timeout = config.safety.watchdog_s / 2
        watchdog.late_rank = lambda: group.late_rank
        display = ProgressDisplay(group.is_root)
        if (tracker := config.logging.track) != "none":
            group.run_on_rank0("tracking", lambda: extras.require(tracker, f"--track {tracker}"))
        job = JobContext(group, control, watchdog, display)
        _note_missing_libraries(config, display)
        data = open_training_data(config, group, display)
        config, is_self_training = resolve_epochs(config, data), uses_unlabelled(config, data)
        supervised = pseudo_labels.supervised_run(config, data) if is_self_training else (config, data)
        # The engine is built before the run's directory is created, so that no directory is left behind if a library is
        # missing or the network does not fit into memory.
        engine = build_engine(*supervised, group)
        has_refit = refit.refit_config(config, data, engine.config) is not None
        folder = select_run_dir(config, data, group)
        finished = group.run_on_all("result", lambda: read_result(folder))
        if finished is not None and (folder.is_refitted or not has_refit):
            if group.is_root:
                # An earlier process may have been killed before it cleaned up. The clean-up is skipped if another
                # process uses the directory, or if the directory is not writable.
                with suppress(UserError, OSError), folder.lock():
                    folder.clean_up()
            display.print(f"{folder.path} is finished; --fresh starts another run\n{finished}")
            report(config, data, folder, job)
            return finished

        may_be_restarted = control.is_supervised or bool(read_launcher_env().launcher)
        with lock_on_rank0(folder, group, may_be_restarted, display.print), ExitStack() as closing:
            job = replace(job, trackers=create_trackers(config, folder, display.print) if group.is_root else ())
            for opened in job.trackers:
                closing.callback(opened.close)
            watchdog.open_stack_file(
                folder.stack_path(group.rank), group.all_gather_json(watchdog.identity(), "processes")
            )
            verify_data(data, group, folder.verified_files_path())
            if is_self_training:
                result, trained_on, engine = pseudo_labels.self_train(config, data, supervised, engine, folder, job)
            else:
                result, trained_on = train_loop.train_or_load_result(config, data, engine, folder, job), data
            result = refit.refit_ngram_branch(config, trained_on, engine, result, job)
            display.print(str(result))
            closing.close()
            report(config, data, folder, job)
            return result


def report(config: Config, data: Dataset, folder: RunDir, job: JobContext) -> None:
    """Write the report of a finished run on rank 0. Do nothing if the existing report is newer than the result."""
    job.group.run_steps_on_rank0("report", _write_report(config, data, folder, job.display))


def _write_report(config: Config, data: Dataset, folder: RunDir, display: ProgressDisplay) -> Iterator[None]:
    """Write the report if the settings ask for one and its libraries are installed. Yield every few seconds."""
    if config.logging.report and not extras.missing_packages("reports"):
        from crepe_dist.reports import run_page

        yield from run_page.write_for(folder, data, display.print)


def _note_missing_libraries(config: Config, display: ProgressDisplay) -> None:
    """Print a note if the settings ask for a report, and rank 0 lacks the libraries."""
    missing = extras.missing_note("reports", "report")
    if missing and config.logging.report:
        display.print(f"note: {missing}")
