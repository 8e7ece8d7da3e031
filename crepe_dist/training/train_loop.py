"""The training loop of one network, from its initial parameters to the last checkpoint. Every rank runs it.

In each step, a rank computes the gradients of its shard of the global batch. The distributed optimizer sums the
gradients over the ranks, and updates the parameters with the mean gradient. After each epoch, every rank evaluates its
shard of the validation and test splits, and rank 0 writes the checkpoint of the epoch. The name of a checkpoint
contains the epoch and the test accuracy, or the micro F1 if documents may have multiple labels. If no launcher is used,
the same loop trains in one process, on a GPU or on the CPU.

``horovodrun -np 2 crepe train --model paper --size small --kernels mxnet`` trains the network of the original Gluon
notebook. In this case, Horovod's ``DistributedTrainer`` wraps Gluon's trainer (``parallel/horovod_optimizer.py``).

Logging, saving, stopping and the watchdog's heartbeats are implemented as callbacks (``create_callbacks``).
"""

from collections.abc import Mapping
from typing import Any

from crepe_dist.data.dataset import Dataset
from crepe_dist.data.loader import with_next
from crepe_dist.distributed.signals import StepAction
from crepe_dist.engines.engine import Engine
from crepe_dist.runs import checkpoint
from crepe_dist.runs.result import Result, read_result, write_result
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.runs.scores import AnyScores
from crepe_dist.settings.config import Config
from crepe_dist.training.branch_weight import fit_branch_weight_and_evaluate
from crepe_dist.training.callbacks import Callback, CallbackList, WatchdogCallback
from crepe_dist.training.context import JobContext, TrainContext, next_lr
from crepe_dist.training.divergence import check_finite_scores, handle_nonfinite_step
from crepe_dist.training.eval_loop import EvaluationStopped
from crepe_dist.training.save_callback import SaveCallback
from crepe_dist.training.startup_messages import banner, startup_warnings
from crepe_dist.training.state_saver import BackgroundStateSaver, open_saver, restore_newest_state
from crepe_dist.training.step_logger import ProgressCallback, StepLogger


def train_or_load_result(config: Config, data: Dataset, engine: Engine, folder: RunDir, job: JobContext) -> Result:
    """Train a network, or resume its training, and return the result. If the run is finished, just read its result."""
    if (finished := job.group.run_on_all("result", lambda: read_result(folder))) is not None:
        return finished
    context = run_epochs(config, data, engine, folder, job)
    reported, selected_by = context.selection.selected_epoch(context.progress), context.selection.selected_by
    return write_result(folder, reported, selected_by, context.provenance(), job.group)


def run_epochs(
    config: Config, data: Dataset, engine: Engine, folder: RunDir, job: JobContext, last_epoch: int | None = None
) -> TrainContext:
    """Train a network for its remaining epochs. After each epoch, evaluate the network and write a checkpoint.

    Args:
        last_epoch: Epoch after which the training ends, although its schedule has more epochs. ``None`` trains all.
    """
    context = TrainContext.create(config, data, engine, folder, job, last_epoch)
    context.display.print(banner(context))
    context.display.print(f"run       {folder.path}")
    saver = open_saver(context, restore_newest_state(context))
    if context.progress.step == 0:
        context.display.print_lines(startup_warnings(context))

    callbacks = create_callbacks(context, saver)
    with job.signals.defer():  # From here on, a signal only requests a stop. The ranks agree on it after each step.
        while not context.progress.finished:
            train_epoch(context, callbacks)
            scores, branch_weight = evaluate_epoch(context, callbacks)
            record = save_checkpoint(context, saver, scores, branch_weight)
            end_epoch(context, callbacks, record)
        callbacks.on_train_end()
    return context


def create_callbacks(context: TrainContext, saver: BackgroundStateSaver) -> CallbackList:
    """Create the callbacks of a run. Every rank has the same callbacks.

    The order matters:

    1. ``WatchdogCallback`` comes first, so that it sends a heartbeat before another callback waits. ``SaveCallback``
       can wait for the disk of rank 0 in ``on_step_begin``, and for other ranks in its collectives.
    2. ``StepLogger`` logs a step before ``SaveCallback`` saves the state after this step, because the metrics files
       must contain every step before a saved state. Only rank 0 writes these files.
    3. ``StepLogger`` passes the last steps of an epoch to ``ProgressCallback`` before the latter removes the progress
       bar.
    4. ``SaveCallback`` is the only callback that raises ``StopRequested``. The callbacks before it have then already
       handled the step on this rank.
    """
    callbacks = CallbackList()
    callbacks.callbacks = [
        WatchdogCallback(context),
        StepLogger(context, callbacks),
        ProgressCallback(context),
        SaveCallback(context, saver, callbacks),
    ]
    return callbacks


