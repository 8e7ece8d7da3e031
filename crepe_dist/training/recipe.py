"""The training recipe, from the data to the last checkpoint; every process of a run follows it.

Each process reads its share of every global batch through a DataLoader. The exchange (``exchange/``) sums the gradients
of all processes: on CPUs, as whole numbers, over the processes of one host in shared memory and over several hosts by
Horovod's all-to-all; on GPUs by NCCL. Horovod's ``DistributedTrainer`` sums those of MXNet's operators. Every process
scores its share of the test split, and rank 0 writes the epoch's checkpoint, named by test accuracy. Without a
launcher, the same recipe trains in one process, on a GPU or on the CPU.

Logs, saved states and the watchdog live in ``Guards``, whose hooks the recipe calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from crepe_dist.data.dataset import Dataset
from crepe_dist.data.verification import truncation_explained
from crepe_dist.distributed.control import Control
from crepe_dist.distributed.watchdog import Watchdog
from crepe_dist.distributed.world import World, once
from crepe_dist.engines.engine import Engine
from crepe_dist.errors import UserError
from crepe_dist.runs import checkpoint, disk_space
from crepe_dist.runs.best_epoch import EpochChoice
from crepe_dist.runs.checkpoint import AnyScores
from crepe_dist.runs.metrics import open_metrics
from crepe_dist.runs.result import Result, overfit_summary, read_result, write_result
from crepe_dist.runs.run_folder import RunFolder, choose_folder
from crepe_dist.settings.config import Config
from crepe_dist.training import teaching
from crepe_dist.training.display import Display
from crepe_dist.training.engine_setup import build_engine
from crepe_dist.training.evaluation import Interrupted
from crepe_dist.training.guards import Guards, guarded, watched
from crepe_dist.training.notes import banner, notes
from crepe_dist.training.out_of_memory import explained
from crepe_dist.training.resume import resume
from crepe_dist.training.run import Pages, Run
from crepe_dist.training.schedule import learning_rates
from crepe_dist.training.state_saver import open_saver
from crepe_dist.training.teaching import Lesson
from crepe_dist.training.training_data import (
    few_batches,
    open_training_data,
    uses_unlabelled,
    verify_data,
    with_epochs,
)
from crepe_dist.training.transfer import Start
from crepe_dist.training.weighing import weighed_and_scored


def train(config: Config, world: World, control: Control, pages: Pages) -> Result:
    """Train a run, resume it if it is unfinished, or return its result if it is finished; every rank calls it.

    Args:
        pages: functions that draw reports and pictures.

    Raises:
        UserError: an error that the user can fix.
        Stopped: the run was asked to stop, and its state is saved.
    """
    in_memory = explained("data.batch_size", config.data.batch_size, world.size)
    with watched(config, world, control) as watchdog, in_memory:
        display = Display(world.is_root)
        data = open_training_data(config, world, display, pages.data)
        config, is_taught = with_epochs(config, data), uses_unlabelled(config, data)
        first = with_epochs(teaching.of_first(config), replace(data, unlabelled=None)) if is_taught else config
        engine, start = build_engine(first, data, world)  # the network, on this rank's GPU or on the CPU
        if config.training.overfit_batches:
            data = few_batches(data, config)
        folder = choose_folder(config, data, world)
        if (finished := world.agree("result", lambda: read_result(folder))) is not None:
            if world.is_root:
                with suppress(UserError, OSError), folder.lock():  # in use, or not writable
                    disk_space.tidy(folder)  # if an earlier process was killed before it did
            display.say(f"{folder} is finished; --fresh starts another run\n{finished}")
            report(config, data, world, folder, display, pages)  # likewise
            return finished

        with guarded(folder, config, world, control, watchdog, display), truncation_explained(data.folder):
            verify_data(data, world, folder.verified())
            place = world, watchdog, control, display, pages
            given, lesson = data, None
            if is_taught:  # a first network helps to label the other texts; a student learns from all of them
                labelled = train_network(first, data, engine, start, folder.first, *place)
                lesson = teaching.teach(config, data, engine, labelled, world, folder, display)
                data = lesson.data(given)
                engine, start = build_engine(config, data, world)
            result = train_network(config, data, engine, start, folder, *place, lesson)
            display.say(overfit_summary(result) if config.training.overfit_batches else str(result))
            report(config, data, world, folder, display, pages)
            return result


def train_network(
    config: Config,
    data: Dataset,
    engine: Engine,
    start: Start | None,
    folder: RunFolder,
    world: World,
    watchdog: Watchdog,
    control: Control,
    display: Display,
    pages: Pages,
    lesson: Lesson | None = None,
) -> Result:
    """Train a network in a folder, or resume its training; return the result, at once if it is finished.

    Args:
        start: the given parameters, if any.
        lesson: soft labels in the data, if there are any.
    """
    if (finished := world.agree("result", lambda: read_result(folder))) is not None:
        return finished
    world.on_root("folder", once(lambda: folder.path.mkdir(exist_ok=True)))
    metrics = open_metrics(folder.path, world, display.say, config, pages.confusion)
    run = Run.opened(config, world, data, engine, folder, display, metrics)
    display.say(banner(run, start))
    display.say(f"run       {folder}")

    choice = EpochChoice.of(config, data)
    saver = open_saver(run, resume(run, choice))
    if run.progress.step == 0:
        display.say_lines(notes(run))

    guards = Guards(run, saver, watchdog, control)
    with control.deferring():  # from here on, a signal only records a request; ranks agree at each step
        while not run.progress.finished:
            train_epoch(run, guards)
            scores = score_epoch(run, guards)
            save_epoch(run, guards, choice, scores)
        guards.finish()
    return finish(run, choice, lesson)


def train_epoch(run: Run, guards: Guards) -> None:
    """Train on the remaining batches of the epoch."""
    guards.begin_epoch()
    rate_at = learning_rates(run.config, len(run.data.splits["train"]))
    for batch in guards.wait(run.epoch_batches()):
        number = run.progress.step + 1
        rate = rate_at(run.progress)
        guards.before_step(batch)
        outcome = run.step.sum(batch, number, guards.wish(number))  # gradients of all ranks
        if guards.accepts(outcome):  # finite on every rank
            run.step.update(batch.documents, rate)
        run.progress.count(batch.documents, outcome.loss)
        guards.after_step(outcome, rate)
    guards.end_epoch()


def score_epoch(run: Run, guards: Guards) -> Mapping[str, AnyScores]:
    """Score the network on the validation and test splits; every rank scores its share.

    Raises:
        Stopped: a request to stop arrived during scoring, and the state is saved.
        UserError: the loss on a split is not finite.
    """
    guards.begin_evaluation()
    run.step.exchange.flush()
    options = run.config.evaluation
    with explained("evaluation.batch_size", options.batch_size, run.world.size):
        try:
            scores = weighed_and_scored(run.engine, run.data, options, run.world, guards.is_stopping)
        except Interrupted:
            guards.stop()
    guards.check(scores)  # finite on every split
    return scores


def save_epoch(run: Run, guards: Guards, choice: EpochChoice, scores: Mapping[str, AnyScores]) -> None:
    """Write the epoch's checkpoint on rank 0, and move on to the next epoch or to the end."""
    progress, engine = run.progress, run.engine
    record = checkpoint.epoch_record(progress, scores, engine.tower_weight if engine.shape.weighed else None)
    precision, computed = run.config.model.precision, run.computed()
    about = checkpoint.description(record, run.data, engine.shape, precision, computed, scores)

    def write() -> None:
        checkpoint.save(run.folder.path, engine.weighed_values(), about, scores, guards.again)

    run.world.on_root("checkpoint", once(write))  # if it fails, no rank may continue as if the checkpoint existed
    progress.epochs.append(record)
    if run.world.is_root:
        keep = choice.kept(progress, guards.saver.epochs)
        disk_space.remove(run.folder, disk_space.other_checkpoints(run.folder, keep))
    progress.finished = choice.is_last(progress)
    stopped_early = choice.stopped_early(progress)
    if not progress.finished:
        progress.begin_epoch(progress.epoch + 1)
    guards.after_epoch(record, scores)
    if stopped_early:
        run.display.say(stopped_early)


def finish(run: Run, choice: EpochChoice, lesson: Lesson | None) -> Result:
    """Write the result of a network, and return it."""
    reported, made = choice.reported(run.progress), run.provenance()
    if lesson is not None:
        reported, made = teaching.judge(run, lesson, reported)
    result = write_result(run.folder, reported, choice.chosen_by, made, run.world)
    if run.world.is_root:  # only now: a run without a result is resumed from its state
        disk_space.tidy(run.folder)
    run.metrics.finish(result.scores)
    return result


def report(config: Config, data: Dataset, world: World, folder: RunFolder, display: Display, pages: Pages) -> None:
    """Write the report of a finished run on rank 0, unless it exists."""
    if config.logging.report and pages.report is not None and not config.training.overfit_batches:
        world.on_root("report", pages.report(folder, data, display.say))
