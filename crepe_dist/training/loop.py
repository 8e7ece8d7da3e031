"""The training loop."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from crepe_dist.data.dataset import Dataset
from crepe_dist.data.loader import Batch, batches, epoch_order
from crepe_dist.data.typos import with_typos
from crepe_dist.distributed.control import Control, Wish
from crepe_dist.distributed.watchdog import SHOWN_ROWS, Watchdog
from crepe_dist.distributed.world import World
from crepe_dist.errors import UserError
from crepe_dist.model import parameters
from crepe_dist.model.engine import Engine, no_mark
from crepe_dist.settings.config import Config
from crepe_dist.training import culprits, out_of_memory, state
from crepe_dist.training.display import Display, Speed, epoch_line
from crepe_dist.training.evaluation import Interrupted
from crepe_dist.training.metrics import Metrics, Record
from crepe_dist.training.not_learning import NotLearning
from crepe_dist.training.replicas import check_replicas
from crepe_dist.training.run_folder import RunFolder
from crepe_dist.training.schedule import learning_rate
from crepe_dist.training.scores import Scores
from crepe_dist.training.scoring import Scoring
from crepe_dist.training.state import Progress, Snapshot
from crepe_dist.training.state_saver import Saver
from crepe_dist.training.step import NotFinite, Outcome, TrainingStep
from crepe_dist.training.step_profile import Profile

SMOOTHING = 0.01  # of the moving average of the loss, the notebook's


@dataclass(frozen=True)
class Done:
    """A step that has not been recorded yet."""

    step: int
    documents: int
    learning_rate: float
    loss: float


class Regrouping(Exception):
    """The group is to change, and every rank goes on in the new one with what it has in memory."""


class Loop:
    """Trains a network on a data set; the same on every rank, rank 0 alone writes and shows.

    Args:
        folder: where rank 0 writes.
        engine: computes a network that is initialised, equal on every rank.
        control: what this process is asked for from outside.
        watchdog: told of each step.
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
        control: Control,
        watchdog: Watchdog,
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
        self.control = control
        self.watchdog = watchdog
        self.saver: Saver | None = None  # on rank 0, once it is known where the run begins
        self.train_part = dataset.parts["train"]
        self.trainer, self.exchange = world.trainer(
            parameters.trained(self.network), config.optimizer.name, config.optimizer.settings()
        )
        self.train_step = TrainingStep(
            engine, self.exchange, world.size, config.training.seed, config.optimizer.clip_norm
        )
        self.scoring = Scoring(config, dataset, world, folder, engine)
        self.profile = profile
        if profile is not None:
            self.train_step.mark = profile.mark
        self.progress = Progress(epoch=config.training.start_epoch)
        self.unrecorded: list[Done] = []
        self.recent: list[Record] = []  # of the steps since the last save, in case rank 0 is lost before it wrote them
        self.learning = NotLearning(
            engine.objective.of_ignorance(dataset.class_counts()), config, engine.network.shape.kind
        )
        self._flops = self.network.shape.training_operations()
        self._rows: list[int] = []
        self._waited = 0.0
        self._since = time.monotonic()
        self._compiled = False  # the first step compiles; it is recorded alone, so that no rate contains it
        watchdog.locate(self.where)

    def run(self) -> None:
        """Goes on from ``progress`` to the end of the run.

        Raises:
            Stopped: asked to stop; all is saved.
            Regrouping: asked to go on in another group.
        """
        while not self.progress.finished:
            with out_of_memory.watched("data.batch_size", self.config.data.batch_size, self.world.size):
                self.train_epoch()
            with out_of_memory.watched("evaluation.batch_size", self.config.evaluation.batch_size, self.world.size):
                scores = self.evaluate()
            self.finish_epoch(scores)
            self.save_state()
            if self.control.wish is Wish.GO_ON:  # else something else is in a hurry
                values = partial(parameters.values, self.network)
                self.metrics.pictures(self.progress.step, values, scores, self.dataset.classes)
        self.say_if(self.scoring.stopped_early(self.progress))
        self.say_if(self.learning.end(self.progress.step))
        self.close()

    def close(self) -> None:
        """Waits until all is written."""
        if self.saver is not None:
            self.saver.close()
        try:
            self.metrics.sync()
        except OSError as error:
            self.display.say(f"the last lines of the metrics could not be written: {error}")

    def train_epoch(self) -> None:
        self.display.begin_epoch(
            self.progress.epoch, self.config.training.epochs, len(self.train_part), self.progress.documents
        )
        self._start_clock()
        for batch in self.timed(self.batches()):
            outcome = self.train(batch)
            if self.is_time(self.config.logging.every) or not self._compiled:
                self.log()
                self._compiled = True
            self.obey(outcome.wish)
            if self.profile is not None and self.profile.finished:
                self.end_profile()
        self.log()
        self.end_profile()
        self.display.end_epoch()

    def obey(self, wish: Wish) -> None:
        """Does what the ranks agreed on after a step; every rank is here."""
        if wish in (Wish.SAVE, Wish.STOP):
            self.save_state()
        elif self.is_time(self.config.safety.digest_every):
            check_replicas(self.network, self.world)
        if wish is Wish.REGROUP:
            raise Regrouping
        if wish is Wish.STOP:
            self.stop()

    def stop(self) -> None:
        """Ends, once the state is on the disk."""
        stopped = self.control.stopped(on_all_ranks=True)
        if self.saver is not None:
            self.saver.wait()
            if self.saver.durable_step != self.progress.step:
                raise UserError(
                    f"the steps after step {self.saver.durable_step} could not be saved",
                    remedy="make room, and run the command again",
                )
            again = "the same command without --fresh" if self.config.fresh else "the same command"
            self.display.say(f"{stopped}: saved after step {self.progress.step}; {again} goes on from there")
        self.close()
        raise stopped

    def where(self) -> dict[str, Any]:
        """For the watchdog."""
        progress = self.progress
        rows = self._rows[:SHOWN_ROWS]
        return {"step": progress.step, "epoch": progress.epoch, "documents": progress.documents, "rows": rows}

    def batches(self) -> Any:
        seed, epoch = self.config.training.seed, self.progress.epoch
        order = epoch_order(len(self.train_part), seed, epoch)
        part = with_typos(self.train_part, self.config.data.typos, seed, epoch, self.dataset.encoding.letters)
        batch_size = self.config.data.batch_size
        return batches(part, order, batch_size, self.world.rank, self.world.size, self.progress.documents)

    def train(self, batch: Batch) -> Outcome:
        self.watchdog.beat("train")
        self._rows = batch.rows.tolist()
        rate, step = self.learning_rate(), self.progress.step + 1
        try:
            outcome = self.train_step(batch, step, rate, self.wish(step))
        except NotFinite as error:
            outcome = self.not_finite(error, batch, step)
        self.progress.step = step
        self.progress.documents += batch.documents
        if outcome.updated:
            self.count(Done(step, batch.documents, rate, outcome.loss))
        return outcome

    def wish(self, step: int) -> Wish:
        """Of this rank, for after that step."""
        due = self.saver is not None and self.saver.due(step)
        return max(self.control.wish, Wish.SAVE if due else Wish.GO_ON)

    def count(self, done: Done) -> None:
        loss, before = done.loss / done.documents, self.progress.moving_loss
        self.progress.moving_loss = loss if before is None else (1 - SMOOTHING) * before + SMOOTHING * loss
        self.progress.loss_sum += done.loss
        self.unrecorded.append(done)
        self.say_if(self.learning.look(done.step, loss))

    def say_if(self, line: str | None) -> None:
        if line is not None:
            self.display.say(line)

    def not_finite(self, error: NotFinite, batch: Batch, step: int) -> Outcome:
        """The step is left out, or the run ends; the same on every rank, and the parameters are those before."""
        start = self.progress.documents
        order = epoch_order(len(self.train_part), self.config.training.seed, self.progress.epoch)
        ranks = culprits.name(error.ranks, order, start, start + batch.documents, self.world.size)
        if self.config.safety.nonfinite == "skip":
            self.metrics.skipped({"step": step, "epoch": self.progress.epoch, "ranks": list(error.ranks)})
            self.display.say(f"step {step} is left out: loss or gradient are not finite on {ranks}")
            return error.outcome
        raise UserError(
            f"loss or gradient are not finite at step {step} on {ranks}: training diverged",
            "the learning rate is too large, in most cases; nothing of this step was kept",
            "lower optimizer.learning_rate, set optimizer.clip_norm to 1, or leave such steps out with "
            "--safety.nonfinite skip; the newest saved state is from before",
            on_all_ranks=True,
        )

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
        """Records and shows the steps since the last time."""
        seconds = time.monotonic() - self._since
        self.progress.seconds += seconds
        if self.unrecorded:
            documents = sum(each.documents for each in self.unrecorded)
            speed = Speed(
                documents=documents / seconds,
                milliseconds=1000 * seconds / len(self.unrecorded),
                waited=min(1.0, self._waited / seconds),
                flops=self._flops * documents / seconds,
            )
            records = [
                {
                    "step": each.step,
                    "epoch": self.progress.epoch,
                    "loss": each.loss / each.documents,
                    "learning_rate": each.learning_rate,
                    "documents_per_second": speed.documents,
                    "milliseconds": speed.milliseconds,
                    "wait_fraction": speed.waited,
                    "flops_per_second": speed.flops,
                }
                for each in self.unrecorded
            ]
            self.metrics.steps(records)
            self.recent += records
            self.display.update(self.progress.documents, self.progress.moving_loss or 0.0, speed)
            self.unrecorded = []
        self._start_clock()

    def evaluate(self) -> dict[str, Scores]:
        """``Scoring.evaluate``. Asked to do something else meanwhile, it never returns."""
        self.watchdog.beat("evaluate")
        try:
            return self.scoring.evaluate(lambda: self.control.wish)
        except Interrupted as interrupted:
            self.obey(interrupted.wish)
            raise

    def finish_epoch(self, scores: dict[str, Scores]) -> None:
        saved_step = self.saver.durable_step if self.saver is not None else None
        record = self.scoring.finish_epoch(self.progress, scores, saved_step)
        self.metrics.epoch(record)
        self.display.say(epoch_line(record))

    def save_state(self) -> None:
        """Rank 0 begins to write the state, which is the same on every rank. All ranks call it."""
        self.watchdog.beat("save")
        self.log()
        check_replicas(self.network, self.world)
        if self.saver is not None:
            try:
                self.metrics.sync()
                self.saver.save(self.snapshot())
            except OSError as error:
                self.saver.postpone(self.progress.step)
                self.display.say(f"the state of step {self.progress.step} could not be saved: {error}")
        self.recent = []
        self._start_clock()

    def snapshot(self) -> Snapshot:
        progress = replace(
            self.progress,
            epochs=list(self.progress.epochs),
            precision=self.engine.plan.precision,
            loss_scale=self.train_step.scale.state(),
        )
        return Snapshot(progress, parameters.values(self.network), state.optimizer_arrays(self.trainer))

    def restore(self, snapshot: Snapshot) -> None:
        """Goes on from a snapshot; every rank must be given the same."""
        parameters.set_values(self.network, snapshot.parameters)
        state.set_optimizer_arrays(self.trainer, snapshot.optimizer, self.engine.device)
        self.progress = replace(snapshot.progress, epochs=list(snapshot.progress.epochs))
        self.train_step.scale.restore(snapshot.progress.loss_scale)

    def _start_clock(self) -> None:
        self._waited = 0.0
        self._since = time.monotonic()
