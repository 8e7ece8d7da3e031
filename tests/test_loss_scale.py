from __future__ import annotations

import mxnet as mx
import numpy as np

from crepe_dist.training import loss_scale
from crepe_dist.training.loss_scale import LAG, LARGEST, START, DynamicLossScale


def gradients(bad=None):
    made = [mx.nd.ones((3, 2)), mx.nd.ones((4,))]
    if bad is not None:
        made[1][2] = bad
    return made


def test_only_float16_is_scaled():
    assert loss_scale.loss_scale("float32").scale == loss_scale.loss_scale("bfloat16").scale == 1
    assert loss_scale.loss_scale("float16").scale == START


def test_an_overflow_becomes_a_step_of_zeros_in_all_gradients():
    scaling = DynamicLossScale()
    good = gradients()
    scaling.guard(good)
    assert all((each.asnumpy() == 1).all() for each in good)
    for bad in (np.inf, -np.inf, np.nan):
        made = gradients(bad)
        scaling.guard(made)
        assert all((each.asnumpy() == 0).all() for each in made)


def test_it_is_halved_once_for_a_row_of_overflows_and_only_after_a_while():
    scaling = DynamicLossScale()
    for _ in range(LAG):
        scaling.guard(gradients(np.inf))
        assert scaling.scale == START
    for _ in range(LAG + 1):  # the flags of steps with the old scale come in
        scaling.guard(gradients(np.inf))
        assert scaling.scale == START / 2
    scaling.guard(gradients(np.inf))
    assert scaling.scale == START / 4


def test_it_is_doubled_after_long_without_an_overflow(monkeypatch):
    monkeypatch.setattr(loss_scale, "GROW_AFTER", 3)
    scaling = DynamicLossScale()
    for _ in range(LAG + 3):
        scaling.guard(gradients())
    assert scaling.scale == 2 * START
    for _ in range(100):
        scaling.guard(gradients())
    assert scaling.scale == LARGEST
