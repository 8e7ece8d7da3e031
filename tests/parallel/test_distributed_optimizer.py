"""Loss scaler in float16, and the check of an all-reduce that all ranks are at the same step."""

from types import SimpleNamespace
from typing import Any

import pytest

from crepe_dist.distributed.signals import StepAction
from crepe_dist.errors import UserError
from crepe_dist.optim import grad_scaler
from crepe_dist.optim.grad_scaler import INIT_SCALE, MAX_SCALE, GradScaler
from crepe_dist.parallel.distributed_optimizer import DistributedOptimizer


@pytest.mark.parametrize("position", [(6, 50), (5, 49)])
def test_ranks_at_different_steps_or_batches_are_refused(position):
    stats = [[0.5, 5.0, 50.0, 0.0], [0.5, *position, 2.0]]
    optimizer: Any = SimpleNamespace(_all_reduce=lambda loss, step_info: (stats, (), False))
    batch: Any = SimpleNamespace(step=5, global_batch_size=50)
    with pytest.raises(UserError, match="step 5 of 50 documents") as raised:
        DistributedOptimizer.all_reduce(optimizer, 0.5, batch)
    assert raised.value.on_all_ranks
    stats[1][1:3] = 5.0, 50.0
    result = DistributedOptimizer.all_reduce(optimizer, 0.5, batch)
    assert (result.loss, result.requested_action) == (1.0, StepAction.STOP)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_only_float16_is_scaled(precision):
    scaler = GradScaler(precision)
    assert scaler.scale_for(128) == 1
    assert not scaler.back_off()
    assert scaler.state_dict() == []


def test_a_sum_over_more_documents_is_scaled_less():
    """The gradient of a sum grows with the number of documents, so the factor of the loss shrinks with it."""
    scaler, batch_sizes = GradScaler("float16"), (1, 2, 3, 100, 128, 129)
    assert [INIT_SCALE / scaler.scale_for(size) for size in batch_sizes] == [1, 2, 4, 128, 128, 256]


def test_the_scale_is_halved_at_each_overflow_down_to_1():
    scaler = GradScaler("float16")
    assert scaler.back_off()
    assert scaler.scale == INIT_SCALE / 2
    while scaler.scale > 1:
        assert scaler.back_off()
    assert not scaler.back_off()


def test_the_scale_is_doubled_after_many_steps_without_an_overflow(monkeypatch):
    monkeypatch.setattr(grad_scaler, "GROWTH_INTERVAL", 3)
    scaler, resumed = GradScaler("float16"), GradScaler("float16")
    scaler.record_finite_step()
    scaler.back_off()
    for _ in range(2):
        scaler.record_finite_step()
    assert scaler.scale == INIT_SCALE / 2
    resumed.load_state_dict(scaler.state_dict())
    resumed.record_finite_step()
    assert resumed.scale == INIT_SCALE
    for _ in range(100):
        resumed.record_finite_step()
    assert resumed.scale == MAX_SCALE
