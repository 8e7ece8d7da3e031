"""Lines that describe a run before its first step, and notes on settings that would waste it."""

from __future__ import annotations

import os

from crepe_dist import hardware
from crepe_dist.cuda import driver
from crepe_dist.data.dataset import Dataset
from crepe_dist.distributed.device import Device
from crepe_dist.engines.engine import Engine
from crepe_dist.errors import UserError
from crepe_dist.formatting import excerpt, head, join_words, number, pluralize, truncate_to_width
from crepe_dist.model.backend import choose_backend
from crepe_dist.model.network_config import NetworkConfig, steps_per_epoch
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_dir import open_run
from crepe_dist.settings.config import Config
from crepe_dist.training.context import TrainContext

MAX_SHOWN_CLASSES = 10
LABEL_CELLS = 40  # width of a class name in a note
MIN_SHARD_SIZE, MAX_ADVISED_BATCH_SIZE = 8, 1024  # documents of a process in a step; the largest batch advised
SAME_SPLITS_HINT = "prepare both data sets from the same sources with the same --seed, --test and --validation"


def banner(context: TrainContext) -> str:
    """Describe a run in a few lines."""
    config, data, shape, device = context.config, context.data, context.engine.config, context.engine.device
    if is_refit(data):
        documents = number(len(data.splits["train"]))
        return f"refit     the n-gram table learns from all {documents} rows of the train and the validation split"
    rows = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    processes = f"{pluralize(context.group.size, 'process', 'processes')}, {device}"
    if context.optimizer.reduce_backend:
        processes += f", gradients summed by {context.optimizer.reduce_backend}"
    if device.device_type == "cpu":
        processes += f", OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}"
    lines = [
        f"data      {data.name}: {rows} documents of {data.encoder.feature_len} characters, "
        f"{len(data.classes)} classes",
        f"network   {shape}; {shape.num_parameters:,} parameters",
        f"training  {'up to ' if config.training.patience else ''}"
        f"{pluralize(config.training.num_epochs, 'epoch')}, batch {config.data.batch_size}, "
        f"{config.optimizer.name} {config.optimizer.learning_rate:g}; {processes}",
        f"choice    {_choice(config, data)}",
        f"computes  in {context.engine.backend}",
    ]
    if context.engine.pretrained_summary:
        lines.insert(2, f"start     {context.engine.pretrained_summary}")
    return "\n".join(lines)


def is_refit(data: Dataset) -> bool:
    """Return whether the run learns from the rows of the validation split, after its choices."""
    return "validation" in data.manifest["splits"] and "validation" not in data.splits


def _choice(config: Config, data: Dataset) -> str:
    """Describe which split chooses the epoch, and the end of the training."""
    if "validation" not in data.splits:
        return "the last epoch, as there is no validation split to choose by (prepare --validation 0.1)"
    patience = config.training.patience
    until = f", and ends training after {pluralize(patience, 'epoch')} without improvement" if patience else ""
    return f"the validation split chooses the epoch{until}; the test split only measures it"


def startup_warnings(context: TrainContext) -> list[str]:
    """Return the notes about a run, before its first step; every rank calls it."""
    config, data, shape, world = context.config, context.data, context.engine.config, context.group
    rows = len(data.splits["train"])
    if is_refit(data):
        return []  # the run before has said them
    is_on_cpu = context.engine.device.device_type == "cpu"
    # Of two notes on too many processes, that on cores counts: a larger batch would not make them fewer.
    crowded = (is_on_cpu and warn_few_cores(world.local_size)) or warn_small_shards(config, world.size)
    lines = [warn_few_steps(config, rows, shape), crowded, warn_empty_classes(data)]
    if config.training.init_from is not None:
        lines.append(world.run_on_rank0("leaks", lambda: warn_leaked_rows(str(config.training.init_from), data)) or "")
    lines += warn_unused_gpu(config, context.engine)
    return [line for line in lines if line]


