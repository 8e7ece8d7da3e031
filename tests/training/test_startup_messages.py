"""Warnings of ``crepe train`` before the first step."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from crepe_dist.data.targets import SINGLE_LABEL, Targets
from crepe_dist.training.startup_messages import warn_empty_classes


def test_classes_without_rows():
    def noted(*labels: int) -> str:
        targets = Targets(SINGLE_LABEL, np.array(labels, np.int32), 3)
        data: Any = SimpleNamespace(classes=["a", "b", "c"], splits={"train": SimpleNamespace(targets=targets)})
        return warn_empty_classes(data)

    assert noted(0, 0, 2).split("\n")[0].endswith("of 1 class: b")
    assert noted(0, 1, 2) == ""
