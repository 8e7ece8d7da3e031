"""The record of the steps: what counts as training time."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from crepe_dist.distributed.control import Wish
from crepe_dist.runs.state import Progress
from crepe_dist.settings.config import Config
from crepe_dist.settings.training_options import TrainingOptions
from crepe_dist.training.observers.step_log import StepLog
from crepe_dist.training.step import Outcome


def test_the_time_of_scoring_is_not_that_of_the_next_epoch():
    progress = Progress()
    data: Any = SimpleNamespace(parts={"train": range(8)})
    config = Config(training=TrainingOptions(epochs=2))
    log = StepLog(config, data, MagicMock(), progress, MagicMock(), MagicMock())
    log._flops = 1
    log.begin_epoch()
    time.sleep(0.02)
    log.after_step(Outcome(1, 4, 1.0, Wish.GO_ON), 0.1)
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
