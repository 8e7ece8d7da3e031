"""Networks that no run has trained, and the gradients of their engines; imported by processes, so without pytest."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from crepe_dist import network_registry
from crepe_dist.data.batch import Batch, pack_batch
from crepe_dist.data.char_encoder import PAD_UNK_ID, CharEncoder
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.engines.cpu_engine import CpuEngine
from crepe_dist.engines.cuda_engine import CudaEngine
from crepe_dist.engines.engine import Engine, create_engine
from crepe_dist.model.backend import Backend
from crepe_dist.model.loss import DEFAULT_LOSS, Loss
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.native import library
from crepe_dist.native.library import Library
from crepe_dist.networks.crepe.config import CrepeConfig
from crepe_dist.networks.paper.config import PaperConfig
from crepe_dist.optim.fixed_point import FixedPointScales
from crepe_dist.optim.optimizers import OptimizerSpec
from crepe_dist.optim.parameter import Parameter
from crepe_dist.parallel.distributed_optimizer import DistributedOptimizer, StepResult
from crepe_dist.parallel.shared_memory_optimizer import SharedMemoryOptimizer
from crepe_dist.settings.options import MIN_FEATURE_LEN, ModelOptions, OptimizerOptions

SMALL: dict[str, dict[str, Any]] = {"crepe": {"buckets": 1 << 14, "embedding_rows": 1 << 14}, "paper": {"size": "tiny"}}


def small_shape(kind: str) -> NetworkConfig:
    """Return the shape of a network whose training step takes well under a second."""
    shape: NetworkConfig = network_registry.config_class(kind).for_data(
        ModelOptions(network=kind, **SMALL[kind]), CharEncoder(feature_len=MIN_FEATURE_LEN), 4, 1000
    )
    return shape


@dataclass
class Network:
    """Parameters of a network. More than one engine may compute with them."""

    shape: NetworkConfig
    parameters: dict[str, Parameter]

    @property
    def values(self) -> dict[str, np.ndarray]:
        return {name: parameter.data for name, parameter in self.parameters.items()}

    def opened(
        self,
        build: str | None,
        precision: str = "float32",
        objective: Loss = DEFAULT_LOSS,
        **more: Any,
    ) -> Any:
        """Return an engine on a build of our kernels, or on MXNet's operators if ``build`` is ``None``."""
        backend = Backend(precision, None if build is None else Library(build), "for a test")
        return create_engine(self.shape, self.parameters, backend, objective, **more)


def initial(shape: NetworkConfig, seed: int = 0) -> Network:
    """Return a network with initial parameters."""
    made = network_registry.import_network_module(shape.kind, "init").init_parameters(shape, seed)
    return Network(shape, made)


def sized(
    alphabet: int = 69, length: int = 60, classes: int = 5, width: int = 32, blocks: int = 3, stride: int = 1,
    dropout: float = 0.0,
) -> CrepeConfig:  # fmt: skip
    return CrepeConfig(
        alphabet, length, classes, 4, 1 << 12, min(36, alphabet), 1 << 10, 3, 1 << 10, width, blocks, stride, dropout
    )


def varied(shape: NetworkConfig) -> Network:
    """Make a network whose weights are small and not zero.

    In a new network, all weights of the second convolution of a block are zero.
    """
    network, generator = initial(shape, seed=1), np.random.default_rng(1)
    for name, array in network.values.items():
        if name in shape.buffers:
            array[:] = generator.random(array.shape) < 0.1
        elif name in ("weight", "ngrams.weight"):  # The network multiplies these rows by 300.
            array[:] = generator.normal(0, 0.01, array.shape)
        elif isinstance(shape, PaperConfig):
            # The inputs of the first layer are one-hot.
            inputs = 7 if name == "0.weight" else math.prod(array.shape[1:])
            deviation = (2 / inputs) ** 0.5 if name.endswith("weight") else 0.1
            # No class is certain, so no gradient is a rounding error.
            array[:] = generator.normal(0, deviation * (0.1 if name.startswith("14.") else 1), array.shape)
        elif name != "tower.table":
            array += generator.normal(0, 0.05, array.shape).astype(np.float32)
    return network


def some_codes(shape: NetworkConfig, rows: int) -> np.ndarray:
    """Return character ids of documents of many lengths, including empty and full ones, with unknown characters."""
    generator, most = np.random.default_rng(rows), shape.feature_len
    codes = generator.integers(0, shape.alphabet_size, (rows, most)).astype(np.uint8)
    for row, known in enumerate((0, 1, 2, 5, most - 1, most, *generator.integers(0, most + 1, rows).tolist())):
        if row < rows:
            codes[row, known:] = PAD_UNK_ID
    codes[3::3, 1] = PAD_UNK_ID
    codes[1::2, 3] = PAD_UNK_ID
    return codes


