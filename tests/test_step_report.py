from __future__ import annotations

import math

import numpy as np
import pytest

from crepe_dist.distributed.control import Wish
from crepe_dist.errors import UserError
from crepe_dist.training.step_report import StepReport, check_same


@pytest.mark.parametrize("step", [1, 2**24 + 1, 2**40 - 1])
def test_a_report_survives_as_a_row_of_float32(step):
    for documents, wish, loss in ((128, Wish.STOP, 3.25), (2**24 + 1, Wish.GO_ON, -0.0)):
        row = np.append(StepReport.row(step, documents, wish), np.float32(loss))
        assert row.dtype == np.float32
        assert StepReport.of(row) == StepReport(step, documents, loss, wish)
    assert math.isnan(StepReport.of(np.append(StepReport.row(1, 1, Wish.SAVE), np.float32(np.nan))).loss)


def test_the_strongest_wish_is_the_one_to_obey():
    assert sorted(Wish) == [Wish.GO_ON, Wish.SAVE, Wish.STOP]


@pytest.mark.parametrize("odd", [StepReport(6, 50, 1.0, Wish.GO_ON), StepReport(5, 49, 1.0, Wish.GO_ON)])
def test_ranks_at_different_steps_or_batches_are_refused(odd):
    same = StepReport(5, 50, 1.0, Wish.GO_ON)
    check_same([same, StepReport(5, 50, 2.0, Wish.STOP)])
    with pytest.raises(UserError, match="rank 2 at step") as raised:
        check_same([same, same, odd])
    assert raised.value.on_all_ranks
