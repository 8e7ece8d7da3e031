from __future__ import annotations

import math

import pytest

from crepe_dist.distributed.control import Wish
from crepe_dist.errors import UserError
from crepe_dist.training.step_report import Report, check_same


def test_a_report_is_a_row_of_numbers():
    for report in (Report(2**40, 128, 3.25, Wish.STOP), Report(1, 1, -0.0, Wish.GO_ON)):
        assert Report.of(report.row()) == report
    assert math.isnan(Report.of(Report(1, 1, math.nan, Wish.SAVE).row()).loss)


def test_the_strongest_wish_is_the_one_to_obey():
    assert sorted(Wish) == [Wish.GO_ON, Wish.SAVE, Wish.REGROUP, Wish.STOP]


@pytest.mark.parametrize("odd", [Report(6, 50, 1.0, Wish.GO_ON), Report(5, 49, 1.0, Wish.GO_ON)])
def test_ranks_at_different_steps_or_batches_are_refused(odd):
    same = Report(5, 50, 1.0, Wish.GO_ON)
    check_same([same, Report(5, 50, 2.0, Wish.STOP)])
    with pytest.raises(UserError, match="rank 2 at step") as raised:
        check_same([same, same, odd])
    assert raised.value.on_all_ranks
