"""Objects that a rank needs for a training job and for each of its networks; and the learning-rate schedules."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from crepe_dist import network_registry
from crepe_dist.data.augmentation import with_case_noise, with_typos
from crepe_dist.data.batch import Batch
from crepe_dist.data.batch_schedule import BatchSchedule
from crepe_dist.data.dataset import Dataset
from crepe_dist.data.loader import DataLoader, max_shard_size, training_order
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.distributed.signals import SignalHandler
from crepe_dist.distributed.watchdog import Watchdog
from crepe_dist.engines.engine import Engine
from crepe_dist.hardware import describe
from crepe_dist.parallel.distributed_optimizer import DistributedOptimizer
from crepe_dist.runs.metrics import MetricsLogger
from crepe_dist.runs.resume_state import TrainerState
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.runs.trackers import TensorBoard
from crepe_dist.settings.config import Config
from crepe_dist.settings.options import OptimizerOptions
from crepe_dist.training.display import ProgressDisplay
from crepe_dist.training.model_selection import ModelSelection

# Fraction of the training texts that are read as if they were typed in lower case or in capitals. It has an effect only
# on data prepared with --mode marked.
CASE_NOISE = 0.2
# Constants of the learning-rate schedule ``halving``, which comes from section 3.3 of the paper.
HALVING_EPOCHS = 3  # Number of epochs between two halvings of the learning rate.
MAX_HALVINGS = 10  # Maximum number of halvings in a run.


@dataclass(frozen=True)
class JobContext:
    """Objects of this rank that are shared by all networks of a training job.

    Attributes:
        group: Process group of the training job.
        signals: Handler of the signals that request a stop.
        watchdog: Thread that reports when training hangs.
        display: Output on the terminal. It shows nothing on ranks other than 0.
        trackers: Trackers of the run on rank 0.
    """

    group: ProcessGroup
    signals: SignalHandler
    watchdog: Watchdog
    display: ProgressDisplay
    trackers: Sequence[TensorBoard] = ()


@dataclass(frozen=True)
class TrainContext:
    """Everything that the training of one network needs on this rank.

    Attributes:
        engine: Engine that computes the network and its gradients.
        optimizer: Distributed optimizer, which sums the gradients over the ranks and updates the parameters.
        progress: Current position of the run. It is the same on every rank, except for ``seconds``, which each rank
            measures with its own clock.
        selection: Rule that selects the reported epoch and stops training early.
        run_dir: Directory of the network: the run's directory, or the subdirectory ``supervised/`` or ``refit/``.
        metrics: Writer of the metrics files. It writes nothing on ranks other than 0.
        job: Objects that are shared with the other networks of the job.
    """

    config: Config
    data: Dataset
    engine: Engine
    optimizer: DistributedOptimizer
    progress: TrainerState
    selection: ModelSelection
    run_dir: RunDir
    metrics: MetricsLogger
    job: JobContext

    @classmethod
    def create(
        cls,
        config: Config,
        data: Dataset,
        engine: Engine,
        run_dir: RunDir,
        job: JobContext,
        last_epoch: int | None = None,
    ) -> "TrainContext":
        """Create the optimizer and the metrics files of a run that has not started.

        Every rank must call this method.

        Args:
            last_epoch: See ``train_loop.run_epochs``.
        """
        group = job.group
        group.run_on_rank0("folder", lambda: run_dir.path.mkdir(exist_ok=True))
        metrics = MetricsLogger(run_dir.path, is_root=group.is_root)
        max_documents = max_shard_size(max_batch_size(config, data), group.size, engine.reduction_group)
        optimizer = engine.create_optimizer(group, config.optimizer, max_documents)
        selection = ModelSelection.for_data(config, data, last_epoch or config.training.num_epochs)
        return cls(config, data, engine, optimizer, TrainerState(), selection, run_dir, metrics, job)

    @property
    def group(self) -> ProcessGroup:
        return self.job.group

    @property
    def display(self) -> ProgressDisplay:
        return self.job.display

    def epoch_batches(self) -> Iterator[Batch]:
        """Yield this rank's shard of each remaining global batch of the epoch."""
        seed, epoch = self.config.training.seed, self.progress.epoch - 1
        train = self.data.splits["train"].for_epoch(seed, epoch)
        train = with_case_noise(train, CASE_NOISE, seed, epoch, self.data.encoder)
        train = with_typos(train, self.config.data.typos, seed, epoch, self.data.encoder)
        schedule, group = batch_schedule(self.config), self.group
        order = training_order(train, seed, epoch, schedule)
        ranges = schedule.ranges(len(train), epoch, self.progress.documents)
        batches = DataLoader(train, order, ranges, group.rank, group.size, self.engine.reduction_group)
        for step, batch in enumerate(batches, self.progress.step + 1):
            yield batch.for_step(step, seed)

    def numerics(self) -> dict[str, str]:
        """Return the kernels, precision and device.

        With native kernels, runs are bit-identical if these values, the settings and the data are equal.
        """
        return {**self.engine.backend.as_settings(), "device": str(self.engine.device)}

    def provenance(self) -> dict[str, Any]:
        """Return the provenance of the run for its report: data, number of processes, device and environment."""
        return {
            "processes": self.group.size,
            "device": str(self.engine.device),
            "computes": str(self.engine.backend),
            "parameters": self.engine.config.num_parameters,
            "environment": describe(),
            "data": str(self.data.folder),
            "rows": {name: self.data.class_counts(name).tolist() for name in self.data.splits},
            "documents": {name: len(split) for name, split in self.data.splits.items()},
        }


def batch_schedule(config: Config) -> BatchSchedule:
    """Return the sizes of the global batches of a run."""
    return BatchSchedule(config.data.batch_size, network_registry.config_class(config.model.network).batch_growth)


def max_batch_size(config: Config, data: Dataset) -> int:
    """Return the size of the largest global batch of a run."""
    return batch_schedule(config).size_after(config.training.num_epochs * len(data.splits["train"]))


def next_lr(config: Config, progress: TrainerState, num_rows: int) -> float:
    """Compute the learning rate of the next step.

    Args:
        num_rows: Number of documents per epoch.
    """
    return lr_at(config.optimizer, progress.epoch - 1 + progress.documents / num_rows, config.training.num_epochs)


def lr_at(options: OptimizerOptions, epoch: float, num_epochs: int) -> float:
    """Compute the learning rate at one point in training.

    Args:
        epoch: Number of epochs since training started. It need not be an integer.
        num_epochs: Total number of epochs.
    """
    peak = options.learning_rate
    if options.schedule == "halving":
        return peak * 0.5 ** min(int(epoch / HALVING_EPOCHS), MAX_HALVINGS)
    if options.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * min(epoch / num_epochs, 1.0)))
    return peak
