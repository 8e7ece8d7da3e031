"""Networks that no run has trained, and the gradients of their engines; imported by processes, so without pytest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from crepe_dist import network_registry
from crepe_dist.data.batch import Batch, pack
from crepe_dist.data.char_encoder import BLANK, Encoding
from crepe_dist.distributed.process_group import World
from crepe_dist.engines.cpu_engine import NativeEngine
from crepe_dist.engines.cuda_engine import CudaEngine
from crepe_dist.engines.engine import Engine, open_engine
from crepe_dist.model.backend import Backend
from crepe_dist.model.loss import PLAIN, Objective
from crepe_dist.model.network_config import Shape
from crepe_dist.native import library
from crepe_dist.native.library import Library
from crepe_dist.networks.crepe.config import CrepeShape
from crepe_dist.networks.paper.config import PaperShape
from crepe_dist.optim.fixed_point import Quanta
from crepe_dist.optim.parameter import Parameter
from crepe_dist.parallel.distributed_optimizer import Exchange, Outcome
from crepe_dist.settings.options import SHORTEST, ModelOptions, OptimizerOptions

SMALL: dict[str, dict[str, Any]] = {"crepe": {"buckets": 1 << 14, "embedding_rows": 1 << 14}, "paper": {"size": "tiny"}}


def small_shape(kind: str) -> Shape:
    """Return the shape of a network whose training step takes well under a second."""
    shape: Shape = network_registry.shape(kind).for_data(
        ModelOptions(network=kind, **SMALL[kind]), Encoding(feature_len=SHORTEST), 4, 1000
    )
    return shape


@dataclass
class Network:
    """A network's parameters, which several engines may compute."""

    shape: Shape
    parameters: dict[str, Parameter]

    @property
    def values(self) -> dict[str, np.ndarray]:
        return {name: parameter.value for name, parameter in self.parameters.items()}

    def opened(
        self,
        build: str | None,
        precision: str = "float32",
        objective: Objective = PLAIN,
        **more: Any,
    ) -> Any:
        """An engine of a build of our kernels; ``None``: of MXNet's operators."""
        backend = Backend(precision, None if build is None else Library(build), "for a test")
        return open_engine(self.shape, self.parameters, backend, objective, **more)


def initial(shape: Shape, seed: int = 0) -> Network:
    """A network with initial parameters."""
    made = network_registry.part(shape.kind, "init").parameters(shape, seed)
    return Network(shape, made)


def sized(
    alphabet: int = 69, length: int = 60, classes: int = 5, width: int = 32, blocks: int = 3, stride: int = 1,
    dropout: float = 0.0,
) -> CrepeShape:  # fmt: skip
    return CrepeShape(
        alphabet, length, classes, 4, 1 << 12, min(36, alphabet), 1 << 10, 3, 1 << 10, width, blocks, stride, dropout
    )


def varied(shape: Shape) -> Network:
    """A network in which no weight is zero, as all are of the second convolution of a new block, nor large."""
    network, generator = initial(shape, seed=1), np.random.default_rng(1)
    for name, array in network.values.items():
        if name in shape.counted:
            array[:] = generator.random(array.shape) < 0.1
        elif name in ("weight", "ngrams.weight"):  # its rows are multiplied by 300
            array[:] = generator.normal(0, 0.01, array.shape)
        elif isinstance(shape, PaperShape):
            inputs = 7 if name == "0.weight" else math.prod(array.shape[1:])  # the first layer's are one-hot
            deviation = (2 / inputs) ** 0.5 if name.endswith("weight") else 0.1
            # No class is certain, so no gradient is a rounding error.
            array[:] = generator.normal(0, deviation * (0.1 if name.startswith("14.") else 1), array.shape)
        elif name != "tower.table":
            array += generator.normal(0, 0.05, array.shape).astype(np.float32)
    return network


def some_codes(shape: Shape, rows: int) -> np.ndarray:
    """Documents with no character, one, two, an odd number, all but one and all, with unknown ones inside."""
    generator, most = np.random.default_rng(rows), shape.feature_len
    codes = generator.integers(0, shape.alphabet_size, (rows, most)).astype(np.uint8)
    for row, known in enumerate((0, 1, 2, 5, most - 1, most, *generator.integers(0, most + 1, rows).tolist())):
        if row < rows:
            codes[row, known:] = BLANK
    codes[3::3, 1] = BLANK
    codes[1::2, 3] = BLANK
    return codes


