"""The training loop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import mxnet as mx
import numpy as np

from crepe_dist.cluster.world import World
from crepe_dist.config import Config
from crepe_dist.data.dataset import Dataset
from crepe_dist.data.loader import Batch, batches, epoch_order
from crepe_dist.errors import UserError
from crepe_dist.model import flops, parameters
from crepe_dist.model.engine import Engine, no_mark
from crepe_dist.training import checkpoint, state
from crepe_dist.training.display import Display, Speed
from crepe_dist.training.evaluation import Scores, evaluate
from crepe_dist.training.metrics import Metrics
from crepe_dist.training.profile import Profile
from crepe_dist.training.run_folder import RunFolder
from crepe_dist.training.schedule import learning_rate
from crepe_dist.training.state import Progress
from crepe_dist.training.step import TrainingStep

SMOOTHING = 0.01  # of the moving average of the loss, the notebook's


@dataclass
class _Pending:
    """A step whose loss has not been looked at yet."""

    step: int
    documents: int
    learning_rate: float
    loss: mx.nd.NDArray


class Loop:
    """Trains a network on a data set; the same on every rank, rank 0 alone writes and shows.

    Args:
        folder: where rank 0 writes.
        engine: computes a network that is initialised, equal on every rank.
        profile: of the first steps, if one is wanted.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        world: World,
        folder: RunFolder,
        engine: Engine,
        metrics: Metrics,
        display: Display,
        profile: Profile | None = None,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.world = world
        self.folder = folder
        self.engine = engine
        self.network = engine.network
        self.metrics = metrics
        self.display = display
        self.train_part = dataset.parts["train"]
        self.trainer = world.trainer(self.network.collect_params(), config.optimizer.name, config.optimizer.settings())
        self.train_step = TrainingStep(
            engine, self.trainer, world.size, config.training.seed, config.optimizer.clip_norm
        )
        self.profile = profile
        if profile is not None:
            self.train_step.mark = profile.mark
        self.progress = Progress(epoch=config.training.start_epoch)
        self._flops = flops.training(self.network.shape)
        self._pending: list[_Pending] = []
        self._waited = 0.0
        self._since = time.monotonic()
        self._compiled = False  # the first step compiles; it is looked at alone, so that no rate contains it

    def run(self) -> None:
        """Goes on from ``progress`` to the end of the run."""
        while not self.progress.finished:
            self.train_epoch()
            scores = self.evaluate()
            self.finish_epoch(scores)
            self.save_state()
        self.metrics.close()

    def train_epoch(self) -> None:
        self.display.begin_epoch(
            self.progress.epoch, self.config.training.epochs, len(self.train_part), self.progress.documents
        )
        self._start_clock()
        for batch in self.timed(self.batches()):
            self.train(batch)
            if self.is_time(self.config.logging.every) or not self._compiled:
                self.log()
                self._compiled = True
            if self.is_time(self.config.checkpoint.every):
                self.log()
                self.save_state()
            if self.profile is not None and self.profile.finished:
                self.end_profile()
        self.log()
        self.end_profile()
        self.display.end_epoch()
        self.save_state()

    def batches(self) -> Any:
        order = epoch_order(len(self.train_part), self.config.training.seed, self.progress.epoch)
        batch_size = self.config.data.batch_size
        return batches(self.train_part, order, batch_size, self.world.rank, self.world.size, self.progress.documents)

    def train(self, batch: Batch) -> None:
        rate = self.learning_rate()
        loss = self.train_step(batch, self.progress.step, rate)
        self.progress.step += 1
        self.progress.documents += batch.documents
        self._pending.append(_Pending(self.progress.step, batch.documents, rate, loss))

    def learning_rate(self) -> float:
        first = self.config.training.start_epoch
        epoch = self.progress.epoch - first + self.progress.documents / len(self.train_part)
        return learning_rate(
            self.config.optimizer, epoch, self.config.training.epochs - first, self.config.data.batch_size
        )

    def is_time(self, every: int) -> bool:
        return self.progress.step % every == 0

    def timed(self, items: Any) -> Any:
        """The items; the time spent waiting for them is counted."""
        iterator = iter(items)
        while True:
            self.train_step.mark("other")
            asked = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._waited += time.monotonic() - asked
            self.train_step.mark("data wait")
            yield item
            del item  # to free it is not waiting

    def end_profile(self) -> None:
        """Shows the profile, if one was wanted and is not shown yet, and goes on without."""
        if self.profile is not None and self.profile.steps:
            self.display.say(self.profile.report(self.config.data.batch_size))
            self._start_clock()
        self.profile = None
        self.train_step.mark = no_mark

    def log(self) -> None:
        """Looks at the losses since the last look: one wait for the device, one sum over the ranks."""
        if not self._pending:
            return
        own = mx.nd.concat(*[each.loss.reshape(1) for each in self._pending], dim=0).asnumpy()
        sums = self.world.sum(own.astype(np.float64), "loss")
        self._check_finite(sums)
        seconds = time.monotonic() - self._since
        speed = Speed(
            documents=sum(each.documents for each in self._pending) / seconds,
            milliseconds=1000 * seconds / len(self._pending),
            waited=min(1.0, self._waited / seconds),
            flops=self._flops * sum(each.documents for each in self._pending) / seconds,
        )
        records = []
        for each, loss_sum in zip(self._pending, sums.tolist()):
            loss = loss_sum / each.documents
            before = self.progress.moving_loss
            self.progress.moving_loss = loss if before is None else (1 - SMOOTHING) * before + SMOOTHING * loss
            self.progress.loss_sum += loss_sum
            records.append(
                {
                    "step": each.step,
                    "epoch": self.progress.epoch,
                    "loss": loss,
                    "learning_rate": each.learning_rate,
                    "documents_per_second": speed.documents,
                    "milliseconds": speed.milliseconds,
                    "wait_fraction": speed.waited,
                    "flops_per_second": speed.flops,
                }
            )
        self.progress.seconds += seconds
        self.metrics.steps(records)
        self.display.update(self.progress.documents, self.progress.moving_loss or 0.0, speed)
        self._start_clock()

    def _check_finite(self, sums: np.ndarray) -> None:
        """The sums are those of all ranks, so all stop together, and nothing was saved since the last good look."""
        bad = np.flatnonzero(~np.isfinite(sums))
        if len(bad):
            raise UserError(
                f"the loss is {sums[bad[0]]} at step {self._pending[bad[0]].step}: training diverged",
                "the learning rate is too large, in most cases",
                "lower optimizer.learning_rate, or set optimizer.clip_norm to 1",
                on_all_ranks=True,
            )

    def evaluate(self) -> dict[str, Scores]:
        options = self.config.evaluation
        return {
            name: evaluate(self.engine, part, options.batch_size, self.world, sharded=options.sharded)
            for name, part in self.dataset.parts.items()
            if name != "train"
        }

    def finish_epoch(self, scores: dict[str, Scores]) -> None:
        """Writes the epoch's checkpoint and record, and decides whether another epoch follows."""
        progress = self.progress
        record: dict[str, Any] = {
            "epoch": progress.epoch,
            "step": progress.step,
            "train_loss": progress.loss_sum / max(progress.documents, 1),
        }
        for name, score in scores.items():
            record[f"{name}_loss"] = score.loss
            record[f"{name}_accuracy"] = score.accuracy
        record["seconds"] = progress.seconds
        record["checkpoint"] = checkpoint.file_name(progress.epoch, record["test_accuracy"])
        progress.epochs.append(record)
        if self.world.is_root:
            checkpoint.write(self.folder.path, parameters.values(self.network), self.about(record))
            checkpoint.prune(self.folder.path, self.kept())
        self.metrics.epoch(record)
        self.display.say(_line(record))
        progress.finished = progress.epoch + 1 >= self.config.training.epochs or self.is_out_of_patience()
        if not progress.finished:
            progress.begin_epoch(progress.epoch + 1)

    def best(self) -> dict[str, Any]:
        """The epoch with the best validation accuracy, or without a validation part the best test accuracy."""
        key = "validation_accuracy" if "validation" in self.dataset.parts else "test_accuracy"
        return max(self.progress.epochs, key=lambda record: record[key])

    def reported(self) -> dict[str, Any]:
        """The epoch that the run stands for: best on the validation part, else the last; the test part chooses none."""
        return self.best() if "validation" in self.dataset.parts else self.progress.epochs[-1]

    def kept(self) -> set[str]:
        last = self.progress.epochs[-self.config.checkpoint.keep_last :]
        return {record["checkpoint"] for record in [*last, self.best()]}

    def is_out_of_patience(self) -> bool:
        patience = self.config.training.patience
        epochs = self.progress.epochs
        return 0 < patience <= len(epochs) - 1 - epochs.index(self.best())

    def about(self, record: dict[str, Any]) -> dict[str, Any]:
        shape = self.network.shape
        return {
            "epoch": record["epoch"],
            "test_accuracy": record["test_accuracy"],
            "metrics": record,
            "encoding": self.dataset.encoding.to_dict(),
            "classes": self.dataset.classes,
            "network": {
                "filters": shape.filters,
                "units": shape.units,
                "dropout": shape.dropout,
                "precision": self.config.model.precision,
            },
            "data": {"name": self.dataset.name, "fingerprint": self.dataset.fingerprint},
        }

    def save_state(self) -> None:
        if not self.world.is_root:
            return
        self.metrics.sync()
        self.progress.precision = self.engine.plan.precision
        state.save(
            self.folder.state, self.progress, parameters.values(self.network), state.optimizer_arrays(self.trainer)
        )
        self._start_clock()

    def restore(self, progress: Progress, values: state.Arrays, optimizer: state.Arrays) -> None:
        """Goes on from a saved state; every rank must be given the same."""
        parameters.set_values(self.network, values)
        state.set_optimizer_arrays(self.trainer, optimizer, self.engine.device)
        self.progress = progress

    def _start_clock(self) -> None:
        self._pending = []
        self._waited = 0.0
        self._since = time.monotonic()


def _line(record: dict[str, Any]) -> str:
    scores = "".join(
        f"  {name} {record[f'{name}_accuracy']:.2%} (loss {record[f'{name}_loss']:.4f})"
        for name in ("validation", "test")
        if f"{name}_accuracy" in record
    )
    return f"epoch {record['epoch']}: train loss {record['train_loss']:.4f}{scores}  {record['seconds']:.0f} s"
