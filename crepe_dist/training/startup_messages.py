"""Description of a run, printed before its first step, and warnings about settings that make a run slow or useless."""

import os

from crepe_dist.cuda import driver
from crepe_dist.data.dataset import Dataset
from crepe_dist.distributed.device import Device
from crepe_dist.engines.engine import Engine
from crepe_dist.errors import UserError
from crepe_dist.formatting import excerpt, join_head, join_words, number, pluralize, truncate_to_width
from crepe_dist.model.backend import choose_backend
from crepe_dist.runs import checkpoint
from crepe_dist.runs.record import open_run
from crepe_dist.settings.config import Config
from crepe_dist.training.context import TrainContext, batch_schedule, max_batch_size

MAX_SHOWN_CLASSES = 10  # Maximum number of class names in a warning.
LABEL_WIDTH = 40  # Maximum width of a class name in a warning, in columns of the terminal.
MAX_SHOWN_HOSTS = 8  # Maximum number of host names in the line `training`.
SAME_SPLITS_HINT = "prepare both data sets from the same sources with the same --seed, --test and --validation"


def banner(context: TrainContext) -> str:
    """Return a few lines that describe the run."""
    config, data, shape, device = context.config, context.data, context.engine.config, context.engine.device
    if is_refit(data):
        documents = number(len(data.splits["train"]))
        return f"refit     the n-gram branch is trained on all {documents} rows of the train and validation splits"
    rows = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    processes, group = pluralize(context.group.size, "process", "processes"), context.group
    if group.size > 1:
        hosts = join_head(list(dict.fromkeys(group.host_names)), MAX_SHOWN_HOSTS)
        processes += f" on {pluralize(len(group.hosts), 'host')} ({hosts})"
    processes += f", {device}"
    if context.optimizer.reduce_backend:
        processes += f", gradients summed by {context.optimizer.reduce_backend}"
    if device.device_type == "cpu":
        processes += f", OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}"
    lines = [
        f"data      {data.name}: {rows} documents of {data.encoder.feature_len} characters, "
        f"{len(data.classes)} classes",
        f"network   {shape}; {shape.num_parameters:,} parameters",
        f"training  {'up to ' if config.training.patience else ''}"
        f"{pluralize(config.training.num_epochs, 'epoch')}, {_batch_sizes(config, data)}, "
        f"{config.optimizer.name} {config.optimizer.learning_rate:g}; {processes}",
        f"choice    {_choice(config, data)}",
        f"computes  in {context.engine.backend}",
    ]
    if context.engine.pretrained_summary:
        lines.insert(2, f"start     {context.engine.pretrained_summary}")
    return "\n".join(lines)


def is_refit(data: Dataset) -> bool:
    """Return whether this is the data set of a refit, whose train split includes the validation rows (``refit.py``)."""
    return "validation" in data.manifest["splits"] and "validation" not in data.splits


def _batch_sizes(config: Config, data: Dataset) -> str:
    smallest, largest = batch_schedule(config).size_after(0), max_batch_size(config, data)
    return f"batch {smallest}" if smallest == largest else f"batches of {smallest} to {number(largest)}"


def _choice(config: Config, data: Dataset) -> str:
    """Describe how the epoch is selected, and when training stops."""
    if "validation" not in data.splits:
        return "the last epoch, because there is no validation split to select by (prepare --validation 0.1)"
    patience = config.training.patience
    until = f", and ends training after {pluralize(patience, 'epoch')} without improvement" if patience else ""
    return f"the validation split selects the epoch{until}; the test split only measures it"


def startup_warnings(context: TrainContext) -> list[str]:
    """Return the warnings to print before the first step of a run. Every rank must call this function."""
    config, data, group = context.config, context.data, context.group
    if is_refit(data):
        return []  # The warnings were already printed before the refit.
    lines = [warn_empty_classes(data)]
    if config.training.init_from is not None:
        lines.append(group.run_on_rank0("leaks", lambda: warn_leaked_rows(str(config.training.init_from), data)) or "")
    lines += warn_unused_gpu(config, context.engine)
    return [line for line in lines if line]


def warn_empty_classes(data: Dataset) -> str:
    """Return a warning if some classes have no training rows, or "" otherwise."""
    counts = data.splits["train"].targets.class_mass()
    names = [name for name, count in zip(data.classes, counts.tolist()) if not count]
    if not names:
        return ""
    shown = join_head([truncate_to_width(name, LABEL_WIDTH) for name in names], MAX_SHOWN_CLASSES)
    return _format_note(
        "a class without training rows cannot be learned, and there is no row of "
        f"{pluralize(len(names), 'class', 'classes')}: {shown}",
        "collect such rows, or repeat prepare with another --seed",
    )


def warn_unused_gpu(config: Config, engine: Engine) -> list[str]:
    """Return a warning if the run trains on the CPU although there is a GPU.

    The warning is printed at the start and the end.
    """
    if config.device == "auto" and engine.device.device_type == "cpu" and (driver.gpu_count() or driver.init_error()):
        try:
            if error := driver.init_error():
                raise error
            choose_backend(config.model, Device("gpu"), engine.config)
        except UserError as error:
            name = driver.gpu_name(0) or "the GPU"
            reason = f"{error.what}\n  why: {error.why}\n  do:  {error.remedy}"
            return [f"warning: {name} is not used, the CPU computes: {reason}"]
    return []


def warn_leaked_rows(init_from: str, data: Dataset) -> str:
    """Return a warning if the run ``init_from`` was trained on rows of the validation or test split.

    The rows are identified by the hashes of their texts. If the data of that run can no longer be read, return a note
    that the overlap is unknown. Return "" if there is no overlap, or if ``init_from`` does not belong to a run.
    """
    path = checkpoint.resolve_model(init_from).absolute()
    try:
        record = open_run(path.parent.parent, path)
    except UserError:
        return ""  # The parameters do not belong to a run, so their training data are unknown.
    if record.fingerprint == data.fingerprint:
        return ""
    scored = {split: rows for split, rows in data.splits.items() if split != "train"}
    try:
        counts = {split: int(record.seen_in_training(rows)["train"].sum()) for split, rows in scored.items()}
    except UserError as error:
        return _format_note(
            f"it is unknown whether {excerpt(init_from)} was trained on rows of the test or validation split: "
            f"{error.what}",
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
