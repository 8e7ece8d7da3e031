"""Log of the steps: which seconds count as training time."""

import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from crepe_dist.distributed.signals import StepAction
from crepe_dist.parallel.distributed_optimizer import StepResult
from crepe_dist.runs.resume_state import TrainerState
from crepe_dist.settings.config import Config
from crepe_dist.settings.options import TrainingOptions
from crepe_dist.training.callbacks import Callback
from crepe_dist.training.context import TrainContext
from crepe_dist.training.step_logger import StepLogger


def test_the_time_of_scoring_is_not_that_of_the_next_epoch():
    progress = TrainerState()
    train = MagicMock()
    train.__len__.return_value = 8
    data: Any = SimpleNamespace(splits={"train": train, "test": range(1)})
    config = Config(training=TrainingOptions(epochs=2))
    context = TrainContext(config, data, MagicMock(), MagicMock(), progress, *[MagicMock() for _ in range(4)])
    log = StepLogger(context, Callback())
    log.on_epoch_begin()
    time.sleep(0.02)
    log.on_step_end(StepResult(1, 4, 1.0, StepAction.CONTINUE), 0.1)
    log.on_train_epoch_end()
    assert progress.seconds >= 0.02
    progress.begin_epoch(1)
    time.sleep(0.02)
    log.on_save()  # before a state is saved
    assert progress.seconds == 0
    log.on_epoch_begin()
    time.sleep(0.02)
    log.on_save()
    assert progress.seconds >= 0.02
