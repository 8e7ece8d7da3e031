"""The record of the steps: what counts as training time."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from crepe_dist.distributed.signals import Vote
from crepe_dist.parallel.distributed_optimizer import Outcome
from crepe_dist.runs.resume_state import Progress
from crepe_dist.settings.config import Config
from crepe_dist.settings.options import TrainingOptions
from crepe_dist.training.context import Run
from crepe_dist.training.step_logger import StepLog


def test_the_time_of_scoring_is_not_that_of_the_next_epoch():
    progress = Progress()
    train = MagicMock()
    train.__len__.return_value = 8
    data: Any = SimpleNamespace(splits={"train": train, "test": range(1)})
    config = Config(training=TrainingOptions(epochs=2))
    log = StepLog(Run(config, data, MagicMock(), MagicMock(), progress, *[MagicMock() for _ in range(4)]))
    log.begin_epoch()
    time.sleep(0.02)
    log.after_step(Outcome(1, 4, 1.0, Vote.GO_ON), 0.1)
    log.end_epoch()
    assert progress.seconds >= 0.02
    progress.begin_epoch(1)
    time.sleep(0.02)
    log.flush()  # before a state is saved
    assert progress.seconds == 0
    log.begin_epoch()
    time.sleep(0.02)
    log.flush()
    assert progress.seconds >= 0.02