def train_epoch(context: TrainContext, callbacks: Callback) -> None:
    """Train on the remaining batches of the epoch."""
    engine, optimizer, progress = context.engine, context.optimizer, context.progress
    num_rows = len(context.data.splits["train"])
    callbacks.on_epoch_begin()
    for batch, next_batch in with_next(context.epoch_batches()):  # A batch is this rank's shard of a global batch.
        lr = next_lr(context.config, progress, num_rows)
        requested_action = callbacks.on_step_begin(batch)
        loss = engine.forward_backward(batch, next_batch)
        # ``all_reduce`` sums the gradients of the dense parameters, and makes the decisions that must be the same on
        # all ranks. On one host, ``step`` sums the gradients of the n-gram tables while it updates their rows.
        result = optimizer.all_reduce(loss, batch, requested_action)
        while result.needs_recompute:
            # An integer sum could have overflowed, or the initial fixed-point scales were too coarse. The optimizer has
            # chosen new scales, so the gradients of the same batch are recomputed with them.
            result = optimizer.all_reduce(engine.forward_backward(batch, next_batch), batch, requested_action)
        if result.is_finite:
            optimizer.step(batch.global_batch_size, lr)
        else:
            handle_nonfinite_step(context, result)
        progress.record_step(batch.global_batch_size, result.loss)
        callbacks.on_step_end(result, lr)
    callbacks.on_train_epoch_end()


def evaluate_epoch(context: TrainContext, callbacks: Callback) -> tuple[Mapping[str, AnyScores], float]:
    """Evaluate the network on the validation and test splits. Every rank evaluates its shard.

    Returns:
        A mapping from split names to scores, and the fitted weight of the convolutional branch.

    Raises:
        StopRequested: A request to stop arrived during the evaluation. The state has been saved.
        UserError: The loss on a split is not finite.
    """
    context.job.watchdog.heartbeat("evaluate")
    context.optimizer.synchronize()
    try:
        scores, branch_weight = fit_branch_weight_and_evaluate(
            context.engine, context.data, context.group, lambda: context.job.signals.requested_action is StepAction.STOP
        )
    except EvaluationStopped:
        callbacks.on_stop()
        raise  # Not reached: ``SaveCallback.on_stop`` raises ``StopRequested``.
    check_finite_scores(scores, context.progress.epoch)
    return scores, branch_weight


def save_checkpoint(
    context: TrainContext, saver: BackgroundStateSaver, scores: Mapping[str, AnyScores], branch_weight: float
) -> dict[str, Any]:
    """Record the epoch. If it has scores, write its checkpoint on rank 0, and delete the checkpoints no longer needed.

    Returns:
        The record of the epoch.
    """
    progress, engine = context.progress, context.engine
    extra_metrics = {"tower_weight": branch_weight} if engine.config.num_branches > 1 else {}
    record = checkpoint.epoch_record(progress, scores, extra_metrics)
    progress.epochs.append(record)

    def write() -> None:
        precision, numerics = context.config.model.precision, context.numerics()
        metadata = checkpoint.build_metadata(record, context.data, engine.config, precision, numerics, scores)
        arrays = engine.config.with_branch_weight(engine.state_dict(), branch_weight)
        checkpoint.save_checkpoint(context.run_dir.path, arrays, metadata, scores)
        needed = context.selection.checkpoints_to_keep(progress, saver.scored_epochs_on_disk)
        context.run_dir.remove(context.run_dir.checkpoints_except(needed))

    if scores:
        # All ranks wait for the write. If it fails, all ranks must stop, because the checkpoint does not exist.
        context.group.run_on_rank0("checkpoint", write)
    return record


def end_epoch(context: TrainContext, callbacks: Callback, record: dict[str, Any]) -> None:
    """Start the next epoch, or mark the run as finished after the last epoch or if early stopping applies."""
    progress, selection = context.progress, context.selection
    progress.finished = selection.is_last(progress)
    stopped_early = selection.stopped_early(progress)
    if not progress.finished:
        progress.begin_epoch(progress.epoch + 1)
    callbacks.on_epoch_end(record)
    if stopped_early:
        context.display.print(stopped_early)
