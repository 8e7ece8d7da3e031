"""Objects that make up a run, shared by the recipe and its guards, and the functions that draw its pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from crepe_dist.data.batch import Batch
from crepe_dist.data.dataset import Dataset
from crepe_dist.data.loader import batches, training_order
from crepe_dist.data.typos import with_typos
from crepe_dist.distributed.world import World
from crepe_dist.engines.engine import Engine
from crepe_dist.machine import describe
from crepe_dist.runs.metrics import DrawConfusion, Metrics
from crepe_dist.runs.run_folder import RunFolder
from crepe_dist.runs.state import Progress
from crepe_dist.settings.config import Config
from crepe_dist.training.display import Display
from crepe_dist.training.step import TrainingStep


@dataclass(frozen=True)
class Run:
    """Training of a network on one rank.

    Attributes:
        step: the training step, which synchronises the ranks.
        progress: current position of the run, the same on every rank.
        display: terminal output; does nothing on ranks other than 0.
        metrics: metrics files; does nothing on ranks other than 0.
    """

    config: Config
    world: World
    data: Dataset
    step: TrainingStep
    progress: Progress
    folder: RunFolder
    display: Display
    metrics: Metrics

    @classmethod
    def opened(
        cls,
        config: Config,
        world: World,
        data: Dataset,
        engine: Engine,
        folder: RunFolder,
        display: Display,
        metrics: Metrics,
    ) -> Run:
        """Open the exchange of the gradients, and make a run at its start; every rank calls it."""
        exchange = engine.open_exchange(world, config.optimizer, config.data.batch_size)
        step = TrainingStep(engine, exchange, config.training.seed, config.optimizer.clip_norm)
        progress = Progress(epoch=config.training.start_epoch + 1)
        return cls(config, world, data, step, progress, folder, display, metrics)

    @property
    def engine(self) -> Engine:
        return self.step.engine

    def epoch_batches(self) -> Iterator[Batch]:
        """Yield this rank's share of each remaining global batch of the epoch."""
        seed, epoch = self.config.training.seed, self.progress.epoch - 1
        train = self.data.splits["train"].of_epoch(seed, epoch)
        train = with_typos(train, self.config.data.typos, seed, epoch, self.data.encoding)
        size, world = self.config.data.batch_size, self.world
        order = training_order(train, seed, epoch, size)
        start, prepare = self.progress.documents, self.engine.preparing(seed, self.progress.step)
        return batches(train, order, size, world.rank, world.size, start, prepare, self.engine.group_size)

    def computed(self) -> dict[str, str]:
        """Describe what besides data, configuration and seed decides the bits of the parameters."""
        return {**self.engine.plan.result(), "device": str(self.engine.device)}

    def provenance(self) -> dict[str, Any]:
        """Describe of what the run was made, for its report."""
        return {
            "processes": self.world.size,
            "device": str(self.engine.device),
            "computes": str(self.engine.plan),
            "parameters": self.engine.shape.parameters,
            "environment": describe(),
            "data": str(self.data.folder),
            "rows": {name: self.data.class_counts(name).tolist() for name in self.data.splits},
            "documents": {name: len(split) for name, split in self.data.splits.items()},
        }


@dataclass(frozen=True)
class Pages:
    """Functions of the reports, which training may not import; ``None`` for those that are not wanted.

    Attributes:
        data: returns the report page of a data set, given its figures.
        confusion: draws a confusion matrix for TensorBoard.
        report: writes the report of a finished run and prints findings; yields every few seconds.
    """

    data: Callable[[dict[str, Any]], str] | None = None
    confusion: DrawConfusion | None = None
    report: Callable[[RunFolder, Dataset, Callable[[str], None]], Iterator[None]] | None = None
