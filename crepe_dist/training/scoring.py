"""What follows the steps of an epoch: its scores, its checkpoint and record, and whether another epoch follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crepe_dist.data.dataset import Dataset
from crepe_dist.distributed.control import Wish
from crepe_dist.distributed.world import World
from crepe_dist.errors import UserError
from crepe_dist.model import parameters
from crepe_dist.model.engine import Engine
from crepe_dist.settings.config import Config
from crepe_dist.training import checkpoint
from crepe_dist.training.evaluation import evaluate
from crepe_dist.training.run_folder import RunFolder
from crepe_dist.training.scores import Scores
from crepe_dist.training.state import Progress


class Scoring:
    """Scores the epochs of a run and chooses among them; every rank calls it, rank 0 alone writes."""

    def __init__(self, config: Config, dataset: Dataset, world: World, folder: RunFolder, engine: Engine) -> None:
        self.config = config
        self.dataset = dataset
        self.world = world
        self.folder = folder
        self.engine = engine

    @property
    def chosen_by(self) -> str:
        """How the reported epoch is found."""
        return "validation accuracy" if "validation" in self.dataset.parts else "last epoch"

    def evaluate(self, wish: Callable[[], Wish]) -> dict[str, Scores]:
        """Scores of the parts that are not trained on.

        Raises:
            Interrupted: on every rank, if ``wish`` became something else than GO_ON on one.
        """
        options = self.config.evaluation
        return {
            name: evaluate(self.engine, part, options.batch_size, self.world, sharded=options.sharded, wish=wish)
            for name, part in self.dataset.parts.items()
            if name != "train"
        }

    def finish_epoch(self, progress: Progress, scores: dict[str, Scores], saved_step: int | None) -> dict[str, Any]:
        """Writes the epoch's checkpoint, and moves ``progress`` on to the next epoch or to its end.

        Args:
            saved_step: what the run would go on from, if this failed; of rank 0.

        Returns:
            The epoch's record, as ``Metrics.epoch`` takes it.
        """
        record: dict[str, Any] = {
            "epoch": progress.epoch,
            "step": progress.step,
            "train_loss": progress.loss_sum / max(progress.documents, 1),
        }
        for name, score in scores.items():
            record[f"{name}_loss"] = score.loss
            record[f"{name}_accuracy"] = score.accuracy
            record[f"{name}_macro_f1"] = score.macro_f1
            record[f"{name}_calibration_error"] = score.calibration_error
        record["seconds"] = progress.seconds
        record["checkpoint"] = checkpoint.file_name(progress.epoch, record["test_accuracy"])
        # All or none have the epoch: a rank that goes on without rank 0 must not take it for written.
        self.world.agree("checkpoint", lambda: self._write(record, scores, saved_step) if self.world.is_root else None)
        progress.epochs.append(record)
        if self.world.is_root:
            checkpoint.prune(self.folder.path, self._kept(progress))
        progress.finished = progress.epoch + 1 >= self.config.training.epochs or self._is_out_of_patience(progress)
        if not progress.finished:
            progress.begin_epoch(progress.epoch + 1)
        return record

    def stopped_early(self, progress: Progress) -> str | None:
        """That patience ended the run, if it did."""
        if not self._is_out_of_patience(progress) or progress.epoch + 1 >= self.config.training.epochs:
            return None
        best = self._best(progress)
        return (
            f"stopped early: no better than epoch {best['epoch']} for {self.config.training.patience} epochs "
            f"(--training.patience); {self.config.training.epochs - 1 - progress.epoch} epochs are left out"
        )

    def reported(self, progress: Progress) -> dict[str, Any]:
        """The epoch that the run stands for: best on the validation part, else the last; the test part chooses none."""
        return self._best(progress) if "validation" in self.dataset.parts else progress.epochs[-1]

    def _write(self, record: dict[str, Any], scores: dict[str, Scores], saved_step: int | None) -> None:
        try:
            checkpoint.write(self.folder.path, parameters.values(self.engine.network), self._about(record), scores)
        except OSError as error:
            raise UserError(
                f"the checkpoint of epoch {record['epoch']} cannot be written",
                str(error),
                f"make room; the same command goes on from step {saved_step}, the newest that could be saved",
            ) from error

    def _best(self, progress: Progress) -> dict[str, Any]:
        """The epoch with the best validation accuracy, or without a validation part the best test accuracy."""
        key = "validation_accuracy" if "validation" in self.dataset.parts else "test_accuracy"
        return max(progress.epochs, key=lambda record: record[key])

    def _kept(self, progress: Progress) -> set[str]:
        last = progress.epochs[-self.config.checkpoint.keep_last :]
        return {record["checkpoint"] for record in [*last, self._best(progress)]}

    def _is_out_of_patience(self, progress: Progress) -> bool:
        patience = self.config.training.patience
        epochs = progress.epochs
        return 0 < patience <= len(epochs) - 1 - epochs.index(self._best(progress))

    def _about(self, record: dict[str, Any]) -> dict[str, Any]:
        return {
            "epoch": record["epoch"],
            "test_accuracy": record["test_accuracy"],
            "metrics": record,
            "encoding": self.dataset.encoding.to_dict(),
            "classes": self.dataset.classes,
            "network": {**self.engine.network.shape.settings(), "precision": self.config.model.precision},
            "data": {
                "name": self.dataset.name,
                "fingerprint": self.dataset.fingerprint,
                "test": self.dataset.documents("test"),
            },
        }