def some_batch(shape: NetworkConfig, rows: int, filling: int = 1, first: int = 3) -> Batch:
    labels = np.random.default_rng(rows).integers(0, shape.num_classes, rows).astype(np.int32)
    return pack_batch(some_codes(shape, rows), labels, rows + filling, rows, first)


def best() -> str | None:
    """Return the name of the build of the kernels that this process uses."""
    found, _ = library.find()
    return None if found is None else found.name


def gradients(engine: Engine, batch: Batch, seed: int = 0, step: int = 0) -> tuple[float, dict[str, np.ndarray]]:
    """Return the loss of a batch and the gradients of all trained parameters, embeddings included, as float32."""
    batch = batch.for_step(step + 1, seed)
    if isinstance(engine, CpuEngine):
        scales = whole_gradients(engine)
        loss = engine.forward_backward(batch)
        while not scales.update_scales([scales.sum_bounds[:]]):
            loss = engine.forward_backward(batch)
        return loss, floating(scales)
    if isinstance(engine, CudaEngine):
        return on_gpu(engine, batch)
    from crepe_dist.distributed.mxnet_internals import structural_parameters
    from crepe_dist.engines.gluon_engine import GluonEngine

    assert isinstance(engine, GluonEngine)
    loss = engine.forward_backward(batch).asscalar()
    named = structural_parameters(engine.network)
    return float(loss), {name: parameter.grad().asnumpy() for name, parameter in named.items()}


def answers(engine: Engine, batch: Batch) -> np.ndarray:
    """Return the logits of a batch."""
    engine.load_weights()
    return engine.logits(batch)


def learnt(engine: Engine, batch: Batch, step: int = 0) -> dict[str, np.ndarray]:
    """Return the loss and the gradients of a batch by name."""
    loss, found = gradients(engine, batch, 1, step)
    return {"loss": np.array([loss], np.float32), **found}


def assert_near(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray], most: float = 1e-5) -> None:
    """Compare arrays by name. ``most`` limits the difference relative to the largest absolute value of the array."""
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert np.abs(got[name] - array).max() <= most * np.abs(array).max(), name


def summed(
    engine: Engine, optimizer: DistributedOptimizer, batch: Batch, next_batch: Batch | None = None
) -> StepResult:
    """Compute and sum the gradients of a batch, as the training loop does."""
    result = optimizer.all_reduce(engine.forward_backward(batch, next_batch), batch)
    while result.needs_recompute:
        result = optimizer.all_reduce(engine.forward_backward(batch, next_batch), batch)
    return result


class TrainingStep:
    """Training step of an engine and its optimizer, as in the training loop."""

    def __init__(self, engine: Engine, optimizer: DistributedOptimizer, seed: int = 0) -> None:
        self.engine, self.optimizer, self.seed = engine, optimizer, seed

    def sum(self, batch: Batch, step: int, next_batch: Batch | None = None) -> StepResult:
        """Sum the gradients of a batch. If there is a next batch, both already have the number of their step."""
        batch = batch if next_batch or batch.step == step else batch.for_step(step, self.seed)
        return summed(self.engine, self.optimizer, batch, next_batch)

    def __call__(self, batch: Batch, step: int, learning_rate: float, next_batch: Batch | None = None) -> StepResult:
        result = self.sum(batch, step, next_batch)
        if result.is_finite:
            self.optimizer.step(batch.global_batch_size, learning_rate)
        return result


def on_gpu(engine: CudaEngine, batch: Batch) -> tuple[float, dict[str, np.ndarray]]:
    """Return the result of ``gradients`` for the CUDA engine."""
    optimizer = engine.create_optimizer(ProcessGroup(), OptimizerOptions(), len(batch.packed))
    result = summed(engine, optimizer, batch)
    arrays = {}
    for name, grad_sum in optimizer.grad_sums.items():
        shape = engine.parameters[name].shape
        is_convolution = len(shape) == 3  # On a GPU, the layout of its gradient is [taps, in, out].
        fixed_point = np.empty(shape[::-1] if is_convolution else shape, np.int32)
        grad_sum.read(fixed_point)
        arrays[name] = (
            (fixed_point.T if is_convolution else fixed_point)
            * (engine.scales.scale_of(name) / engine.grad_scaler.grad_factor)
        ).astype(np.float32)
    return result.loss, arrays


def whole_gradients(engine: CpuEngine) -> FixedPointScales:
    """Let an engine write the gradients of all trained parameters to dense arrays, including those of embeddings."""
    engine.scales = FixedPointScales(engine.parameters)
    engine._optimizer = SharedMemoryOptimizer(ProcessGroup(), OptimizerSpec(OptimizerOptions()), engine.scales)
    return engine.scales


def floating(scales: FixedPointScales) -> dict[str, np.ndarray]:
    """Convert fixed-point gradients to float32."""
    return {
        name: (parameter.grad * scales.scale_of(name)).astype(np.float32)
        for name, parameter in scales.parameters.items()
        if parameter.grad is not None
    }
