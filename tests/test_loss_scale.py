from __future__ import annotations

from crepe_dist.training import loss_scale
from crepe_dist.training.loss_scale import LARGEST, START, DynamicLossScale


def test_only_float16_is_scaled():
    for precision in ("float32", "bfloat16"):
        scaling = loss_scale.loss_scale(precision)
        assert scaling.factor(128) == 1
        assert not scaling.lower()
    assert loss_scale.loss_scale("float16").factor(1) == START


def test_a_sum_over_more_documents_is_scaled_less():
    """Its gradients are larger: the factor makes them those of START times the mean, up to a factor of two."""
    scaling = DynamicLossScale()
    assert [scaling.factor(rows) for rows in (1, 2, 3, 100, 128, 129)] == [START / n for n in (1, 2, 4, 128, 128, 256)]
    scaling.lower()
    assert scaling.factor(128) == START / 256


def test_it_is_halved_at_each_overflow_as_long_as_that_may_help():
    scaling = DynamicLossScale()
    assert scaling.lower()
    assert scaling.scale == START / 2
    while scaling.scale > 1:
        assert scaling.lower()
    assert not scaling.lower()


def test_it_is_doubled_after_long_without_an_overflow(monkeypatch):
    monkeypatch.setattr(loss_scale, "GROW_AFTER", 3)
    scaling = DynamicLossScale()
    scaling.good()
    scaling.lower()
    for _ in range(2):
        scaling.good()
    assert scaling.scale == START / 2
    resumed = DynamicLossScale()
    resumed.restore(scaling.state())
    resumed.good()
    assert resumed.scale == START
    for _ in range(100):
        resumed.good()
    assert resumed.scale == LARGEST
