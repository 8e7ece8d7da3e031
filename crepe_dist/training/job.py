"""Everything around the recipe.

The data are opened, the run's folder is chosen and locked, networks are trained, and the report is written. On data
with unlabelled texts two networks are trained, by the same recipe (``unlabelled``); and the n-gram table is refitted on
every row (``refit``).
"""

from __future__ import annotations

from contextlib import suppress
from threading import Thread

from crepe_dist.data.dataset import Dataset
from crepe_dist.distributed.process_group import World
from crepe_dist.distributed.signals import Control
from crepe_dist.distributed.watchdog import Watchdog
from crepe_dist.errors import UserError
from crepe_dist.runs.run_folder import (
    Result,
    RunFolder,
    choose_folder,
    lock_on_root,
    read_result,
)
from crepe_dist.settings.config import Config
from crepe_dist.training import pseudo_labels, refit, train_loop
from crepe_dist.training.callbacks import explained
from crepe_dist.training.context import Pages, Session
from crepe_dist.training.display import Display
from crepe_dist.training.model_setup import build_engine
from crepe_dist.training.startup_messages import unused_gpu
from crepe_dist.training.training_data import (
    open_training_data,
    uses_unlabelled,
    verify_data,
    with_epochs,
)


def train(config: Config, world: World, control: Control, pages: Pages) -> Result:
    """Train a run, resume it if it is unfinished, or return its result if it is finished; every rank calls it.

    Raises:
        UserError: an error that the user can fix.
        Stopped: the run was asked to stop, and its state is saved.
    """
    in_memory = explained("data.batch_size", config.data.batch_size, world.size)
    with Watchdog(control, config.safety.watchdog_s, world.rank) as watchdog, in_memory:
        world.beat, world.before_long_wait = watchdog.beat, watchdog.before_long_wait
        world.patience = config.safety.watchdog_s / 2
        session = Session(world, control, watchdog, Display(world.is_root), pages)
        display = session.display
        data = open_training_data(config, world, display, pages.data)
        config, is_taught = with_epochs(config, data), uses_unlabelled(config, data)
        first = pseudo_labels.first_run(config, data) if is_taught else (config, data)
        network = build_engine(*first, world)  # before there is a folder: this finds what is missing
        has_refit = refit.table_of(config, data, network[0].shape) is not None
        folder = choose_folder(config, data, world)
        finished = world.agree("result", lambda: read_result(folder))
        if finished is not None and (folder.is_refitted or not has_refit):
            if world.is_root:
                with suppress(UserError, OSError), folder.lock():  # in use, or not writable
                    folder.tidy()  # if an earlier process was killed before it did
            display.say(f"{folder} is finished; --fresh starts another run\n{finished}")
            report(config, data, folder, session)  # if it is missing or older
            return finished

        with lock_on_root(folder, world, control.is_supervised, display.say):
            watchdog.write_to(folder.stacks(world.rank), world.gather(watchdog.identity(), "processes"))
            verify_data(data, world, folder.verified())
            if is_taught:
                result, learnt, engine = pseudo_labels.train(config, data, first, network, folder, session)
            else:
                result, learnt, engine = train_loop.train(config, data, network, folder, session), data, network[0]
            if world.is_root and config.logging.report and pages.load is not None:
                Thread(target=pages.load).start()  # half of the report's time, beside the refit
            result = refit.train(config, learnt, engine, result, session)
            display.say(str(result))
            report(config, data, folder, session)
            display.say_lines(unused_gpu(config, engine))
            return result


def report(config: Config, data: Dataset, folder: RunFolder, session: Session) -> None:
    """Write the report of a finished run on rank 0, unless it is there and newer."""
    write = session.pages.report
    if config.logging.report and write is not None:
        session.world.on_root("report", write(folder, data, session.display.say))
