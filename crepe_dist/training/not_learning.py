"""Warning for a loss that stays at chance, with the settings that usually help."""

from __future__ import annotations

from collections import deque

from crepe_dist import invocation
from crepe_dist.data.dataset import Dataset, folder_of
from crepe_dist.engines.engine import Engine
from crepe_dist.settings.config import Config

WINDOW = 100  # steps over which the loss is averaged
STEPS = 500  # steps before the first warning; see docs/decisions for how long healthy runs stay at chance
MARGIN = 0.02  # fraction of the loss at chance that counts as noise


class NotLearning:
    """Check of the losses that warns when they stay at chance, and reports when they drop after a warning.

    Args:
        guess: mean loss at chance, in nats (``Objective.chance_loss``).
        config: settings that shape the advice.
        has_plateau: value of ``Shape.has_plateau``.
        needed: epochs that the network usually needs (``Shape.epochs_needed``).
    """

    def __init__(self, guess: float, config: Config, has_plateau: bool = True, needed: int = 0) -> None:
        self._guess = guess
        self._config = config
        self._has_plateau = has_plateau
        self._needed = needed
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._warned = False

    @classmethod
    def of(cls, config: Config, data: Dataset, engine: Engine) -> NotLearning:
        """Make the check of a run on ``data``."""
        part, shape = data.splits["train"], engine.shape
        mass = data.class_counts() if part.targets is None else part.targets.mass()
        guess = engine.objective.chance_loss(mass, len(part))
        needed = shape.epochs_needed(len(part), config.data.batch_size)
        return cls(guess, config, shape.has_plateau, needed)

    def look(self, step: int, loss: float) -> str | None:
        """Record the loss of a step; return a message if there is news.

        Args:
            step: number of the step, counted from 1.
            loss: mean loss of the step's documents, in nats.
        """
        self._losses.append(loss)
        if self._warned:
            if not self._is_stuck():
                self._warned = False
                return f"step {step}: the loss is below chance now; the network has started to learn"
        elif step % STEPS == 0 and len(self._losses) == WINDOW and self._is_stuck():
            self._warned = True
            return self.advice(step)
        return None

    def end(self, step: int) -> str | None:
        """Return the warning at the end of a run that was too short for an earlier one."""
        if self._warned or not self._losses or not self._is_stuck():
            return None
        return self.advice(step)

    def _is_stuck(self) -> bool:
        return self._mean() > (1 - MARGIN) * self._guess

    def _mean(self) -> float:
        return sum(self._losses) / len(self._losses)

    def advice(self, step: int) -> str:
        """Describe the symptom and the remedies, the likeliest first."""
        model, optimizer, training = self._config.model, self._config.optimizer, self._config.training
        convolutions = self._has_plateau
        diverged = self._mean() > 1.2 * self._guess
        tries = []
        if diverged or (optimizer.name == "adam" and optimizer.learning_rate > 0.002):
            tries.append(f"lower the learning rate: --learning-rate {optimizer.learning_rate / 10:g}")
        if optimizer.name != "adam":
            tries.append(
                ("use Adam, which leaves this plateau sooner" if convolutions else "use Adam, which suits rare n-grams")
                + ": --optimizer adam --learning-rate 0.001"
            )
        if convolutions and model.initialisation == "paper":
            tries.append("start from larger weights: --initialisation xavier")
        if optimizer.clip_norm is None and diverged:
            tries.append("clip the gradients: --clip-norm 1")
        if convolutions and (model.dropout or 0) > 0.5:
            tries.append("reduce the dropout: --dropout 0.5")
        if training.overfit_batches == 0:
            tries.append(
                "test whether it can memorise two batches: --overfit-batches 2; if not, check that texts and labels "
                f"match: {invocation.typed('evaluate')} RUN --split train shows documents with their labels"
            )
        epochs = max(2 * training.all_epochs, self._needed)
        if convolutions:
            tries.append(f"train longer: with few or difficult data this takes a thousand steps; --epochs {epochs}")
        else:  # n-grams have no plateau
            page = folder_of(self._config.data.source) / "report.html"
            tries += [
                f"learn an alphabet, if {page} has unknown characters: prepare --alphabet auto",
                f"train longer, if these were few steps: --epochs {epochs}",
            ]
        lines = "\n".join(f"  do:  {remedy}" for remedy in tries)
        return (
            f"not learning: after {step} steps the loss is {self._mean():.3f}, no better than chance ("
            f"predicting the class frequencies gives {self._guess:.3f})\n{lines}"
        )
