from __future__ import annotations

import math

import pytest

from crepe_dist.distributed.control import Wish
from crepe_dist.errors import UserError
from crepe_dist.training.step_report import StepReport, check_same


def test_a_report_is_a_row_of_numbers():
    for report in (StepReport(2**40, 128, 3.25, Wish.STOP), StepReport(1, 1, -0.0, Wish.GO_ON)):
        assert StepReport.of(report.row()) == report
    assert math.isnan(StepReport.of(StepReport(1, 1, math.nan, Wish.SAVE).row()).loss)


def test_the_strongest_wish_is_the_one_to_obey():
    assert sorted(Wish) == [Wish.GO_ON, Wish.SAVE, Wish.STOP]


@pytest.mark.parametrize("odd", [StepReport(6, 50, 1.0, Wish.GO_ON), StepReport(5, 49, 1.0, Wish.GO_ON)])
def test_ranks_at_different_steps_or_batches_are_refused(odd):
    same = StepReport(5, 50, 1.0, Wish.GO_ON)
    check_same([same, StepReport(5, 50, 2.0, Wish.STOP)])
    with pytest.raises(UserError, match="rank 2 at step") as raised:
        check_same([same, same, odd])
    assert raised.value.on_all_ranks
