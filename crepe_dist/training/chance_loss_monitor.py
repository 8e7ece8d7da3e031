"""Warning about a training loss that stays at chance."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from crepe_dist import invocation
from crepe_dist.settings.config import Config
from crepe_dist.training.callbacks import Callback
from crepe_dist.training.context import TrainContext
from crepe_dist.training.display import Throughput

WINDOW = 100  # The loss is averaged over this number of steps.
# Number of steps between two checks. In a run that learns, the loss falls below chance before the first check.
CHECK_INTERVAL = 500
MARGIN = 0.02  # The loss is considered at chance unless it is below the loss at chance by more than this fraction.


class ChanceLossMonitor(Callback):
    """Callback that warns once if the training loss stays at chance.

    Args:
        chance: Mean loss of a model that always predicts the class frequencies, in nats (``Loss.class_prior_loss``).
        config: Configuration of the run. The advice in the warning depends on it.
        warn: Function that prints the warning.
    """

    def __init__(self, chance: float, config: Config, warn: Callable[[str], None]) -> None:
        self._chance = chance
        self._config = config
        self._warn = warn
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._last_step = 0
        self._has_warned = False

    @classmethod
    def create(cls, context: TrainContext) -> "ChanceLossMonitor":
        """Create the monitor for a run."""
        train = context.data.splits["train"]
        chance = context.engine.loss.class_prior_loss(train.targets.class_mass(), len(train))
        return cls(chance, context.config, context.display.print)

    def on_log(self, records: Sequence[dict[str, Any]], throughput: Throughput) -> None:
        for record in records:
            self._losses.append(record["loss"])
            self._last_step = record["step"]
            if self._last_step % CHECK_INTERVAL == 0 and len(self._losses) == WINDOW:
                self._check()

    def on_train_end(self) -> None:
        """Check the loss at the end, because a short run ends before its first check."""
        self._check()

    def _check(self) -> None:
        """Warn if the mean loss is at chance. The warning is printed only once."""
        mean = sum(self._losses) / max(len(self._losses), 1)
        if self._has_warned or mean <= (1 - MARGIN) * self._chance:
            return
        self._has_warned = True
        rate = self._config.optimizer.learning_rate
        self._warn(
            f"not learning: after {self._last_step} steps the loss is {mean:.3f}, no better than chance (predicting "
            f"the class frequencies gives {self._chance:.3f})\n"
            f"  do:  lower the learning rate: --learning-rate {rate / 10:g}\n"
            f"  do:  check that texts and labels match: {invocation.command_line('evaluate')} RUN --split train\n"
            f"  do:  train longer, if these were few steps: --epochs {2 * self._config.training.num_epochs}"
        )
