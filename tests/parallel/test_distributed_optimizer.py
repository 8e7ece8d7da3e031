"""Loss scale of a step, and its check that all ranks are at the same one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from crepe_dist.distributed.signals import StepAction
from crepe_dist.errors import UserError
from crepe_dist.optim import grad_scaler
from crepe_dist.optim.grad_scaler import INIT_SCALE, MAX_SCALE, GradScaler
from crepe_dist.parallel.distributed_optimizer import DistributedOptimizer


@pytest.mark.parametrize("other", [(6, 50), (5, 49)])
def test_ranks_at_different_steps_or_batches_are_refused(other):
    rows = [[0.5, 5.0, 50.0, 0.0], [0.5, *other, 2.0]]
    exchange: Any = SimpleNamespace(_all_reduce=lambda loss, numbers: (rows, (), False))
    batch: Any = SimpleNamespace(step=5, global_batch_size=50)
    with pytest.raises(UserError, match="step 5 of 50 documents") as raised:
        DistributedOptimizer.all_reduce(exchange, 0.5, batch)
    assert raised.value.on_all_ranks
    rows[1][1:3] = 5.0, 50.0
    outcome = DistributedOptimizer.all_reduce(exchange, 0.5, batch)
    assert (outcome.loss, outcome.requested_action) == (1.0, StepAction.STOP)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_only_float16_is_scaled(precision):
    scaling = GradScaler(precision)
    assert scaling.scale_for(128) == 1
    assert not scaling.back_off()
    assert scaling.state_dict() == []


def test_a_sum_over_more_documents_is_scaled_less():
    """Its gradients are larger: the factor makes them those of FIRST_SCALE times the mean, up to a factor of two."""
    scaling, rows = GradScaler("float16"), (1, 2, 3, 100, 128, 129)
    assert [INIT_SCALE / scaling.scale_for(count) for count in rows] == [1, 2, 4, 128, 128, 256]


def test_it_is_halved_at_each_overflow_as_long_as_that_may_help():
    scaling = GradScaler("float16")
    assert scaling.back_off()
    assert scaling.scale == INIT_SCALE / 2
    while scaling.scale > 1:
        assert scaling.back_off()
    assert not scaling.back_off()


def test_it_is_doubled_after_long_without_an_overflow(monkeypatch):
    monkeypatch.setattr(grad_scaler, "GROWTH_INTERVAL", 3)
    scaling, resumed = GradScaler("float16"), GradScaler("float16")
    scaling.record_finite_step()
    scaling.back_off()
    for _ in range(2):
        scaling.record_finite_step()
    assert scaling.scale == INIT_SCALE / 2
    resumed.load_state_dict(scaling.state_dict())
    resumed.record_finite_step()
    assert resumed.scale == INIT_SCALE
    for _ in range(100):
        resumed.record_finite_step()
    assert resumed.scale == MAX_SCALE