def warn_few_steps(config: Config, rows: int, shape: NetworkConfig) -> str:
    """Note that the run has fewer steps than the network usually needs."""
    training, batch = config.training, config.data.batch_size
    if training.init_from is not None:
        return ""  # it does not start at chance
    epochs, needed = training.num_epochs, shape.epochs_needed(rows, batch)
    if epochs >= needed:
        return ""
    return _format_note(
        f"{pluralize(epochs * steps_per_epoch(rows, batch), 'step')} may be too few: {shape.title} need about "
        f"{number(shape.min_useful_steps)} to tell classes apart",
        f"--epochs {needed}, unless this is only a trial",
    )


def warn_small_shards(config: Config, processes: int) -> str:
    """Note that processes are too many for the batch."""
    batch, better = config.data.batch_size, min(MIN_SHARD_SIZE * processes, MAX_ADVISED_BATCH_SIZE)
    if processes == 1 or batch >= better:
        return ""
    return _format_note(
        f"{processes} processes share a batch of {batch}, and wait for each other longer than they compute",
        f"--batch-size {better}, which changes the result: docs/how-to/many-hosts.md says by how much",
    )


def warn_empty_classes(data: Dataset) -> str:
    """Note that some classes have no training row."""
    counts = data.splits["train"].targets.class_mass()
    names = [name for name, count in zip(data.classes, counts.tolist()) if not count]
    if not names:
        return ""
    shown = [truncate_to_width(name, LABEL_CELLS) for name in head(names, MAX_SHOWN_CLASSES)]
    more = [f"{number(len(names) - len(shown))} more"] * (len(names) > len(shown))
    return _format_note(
        f"there is no train row, and so nothing to learn, of {pluralize(len(names), 'class', 'classes')}: "
        f"{join_words([*shown, *more])}",
        "collect such rows, or prepare again: --stratified gives each split rows of every class that has enough",
    )


def warn_unused_gpu(config: Config, engine: Engine) -> list[str]:
    """Warn that the CPU computes although there is a GPU, at the start and the end of a run."""
    if config.device == "auto" and engine.device.device_type == "cpu" and (driver.gpu_count() or driver.init_error()):
        try:
            if error := driver.init_error():
                raise error
            choose_backend(config.model, Device("gpu"), engine.config)
        except UserError as error:
            name = driver.gpu_name(0) or "the GPU"
            because = f"{error.what}\n  why: {error.why}\n  do:  {error.remedy}"
            return [f"warning: {name} is not used, the CPU computes: {because}"]
    return []


def warn_few_cores(processes: int) -> str:
    """Note that more processes than cores were started on this host."""
    cores = hardware.num_cores()
    if processes <= cores:
        return ""
    return _format_note(
        f"{processes} processes share {pluralize(cores, 'core')}",
        f"start at most {cores} on this machine, which is faster",
    )


def warn_leaked_rows(init_from: str, data: Dataset) -> str:
    """Note that scored rows were training rows of the run ``init_from``, by hashes of their texts."""
    path = checkpoint.resolve_model(init_from).absolute()
    try:
        record = open_run(path.parent.parent, path)
    except UserError:  # parameters without a run: nothing is known about their data
        return ""
    if record.fingerprint == data.fingerprint:
        return ""
    scored = {split: rows for split, rows in data.splits.items() if split != "train"}
    try:
        counts = {split: int(record.seen_in_training(rows)["train"].sum()) for split, rows in scored.items()}
    except UserError as error:
        return _format_note(
            f"whether {excerpt(init_from)} was trained on rows that are scored here is unknown: {error.what}",
            SAME_SPLITS_HINT,
        )
    leaked = [
        f"{number(count)} of {pluralize(len(scored[split]), f'{split} row')}"
        for split, count in counts.items()
        if count
    ]
    if not leaked:
        return ""
    return _format_note(
        f"{excerpt(init_from)} was trained on {join_words(leaked)}, so their scores are too high", SAME_SPLITS_HINT
    )


def _format_note(what: str, remedy: str) -> str:
    return f"note: {what}\n  do:  {remedy}"
