"""Opening lines of a run, and notes about settings that do not fit the network, the data or the machine."""

from __future__ import annotations

import math
import os

from crepe_dist import machine
from crepe_dist.cuda import driver
from crepe_dist.data.dataset import Dataset
from crepe_dist.distributed.device import Device
from crepe_dist.distributed.world import once
from crepe_dist.errors import UserError
from crepe_dist.model.precision import plan
from crepe_dist.model.shape import Shape, steps_per_epoch
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_record import open_run
from crepe_dist.settings.config import Config
from crepe_dist.training.engine_setup import training_bytes
from crepe_dist.training.run import Run
from crepe_dist.training.transfer import Start
from crepe_dist.wording import counted, cut, excerpt, first, listed, number, size

# Documents of a GPU and step, with which computing takes as long as summing and updating parameters (decision 0087).
DOCUMENTS_OF_GPU = 128
FEW_STEPS_OF_EPOCH = 32  # a batch that leaves fewer costs accuracy, and so little data need no second GPU
SMALLEST_BATCH = 8  # a smaller one is not advised: the gradients get noisy, and a step does not get faster
FEW_VALIDATION_ROWS = 100
SHOWN_CLASSES = 10
LABEL_CELLS = 40  # width of a class name in a note
SAME_SPLITS = "prepare both data sets from the same sources with the same --seed, --test and --validation"


def banner(run: Run, start: Start | None) -> str:
    """Describe a run in a few lines.

    Args:
        start: parameters given by ``training.init_from``, if any.
    """
    config, data, shape, device = run.config, run.data, run.engine.shape, run.engine.device
    rows = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    processes = f"{counted(run.world.size, 'process', 'processes')}, {device}"
    if run.step.exchange.by:
        processes += f", gradients summed by {run.step.exchange.by}"
    if device.device_type == "cpu":
        processes += f", OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}"
    lines = [
        f"data      {data.name}: {rows} documents of {data.encoding.feature_len} characters, "
        f"{len(data.classes)} classes",
        f"network   {shape}; {shape.parameters:,} parameters",
        f"training  {'up to ' if config.training.patience else ''}"
        f"{counted(config.training.all_epochs, 'epoch')}, batch {config.data.batch_size}, "
        f"{config.optimizer.name} {config.optimizer.learning_rate:g}; {processes}",
        f"choice    {_choice(config, data)}",
        f"computes  in {run.engine.plan}",
    ]
    if start is not None:
        lines.insert(2, f"start     {start.summary}")
    if config.training.overfit_batches:
        lines[0] += "; only a few batches, repeated for training and also scored"
    return "\n".join(lines)


def _choice(config: Config, data: Dataset) -> str:
    """Describe which split chooses the epoch, and the end of the training."""
    if "validation" not in data.splits:
        return "the last epoch, as there is no validation split to choose by (prepare --validation 0.1)"
    patience = config.training.patience
    until = f", and ends training after {counted(patience, 'epoch')} without improvement" if patience else ""
    return f"the validation split chooses the epoch{until}; the test split only measures it"


def notes(run: Run) -> list[str]:
    """Return a note, with its remedy, for each setting that would waste the run."""
    config, data, shape, world = run.config, run.data, run.engine.shape, run.world
    lines = [
        few_steps(config, len(data.splits["train"]), shape),
        *(empty_classes(data, split) for split in ("train", "test")),
        few_validation_rows(data),
    ]
    if config.training.init_from is not None:
        lines.append(world.on_root("leaks", once(lambda: leaked_rows(str(config.training.init_from), data))) or "")
    if run.engine.device.device_type == "cpu":
        lines += [unused_gpu(config, shape), little_memory(shape, world.local_size), few_cores(world.local_size)]
    else:
        lines.append(idle_gpus(config, len(data.splits["train"]), world.size))
    return [line for line in lines if line]


