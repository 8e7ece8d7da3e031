"""Our kernels of the optimizers compute what MXNet's operators do."""

from __future__ import annotations

from functools import partial
from typing import Any

import mxnet as mx
import numpy as np
import pytest

from crepe_dist.distributed.world import World
from crepe_dist.exchange import open_exchange
from crepe_dist.exchange.optimizers import make_optimizer
from crepe_dist.exchange.quanta import Quanta
from crepe_dist.mxnet_internals import view
from crepe_dist.native import library

SETTINGS = [
    ("adam", {"learning_rate": 0.01, "wd": 0.01}),
    ("sgd", {"learning_rate": 0.1, "wd": 0.01, "momentum": 0.9}),
    ("sgd", {"learning_rate": 0.1, "wd": 0.01, "momentum": 0.0}),
    # MXNet's operator takes the decay of the momentum from the value that it has just updated; ours does not.
    ("nag", {"learning_rate": 0.1, "wd": 0.0, "momentum": 0.9}),
    ("nag", {"learning_rate": 0.1, "wd": 0.01, "momentum": 0.0}),
]
SHAPES = {"a": (5,), "b": (33, 7), "c": (1000, 3)}


def trained(name: str, settings: dict[str, float], steps: int, *, own: bool) -> dict[str, np.ndarray]:
    """Values after some steps with gradients that are functions of the step, by our own kernels or MXNet's."""
    parameters = mx.gluon.ParameterDict()
    for parameter, shape in SHAPES.items():
        parameters.get(parameter, shape=shape, init="ones")
    parameters.initialize()
    quanta = Quanta(parameters.values()) if own else None
    exchange = open_exchange(World(), parameters, make_optimizer(name, settings), quanta)

    def compute(step: int) -> Any:
        mx.nd.waitall()  # the last update still reads the gradients
        generator = np.random.default_rng(step)
        for parameter in parameters.values():
            whole = generator.integers(-(2**20), 2**20, parameter.shape)
            view(parameter.grad())[...] = whole.astype(np.int32).view(np.float32) if own else whole * 2.0**-24
            parameter.data()._fresh_grad = True
        return 0.0 if own else mx.nd.zeros(1)

    for step in range(steps):
        exchange.sum(partial(compute, step), (), 8)
        exchange.update(0.01, 0.05 if step < 3 else 0.02)
    return {name: parameter.data().asnumpy() for name, parameter in parameters.items()}


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("build", library.runnable())
def test_they_compute_what_mxnet_does(build, threads, name, settings, monkeypatch):
    monkeypatch.setenv(library.SWITCH, build)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    expected, got = (trained(name, settings, 7, own=own) for own in (False, True))
    for parameter, values in expected.items():
        np.testing.assert_allclose(got[parameter], values, rtol=1e-5, atol=1e-6, err_msg=parameter)
        assert np.abs(values - 1).max() > 0.01


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
@pytest.mark.parametrize("build", library.runnable())
def test_the_same_bits_for_any_number_of_threads(build, name, settings, monkeypatch):
    monkeypatch.setenv(library.SWITCH, build)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        found.append(trained(name, settings, 3, own=True)["c"].tobytes())
    assert found[0] == found[1] == found[2]
