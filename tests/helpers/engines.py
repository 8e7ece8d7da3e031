"""Networks that no run has trained, and the gradients of their engines; imported by processes, so without pytest."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from crepe_dist import registry
from crepe_dist.data.alphabet import BLANK, Encoding
from crepe_dist.data.batch import Batch
from crepe_dist.distributed.world import World
from crepe_dist.engines.cuda import CudaEngine
from crepe_dist.engines.engine import Engine, open_engine
from crepe_dist.engines.native import NativeEngine
from crepe_dist.exchange.exchange import Exchange, Outcome
from crepe_dist.exchange.quanta import Parameter, Quanta
from crepe_dist.model.backend import Backend
from crepe_dist.model.objective import PLAIN, Objective
from crepe_dist.model.shape import Shape
from crepe_dist.native import library
from crepe_dist.native.library import Library
from crepe_dist.settings.options import SHORTEST, ModelOptions, OptimizerOptions

SMALL: dict[str, dict[str, Any]] = {"crepe": {"buckets": 1 << 14, "embeddings": 1 << 14}, "paper": {"size": "tiny"}}


def small_shape(kind: str) -> Shape:
    """Return the shape of a network whose training step takes well under a second."""
    shape: Shape = registry.shape(kind).for_data(
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
    made = registry.part(shape.kind, "initial").parameters(shape, seed)
    return Network(shape, made)


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
    from crepe_dist.engines.gluon import GluonEngine
    from crepe_dist.mxnet_internals import structural_parameters

    assert isinstance(engine, GluonEngine)
    loss = engine.forward_backward(batch).asscalar()
    named = structural_parameters(engine.network)
    return float(loss), {name: parameter.grad().asnumpy() for name, parameter in named.items()}


def summed(engine: Engine, exchange: Exchange, batch: Batch) -> Outcome:
    """The sums of a step, as the recipe computes them."""
    outcome = exchange.all_reduce(engine.forward_backward(batch), batch)
    while outcome.overflowed:
        outcome = exchange.all_reduce(engine.forward_backward(batch), batch)
    return outcome


class TrainingStep:
    """Steps of an engine and its exchange, as those of the recipe."""

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
