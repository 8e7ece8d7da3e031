"""Our kernels of the optimizers compute what MXNet's operators do."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest

from crepe_dist.distributed.optimizers import OWN
from crepe_dist.distributed.world import World
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


def trained(optimizer, steps: int) -> dict[str, np.ndarray]:
    """Values after some steps with gradients that are functions of the step."""
    parameters = mx.gluon.ParameterDict()
    for name, shape in SHAPES.items():
        parameters.get(name, shape=shape, init="ones")
    parameters.initialize()
    trainer = World().trainer(parameters, optimizer)
    for step in range(steps):
        generator = np.random.default_rng(step)
        for parameter in parameters.values():
            parameter.grad()[:] = mx.nd.array(generator.normal(0, 1, parameter.shape))
            parameter.data()._fresh_grad = True
        trainer.update(8.0, 0.05 if step < 3 else 0.02)
    return {name: parameter.data().asnumpy() for name, parameter in parameters.items()}


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("build", library.runnable())
def test_they_compute_what_mxnet_does(build, threads, name, settings, monkeypatch):
    monkeypatch.setenv(library.SWITCH, build)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    expected = trained(mx.optimizer.create(name, **settings), 7)
    got = trained(OWN[name](**settings), 7)
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
        found.append(trained(OWN[name](**settings), 3)["c"].tobytes())
    assert found[0] == found[1] == found[2]
