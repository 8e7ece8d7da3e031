"""Our kernels of the optimizers, and MXNet's, compute what the reference does."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest

from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.native import library
from crepe_dist.optim.fixed_point import INITIAL_EXPONENT, FixedPointScales
from crepe_dist.optim.optimizers import OptimizerSpec
from crepe_dist.optim.parameter import Parameter
from crepe_dist.parallel.horovod_optimizer import HorovodOptimizer
from crepe_dist.parallel.shared_memory_optimizer import SharedMemoryOptimizer
from crepe_dist.settings.options import OptimizerOptions
from tests.helpers.optimizers import Reference

OPTIONS = [
    OptimizerOptions(name="adam", weight_decay=0.01),
    OptimizerOptions(name="sgd", weight_decay=0.01, momentum=0.9),
    OptimizerOptions(name="sgd", weight_decay=0.01, momentum=0.0),
]
SHAPES = {"a": (5,), "b": (33, 7), "c": (1000, 3)}
STEPS = 7


def whole(step: int) -> dict[str, np.ndarray]:
    """Gradients of a step."""
    generator = np.random.default_rng(step)
    return {name: generator.integers(-(2**20), 2**20, shape) for name, shape in SHAPES.items()}


def rate(step: int) -> float:
    return 0.05 if step < 3 else 0.02


def made() -> dict[str, Parameter]:
    return {name: Parameter(np.ones(shape, np.float32)) for name, shape in SHAPES.items()}


def by_mxnet(options: OptimizerOptions) -> dict[str, np.ndarray]:
    parameters, optimizer = mx.gluon.ParameterDict(), OptimizerSpec(options)
    for name, shape in SHAPES.items():
        parameters.get(name, shape=shape, init="ones")
    parameters.initialize()
    exchange = HorovodOptimizer(ProcessGroup(), parameters, optimizer, {name: name for name in SHAPES})
    for step in range(STEPS):
        for name, gradient in whole(step).items():
            parameters[name].grad()[:] = gradient * 2.0**INITIAL_EXPONENT
            parameters[name].data()._fresh_grad = True
        exchange._all_reduce(mx.nd.zeros(1), ())
        exchange.step(0.01, rate(step))
    return {name: parameter.data().asnumpy() for name, parameter in parameters.items()}


def by_kernels(options: OptimizerOptions) -> dict[str, np.ndarray]:
    parameters = made()
    quanta = FixedPointScales(parameters)
    quanta.load_state_dict(np.full(len(SHAPES), INITIAL_EXPONENT, np.int32))
    exchange = SharedMemoryOptimizer(ProcessGroup(), OptimizerSpec(options), quanta)
    for step in range(STEPS):
        for name, gradient in whole(step).items():
            gradients = parameters[name].grad
            assert gradients is not None
            gradients[:] = gradient
        quanta.start_step(8)
        quanta.sum_bounds[:] = [2**16] * len(SHAPES)
        exchange._all_reduce(0.0, ())
        exchange.step(0.01, rate(step))
    return {name: parameter.data for name, parameter in parameters.items()}


def assert_near(got: dict[str, np.ndarray], options: OptimizerOptions) -> None:
    optimizer = Reference(options, made())
    for step in range(STEPS):
        optimizer.update({name: each * 2.0**INITIAL_EXPONENT / 0.01 for name, each in whole(step).items()}, rate(step))
    for parameter, values in optimizer.values.items():
        np.testing.assert_allclose(got[parameter], values, rtol=1e-5, atol=1e-6, err_msg=parameter)
        assert np.abs(values - 1).max() > 0.01


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("build", library.supported_builds())
def test_our_kernels(build, threads, options, monkeypatch):
    monkeypatch.setenv(library.KERNELS_ENV, build)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    assert_near(by_kernels(options), options)


@pytest.mark.parametrize("options", OPTIONS)
def test_mxnet(options):
    assert_near(by_mxnet(options), options)
