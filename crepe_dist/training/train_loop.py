"""The training recipe of one network, from its initial parameters to the last checkpoint; every rank follows it.

In each step, a rank computes the gradients of its share of the global batch. The exchange (``exchange/``) sums the
gradients of all ranks, and the parameters are updated with their mean. After each epoch, every rank scores its share of
the validation and test splits, and rank 0 writes the epoch's checkpoint, named by epoch and test accuracy (of several
labels: micro F1). Without a launcher, the same recipe trains in one process, on a GPU or on the CPU.

With ``horovodrun -np 2 crepe train --model paper --size small --kernels mxnet`` it trains the notebook's network, and
Horovod's ``DistributedTrainer`` wraps Gluon's trainer (``parallel/horovod_optimizer.py``).

What surrounds a step (logs, saved states, stops, the watchdog) is in ``Guards``, whose hooks the recipe calls.
"""

from __future__ import annotations

from collections.abc import Mapping

from crepe_dist.data.dataset import Dataset
from crepe_dist.engines.engine import Engine
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_folder import Result, RunFolder, read_result, write_result
from crepe_dist.runs.scores import AnyScores
from crepe_dist.settings.config import Config
from crepe_dist.training.branch_weight import weighed_and_scored
from crepe_dist.training.callbacks import Guards
from crepe_dist.training.context import Run, Session, learning_rates
from crepe_dist.training.eval_loop import Interrupted
from crepe_dist.training.startup_messages import banner, notes
from crepe_dist.training.state_saver import open_saver, resume


def train(config: Config, data: Dataset, engine: Engine, folder: RunFolder, session: Session) -> Result:
    """Train a network in a folder, or resume its training; return its result, at once if it is finished."""
    if (finished := session.world.agree("result", lambda: read_result(folder))) is not None:
        return finished
    run = train_network(config, data, engine, folder, session)
    reported, chosen_by = run.choice.reported(run.progress), run.choice.chosen_by
    return write_result(folder, reported, chosen_by, run.provenance(), session.world)


def train_network(config: Config, data: Dataset, engine: Engine, folder: RunFolder, session: Session) -> Run:
    """Train the remaining epochs of a network, each followed by scores and a checkpoint."""
    run = Run.opened(config, data, engine, folder, session)
    run.display.say(banner(run))
    run.display.say(f"run       {folder}")
    saver = open_saver(run, resume(run))
    if run.progress.step == 0:
        run.display.say_lines(notes(run))

    guards = Guards(run, saver)
    with session.control.deferring():  # from here on, a signal only records a request; ranks agree at each step
        while not run.progress.finished:
            train_epoch(run, guards)
            save_epoch(run, guards, *score_epoch(run, guards))
        guards.finish()
    return run


def train_epoch(run: Run, guards: Guards) -> None:
    """Train on the remaining batches of the epoch."""
    engine, exchange, progress = run.engine, run.exchange, run.progress
    guards.begin_epoch()
    rate_at = learning_rates(run.config, len(run.data.splits["train"]))
    for batch in guards.wait(run.epoch_batches()):  # this rank's share of each global batch
        rate = rate_at(progress)
        vote = guards.before_step(batch)  # to save or to stop
        loss = engine.forward_backward(batch)  # our kernels on a CPU or a GPU, or Gluon
        outcome = exchange.all_reduce(loss, batch, vote)  # shared memory and hosts, NCCL, or Horovod's trainer
        while outcome.overflowed:  # or, at first, too coarse: whole numbers, computed again in other quanta
            outcome = exchange.all_reduce(engine.forward_backward(batch), batch, vote)
        if guards.accept(outcome):  # finite on every rank; else the run ends, or float16's loss scale sinks
            exchange.update(batch.documents, rate)
        progress.count(batch.documents, outcome.loss)
        guards.after_step(outcome, rate)
    guards.end_epoch()


def score_epoch(run: Run, guards: Guards) -> tuple[Mapping[str, AnyScores], float]:
    """Score the network on the validation and test splits; every rank scores its share. Return its weight, too.

    Raises:
        Stopped: a request to stop arrived during scoring, and the state is saved.
        UserError: the loss on a split is not finite.
    """
    run.session.watchdog.beat("evaluate")
    run.exchange.flush()
    try:
        scores, weight = weighed_and_scored(run.engine, run.data, run.world, guards.is_stopping)
    except Interrupted:
        guards.stop()
    guards.check(scores)  # finite on every split
    return scores, weight


def save_epoch(run: Run, guards: Guards, scores: Mapping[str, AnyScores], weight: float) -> None:
    """Write the epoch's checkpoint on rank 0 if it has scores, and move on to the next epoch or to the end."""
    progress, engine, choice = run.progress, run.engine, run.choice
    more = {"tower_weight": weight} if engine.shape.summands > 1 else {}
    record = checkpoint.epoch_record(progress, scores, more)
    progress.epochs.append(record)

    def write() -> None:
        precision, computed = run.config.model.precision, run.computed()
        about = checkpoint.description(record, run.data, engine.shape, precision, computed, scores)
        checkpoint.save(run.folder.path, engine.shape.weighted(engine.values(), weight), about, scores)
        run.folder.remove(run.folder.other_checkpoints(choice.kept(progress, guards.saver.epochs)))

    if scores:
        run.world.on_root("checkpoint", write)  # if it fails, no rank may continue as if the checkpoint existed
    progress.finished = choice.is_last(progress)
    stopped_early = choice.stopped_early(progress)
    if not progress.finished:
        progress.begin_epoch(progress.epoch + 1)
    guards.after_epoch(record)
    if stopped_early:
        run.display.say(stopped_early)