def few_steps(config: Config, rows: int, shape: Shape) -> str:
    """Note that the run is too short for the network, or that a batch is larger than the train split."""
    training, batch = config.training, config.data.batch_size
    if training.overfit_batches or training.init_from is not None:
        return ""  # the first repeats its batches, and the second does not start at chance
    epochs, needed = training.all_epochs - training.start_epoch, shape.epochs_needed(rows, batch)
    whats, remedies = [], []
    if batch > rows:
        whats.append(f"a batch of {number(batch)} holds all {counted(rows, 'training row')}, so an epoch is one step")
    if epochs < needed:
        steps = epochs * steps_per_epoch(rows, batch)
        few = "step is" if steps == 1 else "steps are"
        whats.append(
            f"{number(steps)} {few} few; {shape.title} need about {number(shape.least_steps)} to tell classes apart"
        )
        remedies.append(f"--epochs {training.start_epoch + needed}")
    smaller = min(rows // SMALLEST_BATCH, rows * epochs // shape.least_steps)
    if SMALLEST_BATCH <= smaller < batch:
        remedies.append(f"--batch-size {smaller}")
    elif batch > rows and not remedies:
        remedies.append(f"--batch-size {math.ceil(rows / SMALLEST_BATCH)}")
    return _note("; ".join(whats), f"{' or '.join(remedies)}, unless this is only a trial") if whats else ""


def empty_classes(data: Dataset, split: str) -> str:
    """Note that some classes have no row in a split."""
    targets = data.splits[split].targets
    counts = data.class_counts(split) if targets is None else targets.mass()
    names = [name for name, count in zip(data.classes, counts.tolist()) if not count]
    if not names:
        return ""
    shown = [cut(name, LABEL_CELLS) for name in first(names, SHOWN_CLASSES)]
    more = [f"{number(len(names) - len(shown))} more"] * (len(names) > len(shown))
    have = "has" if len(names) == 1 else "have"
    so = "cannot be learnt" if split == "train" else "is not measured" if len(names) == 1 else "are not measured"
    return _note(
        f"{counted(len(names), 'class', 'classes')} {have} no {split} row and {so}: {listed([*shown, *more])}",
        "collect such rows, or prepare again: --stratified gives each split rows of every class that has enough",
    )


def few_validation_rows(data: Dataset) -> str:
    """Note that the validation split is too small to choose an epoch by."""
    rows = len(data.splits.get("validation", ()))
    if not 0 < rows < FEW_VALIDATION_ROWS:
        return ""
    error = 50 / math.sqrt(rows)  # at an accuracy of 50 %
    return _note(
        f"{counted(rows, 'validation row')} {'is' if rows == 1 else 'are'} few to choose an epoch by: the accuracy on "
        f"them has a standard error of up to {number(math.ceil(error))} points",
        "prepare the data again with a larger --validation, or add rows",
    )


def unused_gpu(config: Config, shape: Shape) -> str:
    """Note that the CPU computes although there is a GPU."""
    if config.device != "auto" or not driver.count():
        return ""
    try:
        plan(config.model, Device("gpu"), shape)
    except UserError as error:
        return _note(f"the CPU computes: {error.what}; {error.why}", error.remedy)
    return ""


def little_memory(shape: Shape, processes: int) -> str:
    """Note that the parameters of all processes of this host may not fit into its free memory."""
    needed, free = processes * training_bytes(shape), machine.available_memory()
    if needed <= free:
        return ""
    several = f" of {processes} processes" if processes > 1 else ""
    return _note(
        f"the parameters{several} take about {size(needed)} in training, and {size(free)} of memory is free",
        ("start fewer processes, or " if processes > 1 else "") + shape.smaller,
    )


def few_cores(processes: int) -> str:
    """Note that more processes than cores were started on this host."""
    cores = machine.cores()
    if processes <= cores:
        return ""
    return _note(
        f"{processes} processes share {counted(cores, 'core')}",
        f"start at most {cores} on this machine, which is faster",
    )


def idle_gpus(config: Config, rows: int, gpus: int) -> str:
    """Note that the batch is too small for several GPUs."""
    batch, wanted = config.data.batch_size, DOCUMENTS_OF_GPU * gpus
    if gpus == 1 or batch >= wanted // 2 or wanted * FEW_STEPS_OF_EPOCH > rows:
        return ""
    rate = "" if config.optimizer.scale_with_batch else " --scale-with-batch true"
    return _note(
        f"a batch of {counted(batch, 'document')} is small for {gpus} GPUs: summing and updating all parameters takes "
        "longer than computing it",
        f"--batch-size {wanted}{rate}",
    )


def leaked_rows(init_from: str, data: Dataset) -> str:
    """Note that scored rows were training rows of the run ``init_from``, by hashes of their texts."""
    path = checkpoint.find(init_from).absolute()
    try:
        record = open_run(path.parent.parent, path)
    except UserError:  # parameters without a run: nothing is known about their data
        return ""
    if record.fingerprint == data.fingerprint:
        return ""
    scored = {split: rows for split, rows in data.splits.items() if split != "train"}
    try:
        counts = {split: int(record.seen(rows)["train"].sum()) for split, rows in scored.items()}
    except UserError as error:
        return _note(
            f"whether {excerpt(init_from)} was trained on rows that are scored here is unknown: {error.what}",
            SAME_SPLITS,
        )
    leaked = [
        f"{number(count)} of {counted(len(scored[split]), f'{split} row')}" for split, count in counts.items() if count
    ]
    if not leaked:
        return ""
    return _note(f"{excerpt(init_from)} was trained on {listed(leaked)}, so their scores are too high", SAME_SPLITS)


def _note(what: str, remedy: str) -> str:
    return f"note: {what}\n  do:  {remedy}"
