"""Our optimizer kernels and MXNet's optimizers compute the same as a reference in NumPy."""

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


def fixed_point_gradients(step: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(step)
    return {name: generator.integers(-(2**20), 2**20, shape) for name, shape in SHAPES.items()}


def learning_rate(step: int) -> float:
    return 0.05 if step < 3 else 0.02


def create_parameters() -> dict[str, Parameter]:
    return {name: Parameter(np.ones(shape, np.float32)) for name, shape in SHAPES.items()}


def train_by_mxnet(options: OptimizerOptions) -> dict[str, np.ndarray]:
    parameters, spec = mx.gluon.ParameterDict(), OptimizerSpec(options)
    for name, shape in SHAPES.items():
        parameters.get(name, shape=shape, init="ones")
    parameters.initialize()
    optimizer = HorovodOptimizer(ProcessGroup(), parameters, spec, {name: name for name in SHAPES})
    for step in range(STEPS):
        for name, gradient in fixed_point_gradients(step).items():
            parameters[name].grad()[:] = gradient * 2.0**INITIAL_EXPONENT
            parameters[name].data()._fresh_grad = True
        optimizer._all_reduce(mx.nd.zeros(1), ())
        optimizer.step(0.01, learning_rate(step))
    return {name: parameter.data().asnumpy() for name, parameter in parameters.items()}


def train_by_kernels(options: OptimizerOptions) -> dict[str, np.ndarray]:
    parameters = create_parameters()
    scales = FixedPointScales(parameters)
    scales.load_state_dict(np.full(len(SHAPES), INITIAL_EXPONENT, np.int32))
    optimizer = SharedMemoryOptimizer(ProcessGroup(), OptimizerSpec(options), scales)
    for step in range(STEPS):
        for name, gradient in fixed_point_gradients(step).items():
            gradients = parameters[name].grad
            assert gradients is not None
            gradients[:] = gradient
        scales.start_step(8)
        scales.sum_bounds[:] = [2**16] * len(SHAPES)
        optimizer._all_reduce(0.0, ())
        optimizer.step(0.01, learning_rate(step))
    return {name: parameter.data for name, parameter in parameters.items()}


def assert_close_to_reference(values: dict[str, np.ndarray], options: OptimizerOptions) -> None:
    optimizer = Reference(options, create_parameters())
    for step in range(STEPS):
        optimizer.update(
            {name: gradient * 2.0**INITIAL_EXPONENT / 0.01 for name, gradient in fixed_point_gradients(step).items()},
            learning_rate(step),
        )
    for name, expected in optimizer.values.items():
        np.testing.assert_allclose(values[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
        assert np.abs(expected - 1).max() > 0.01


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("build", library.supported_builds())
def test_our_kernels(build, threads, options, monkeypatch):
    monkeypatch.setenv(library.KERNELS_ENV, build)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    assert_close_to_reference(train_by_kernels(options), options)


@pytest.mark.parametrize("options", OPTIONS)
def test_mxnet(options):
    assert_close_to_reference(train_by_mxnet(options), options)