def some_batch(shape: Shape, rows: int, filling: int = 1, first: int = 3) -> Batch:
    labels = np.random.default_rng(rows).integers(0, shape.classes, rows).astype(np.int32)
    return pack(some_codes(shape, rows), labels, rows + filling, rows, first)


def best() -> str | None:
    """The build of the kernels that this process uses."""
    found, _ = library.find()
    return None if found is None else found.name


def gradients(engine: Engine, batch: Batch, seed: int = 0, step: int = 0) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of a batch and the gradients of all trained parameters, tables included, float32."""
    batch = batch.of_step(step + 1, seed)
    if isinstance(engine, NativeEngine):
        quanta = whole_gradients(engine)
        loss = engine.forward_backward(batch)
        while not quanta.fit([quanta.bounds[:]]):
            loss = engine.forward_backward(batch)
        return loss, floating(quanta)
    if isinstance(engine, CudaEngine):
        return on_gpu(engine, batch)
    from crepe_dist.distributed.mxnet_internals import structural_parameters
    from crepe_dist.engines.gluon_engine import GluonEngine

    assert isinstance(engine, GluonEngine)
    loss = engine.forward_backward(batch).asscalar()
    named = structural_parameters(engine.network)
    return float(loss), {name: parameter.grad().asnumpy() for name, parameter in named.items()}


def answers(engine: Engine, batch: Batch) -> np.ndarray:
    """The logits of a batch."""
    engine.refresh()
    return engine.logits(batch)


def learnt(engine: Engine, batch: Batch, step: int = 0) -> dict[str, np.ndarray]:
    """Loss and gradients."""
    loss, found = gradients(engine, batch, 1, step)
    return {"loss": np.array([loss], np.float32), **found}


def assert_near(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray], most: float = 1e-5) -> None:
    """Compare arrays; ``most``: largest difference, as a share of the largest number."""
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert np.abs(got[name] - array).max() <= most * np.abs(array).max(), name


def summed(engine: Engine, exchange: Exchange, batch: Batch) -> Outcome:
    """The sums of a step, as the training loop computes them."""
    outcome = exchange.all_reduce(engine.forward_backward(batch), batch)
    while outcome.overflowed:
        outcome = exchange.all_reduce(engine.forward_backward(batch), batch)
    return outcome


class TrainingStep:
    """Steps of an engine and its exchange, as those of the training loop."""

    def __init__(self, engine: Engine, exchange: Exchange, seed: int = 0) -> None:
        self.engine, self.exchange, self.seed = engine, exchange, seed

    def sum(self, batch: Batch, step: int) -> Outcome:
        return summed(self.engine, self.exchange, batch.of_step(step, self.seed))

    def __call__(self, batch: Batch, step: int, learning_rate: float) -> Outcome:
        outcome = self.sum(batch, step)
        if outcome.finite:
            self.exchange.update(batch.documents, learning_rate)
        return outcome


def on_gpu(engine: CudaEngine, batch: Batch) -> tuple[float, dict[str, np.ndarray]]:
    """What ``gradients`` returns, of our engine for GPUs."""
    exchange = engine.open_exchange(World(), OptimizerOptions(), len(batch.packed))
    outcome = summed(engine, exchange, batch)
    found = {}
    for name, total in exchange.totals.items():
        shape = engine.parameters[name].shape
        whole = np.empty(shape[::-1] if len(shape) == 3 else shape, np.int32)  # of convolutions: [taps, in, out]
        total.read(whole)
        found[name] = (
            (whole.T if len(shape) == 3 else whole) * (engine.quanta.of(name) / engine.loss_scale.factor)
        ).astype(np.float32)
    return outcome.loss, found


def whole_gradients(engine: NativeEngine) -> Quanta:
    """Let an engine leave the gradients of all trained parameters in arrays of their own, tables included."""
    trained = {name: each for name, each in engine.parameters.items() if each.is_trained}
    for parameter in trained.values():
        parameter.gradient = np.zeros(parameter.shape, np.int32)
    engine.quanta = Quanta(trained)
    engine._exchange = cast("Any", SimpleNamespace(ready=lambda: None, fetch=lambda: None))
    return engine.quanta


def floating(quanta: Quanta) -> dict[str, np.ndarray]:
    """The gradients of whole numbers as float32."""
    return {
        name: (each.gradient * quanta.of(name)).astype(np.float32)
        for name, each in quanta.parameters.items()
        if each.gradient is not None
    }
