"""The CUDA engine on an emulated GPU computes the same as the CPU engine."""

import itertools
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from crepe_dist.cuda import driver
from crepe_dist.cuda.gpu import DeviceBuffer
from crepe_dist.data.batch import Batch, pack_batch
from crepe_dist.data.targets import MULTILABEL, SOFT
from crepe_dist.distributed.device import Device
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.engines.engine import create_engine
from crepe_dist.model.backend import MIN_COMPUTE_CAPABILITY_BFLOAT16, Backend
from crepe_dist.model.loss import DEFAULT_LOSS, Loss
from crepe_dist.native.constants import PAPER_POOL
from crepe_dist.networks.crepe.config import CrepeConfig
from crepe_dist.networks.ngrams.config import NGramConfig
from crepe_dist.networks.paper import cuda as paper_kernels
from crepe_dist.networks.paper.config import SIZES, PaperConfig
from crepe_dist.optim.fixed_point import OVERFLOW_BOUND
from crepe_dist.parallel.cuda_optimizer import CudaOptimizer
from crepe_dist.settings.options import OptimizerOptions
from tests.chaos.harness import slow
from tests.conftest import needs_kernels
from tests.helpers import cuda_emulator, reference
from tests.helpers.engines import (
    TrainingStep,
    assert_near,
    best,
    gradients,
    sized,
    some_batch,
    some_codes,
    summed,
    varied,
)  # fmt: skip
from tests.helpers.needs import needs
from tests.networks.test_kernels import CREPES

pytestmark = [needs("g++"), needs_kernels]
GPU = Device("gpu", 0)
TABLE = NGramConfig(69, 60, 5, 4, 1 << 12, 36, 1 << 10)


@pytest.fixture(scope="module", autouse=True)
def emulator():
    with cuda_emulator.used():
        yield


@pytest.fixture(params=["8.8", slow("7.1"), slow("9.1")])
def capability(request, monkeypatch) -> None:
    """Compute capability of the emulated GPU. The PTX is for compute_87, compute_70 and compute_90."""
    if request.param != "8.8":
        cuda_emulator.only_stand_ins("DRIVER_CAPABILITY")
    monkeypatch.setenv("DRIVER_CAPABILITY", request.param)


def on_gpu(network, precision="float32", loss=DEFAULT_LOSS):
    if precision == "bfloat16" and driver.compute_capability(0) < MIN_COMPUTE_CAPABILITY_BFLOAT16:
        pytest.skip("bfloat16 needs compute capability 8.0")
    backend = Backend(precision, None, "for a test", architecture="that of the GPU")
    return create_engine(network.shape, network.parameters, backend, loss, GPU)


SHAPES = [TABLE, *CREPES[1::3]]  # Only some, because the compilation of each one takes seconds.
DROPPING = sized(width=20, blocks=3, stride=2, dropout=0.3)
# Lengths after which a max pool omits positions, and widths that are not multiples of those of a tile.
PAPER = PaperConfig(69, 134, 5, 20, 24, 0.3)
# Several pooled positions, which a pool reads to the last one, and dense layers of several tiles.
WIDE_PAPER = PaperConfig(69, 177, 5, 36, 150, 0.3)


def fixed_point_sums(optimizer: CudaOptimizer) -> dict[str, np.ndarray]:
    """Copy the sums of the gradients to the host."""
    arrays = {}
    for name, buffer in optimizer.grad_sums.items():
        arrays[name] = np.empty(buffer.size // 4, np.int32)
        buffer.read(arrays[name])
    return arrays


@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize("shape", [TABLE, slow(SHAPES[1]), *SHAPES[2:], PAPER], ids=str)
def test_logits_and_gradients_equal_the_cpu_engine(shape):
    shape = replace(shape, dropout=0.3) if isinstance(shape, CrepeConfig) else shape
    network, batch = varied(shape), some_batch(shape, 37)
    cpu, gpu = network.opened(best()), on_gpu(network)
    expected_logits = {"network": cpu.logits(batch), "branches": cpu.branch_logits(batch)}
    assert_near({"network": gpu.logits(batch), "branches": gpu.branch_logits(batch)}, expected_logits)
    expected_loss, expected = gradients(cpu, batch, 1, 5)
    loss, grads = gradients(gpu, batch, 1, 5)
    assert abs(loss - expected_loss) <= 1e-5 * expected_loss
    assert_near(grads, expected)


def create_labelled_batch(shape, loss: Loss) -> Batch:
    """Create a batch with the labels and the weights that a loss needs."""
    generator = np.random.default_rng(3)
    pairs = generator.integers(0, 1 << 15, (20, loss.max_labels, 2)).astype("<u2")
    pairs[..., 0] %= shape.num_classes
    weights = (generator.integers(0, 256, (20, 3)) // (1, 1, 128)).astype(np.uint8)
    labels = generator.integers(0, shape.num_classes, 20).astype(np.int32)
    return pack_batch(some_codes(shape, 20), labels, 22, 20, 0, weights, pairs.view(np.uint8).reshape(20, -1))


@pytest.mark.parametrize(("label_type", "max_labels"), [(SOFT, 2), (MULTILABEL, 3)])
@pytest.mark.parametrize("shape", [TABLE, sized(blocks=1), slow(PAPER)], ids=str)
def test_losses_equal_the_cpu_engine(shape, label_type, max_labels):
    loss_function = Loss(0.1, (1.0, 2.0, 3.0, 0.5, 0.1), label_type, max_labels)
    network, batch = varied(shape), create_labelled_batch(shape, loss_function)
    expected_loss, expected = gradients(network.opened(best(), objective=loss_function), batch)
    loss, grads = gradients(on_gpu(network, loss=loss_function), batch)
    assert abs(loss - expected_loss) <= 1e-5 * expected_loss
    assert_near(grads, expected)


def paper(size: str, alphabet: int = 69, length: int = 123) -> PaperConfig:
    return PaperConfig(alphabet, length, 5, *SIZES[size], dropout=0.5)


NARROW, WIDE = (sized(width=width, blocks=2, stride=stride, dropout=0.3) for width, stride in ((20, 2), (32, 1)))


def active_outputs(engine: Any, documents: int) -> dict[str, np.ndarray]:
    """Return which outputs of the paper's network pass its ReLUs and pools, in 16 bits; see ``reference.learnt``."""

    def read(buffer: DeviceBuffer, positions: int, dtype: type) -> np.ndarray:
        array: np.ndarray = np.empty(buffer.size // dtype().itemsize, dtype)
        buffer.read(array)
        return array.reshape(documents, positions, -1)

    (branch,) = engine._branches
    layers = [branch._first, *branch._layers]
    masks: dict[str, np.ndarray] = {}
    for number, layer in enumerate(layers[:-1]):
        if layer.pooled:
            maxima = read(branch._maxima(layer, documents), layer.pooled, np.uint8)[..., : layer.outputs]
            mask = (maxima[:, :, None] == np.arange(PAPER_POOL)[:, None]).reshape(documents, -1, layer.outputs)
            masks[layer.name] = np.pad(mask, ((0, 0), (0, layer.out_positions - mask.shape[1]), (0, 0)))
        else:
            numbers = read(branch._input(number, documents), layer.out_positions, np.uint16)[..., : layer.outputs]
            masks[layer.name] = (numbers[:, 0] if layer.is_dense else numbers) != 0
    return masks


@pytest.mark.parametrize(
    ("precision", "shape", "rows"),
    [
        ("bfloat16", NARROW, 40),
        slow("bfloat16", WIDE, 33),
        slow("float16", NARROW, 40),
        slow("float16", WIDE, 33),
        ("bfloat16", WIDE_PAPER, 19),
        *(slow(precision, paper("tiny"), 8) for precision in ("float32", "float16", "bfloat16")),
        *(slow("float16", paper("tiny"), rows) for rows in (9, 12)),  # A rounding error selects other active outputs.
        *(slow(precision, paper("small"), 11) for precision in ("float16", "bfloat16")),
        slow("bfloat16", paper("small", length=1014), 6),
        slow("bfloat16", paper("tiny", alphabet=254, length=134), 11),
    ],
    ids=str,
)
@pytest.mark.usefixtures("capability")
def test_gradients_equal_a_reference_with_the_same_rounding(precision, shape, rows, monkeypatch):
    """With 16 bits, the relative error is up to 0.005, and 0.3 if a tap of a convolution is missing.

    Rounding errors select some maxima of the paper's network, so its reference uses the engine's active outputs.
    """
    if shape is WIDE_PAPER:  # The depth of a dense layer has several parts, and a block adds several groups.
        monkeypatch.setattr(paper_kernels, "MIN_PART", 48)
        monkeypatch.setattr(paper_kernels, "BLOCKS", 4)
    network, batch = varied(shape), some_batch(shape, rows)
    engine = on_gpu(network, precision)
    loss, grads = gradients(engine, batch, 1, 5)
    rounding: dict[str, Any] = {"precision": precision, "scale": engine.grad_scaler.grad_factor}
    expected_loss, expected = reference.learnt(shape, network.values, batch, seed=1, step=5, **rounding)
    if isinstance(shape, PaperConfig) and precision != "float32":
        rounding["active"] = active = active_outputs(engine, len(batch.packed))
        for name in ("0", "2", "7"):  # The first document is empty, so the positions of a window are equal.
            assert not any(active[name][0, position::PAPER_POOL].any() for position in range(1, PAPER_POOL)), name
        _, expected = reference.learnt(shape, network.values, batch, seed=1, step=5, **rounding)
    most = 1e-5 if precision == "float32" else 0.02
    assert abs(loss - expected_loss) <= 0.05 * most * expected_loss
    for name, array in expected.items():
        assert np.linalg.norm(grads[name] - array) <= most * np.linalg.norm(array), name


@pytest.mark.parametrize("precision", [slow("float32"), "bfloat16"])
@pytest.mark.parametrize(("shape", "cuts"), [(DROPPING, (0, 5, 13, 21)), (PAPER, (0, 8, 16, 21))], ids=str)
def test_sums_are_bit_identical_for_every_division_of_a_batch_and_every_run(precision, shape, cuts, monkeypatch):
    monkeypatch.setenv("EMULATOR_RACES", "1")
    batch, results = some_batch(shape, 20), []
    for parts in [(0, 21), cuts] * (50 if cuda_emulator.is_real() else 1):
        engine = on_gpu(varied(shape), precision)
        optimizer = engine.create_optimizer(ProcessGroup(), OptimizerOptions(), 40)
        sums: dict[str, np.ndarray] = {}
        stats = np.zeros(len(engine.scales.parameters) + 4)
        for first, last in itertools.pairwise(parts):
            engine.scales.load_state_dict(np.full(len(engine.scales.parameters), -18, np.int32))
            shard = batch._replace(packed=batch.packed[first:last], first=batch.first + first).for_step(6, 1)
            stats += optimizer._sum_gradients(engine.forward_backward(shard), (0, 0, 0))[0]
            sums = {name: array + sums.get(name, 0) for name, array in fixed_point_sums(optimizer).items()}
        results.append((stats.tolist(), sums))
    first_stats, first_sums = results[0]
    for run_stats, sums in results[1:]:
        assert run_stats == first_stats
        assert all(np.array_equal(array, first_sums[name]) for name, array in sums.items())
    for name, bound in zip(engine.scales.parameters, first_stats):
        assert 0 < np.abs(first_sums[name]).max() <= bound * engine.scales.bound_unit, name


# All n-grams of a text have the same row of the last embedding table.
EQUAL = [TABLE, sized(blocks=1, stride=2), replace(PAPER, dropout=0.0), replace(sized(blocks=1), embedding_rows=1)]


@pytest.mark.parametrize("shape", EQUAL, ids=str)
def test_sums_of_equal_documents_stay_within_their_bounds(shape, monkeypatch):
    """No documents have larger sums for the same bounds. Bounds are sums over documents, so this holds for any batch.

    The text repeats one character, so that a row of the embedding table occurs at every position.
    """
    monkeypatch.setattr(CrepeConfig, "FEATURE_DROPOUT", 0.0)
    batch = pack_batch(np.zeros((24, shape.feature_len), np.uint8), np.zeros(24, np.int32), 24, 24, 0).for_step(1, 0)
    engine = on_gpu(varied(shape))
    optimizer = engine.create_optimizer(ProcessGroup(), OptimizerOptions(), 24)
    summed(engine, optimizer, batch)
    for (name, sums), bound in zip(fixed_point_sums(optimizer).items(), optimizer._stats[0]):
        most = np.abs(sums.astype(np.int64)).max() / engine.scales.bound_unit
        assert most <= bound < OVERFLOW_BOUND, name
        # Each document's bound is rounded up by at most 1. Only the embedding adds positions with different signs.
        assert most >= 0.99 * bound - 24 or name == "tower.table", name


@pytest.mark.parametrize("shape", [DROPPING, PAPER], ids=str)
def test_gradients_do_not_depend_on_previous_batches(shape):
    """Buffers are reused by larger and by smaller batches."""
    network, batch = varied(shape), some_batch(shape, 9)
    expected, logits = gradients(on_gpu(network), batch), on_gpu(network).logits(batch)
    engine = on_gpu(network)
    for rows in (20, 1):
        gradients(engine, some_batch(shape, rows))
        got = gradients(engine, batch)
        assert got[0] == expected[0]
        assert all(np.array_equal(array, expected[1][name]) for name, array in got[1].items())
        assert np.array_equal(engine.logits(batch), logits)


OPTIMIZERS = [OptimizerOptions(), *(OptimizerOptions(name="sgd", momentum=momentum) for momentum in (0.0, 0.9))]


@pytest.mark.parametrize("options", [OPTIMIZERS[0], slow(OPTIMIZERS[1]), OPTIMIZERS[2]])
@pytest.mark.parametrize("shape", [sized(blocks=1, dropout=0.3), PAPER], ids=str)
def test_training_equals_the_cpu_engine(options, shape):
    trained = []
    for engine in (varied(shape).opened(best()), on_gpu(varied(shape))):
        optimizer = engine.create_optimizer(ProcessGroup(), replace(options, weight_decay=0.0), 40)
        step = TrainingStep(engine, optimizer, 1)
        for number in range(6):
            step(some_batch(shape, 10 + number % 3), number + 1, 0.001)
        optimizer.synchronize()
        trained.append({name: array.copy() for name, array in engine.state_dict().items()})
    expected, values = trained
    initial_values = varied(shape).values
    for name, array in expected.items():
        change = np.abs(array - initial_values[name]).max()
        # Only CPUs round the values of rows to float16 when they read them. This can change the sign of a gradient near
        # 0, and Adam divides by the size of the gradient.
        most, nearly_all = np.quantile(np.abs(values[name] - array), [0.9, 0.99])
        assert most <= 0.03 * change, name
        assert nearly_all <= 0.1 * change, name
        if name in shape.sparse_parameters:
            assert np.array_equal(values[name], values[name].astype(np.float16).astype(np.float32)), name


@pytest.mark.parametrize(
    ("shape", "options"), [(DROPPING, OPTIMIZERS[0]), slow(DROPPING, OPTIMIZERS[2]), (PAPER, OPTIMIZERS[2])], ids=str
)
def test_a_saved_state_continues_exactly(shape, options):
    def create():
        engine = on_gpu(varied(shape))
        optimizer = engine.create_optimizer(ProcessGroup(), options, 40)
        return engine, optimizer, TrainingStep(engine, optimizer, 1)

    engine, optimizer, step = create()
    for number in range(1, 4):
        step(some_batch(shape, 8 + number), number, 0.001)
    values, state = {name: array.copy() for name, array in engine.state_dict().items()}, optimizer.state_dict()
    step(some_batch(shape, 12), 4, 0.001)
    other, restored, resumed = create()
    other.load_state_dict(values)
    restored.load_state_dict(state)
    resumed(some_batch(shape, 12), 4, 0.001)
    for name, array in engine.state_dict().items():
        assert np.array_equal(other.state_dict()[name], array), name
    assert all(np.array_equal(array, restored.state_dict()[name]) for name, array in optimizer.state_dict().items())


@pytest.mark.parametrize(("shape", "launches"), [(sized(blocks=1), 24), (PAPER, 43)], ids=str)
def test_a_step_launches_few_kernels_and_waits_once(shape, launches, monkeypatch):
    engine = on_gpu(varied(shape))
    step = TrainingStep(engine, engine.create_optimizer(ProcessGroup(), OptimizerOptions(), 40))
    step(some_batch(shape, 20), 1, 0.001)  # The first step is repeated until the scales are small enough.
    called = mock.Mock(wraps=driver.function)
    monkeypatch.setattr(driver, "function", called)
    step(some_batch(shape, 20), 2, 0.001)
    calls = [name for (name,), _ in called.call_args_list]
    names = "cuLaunchKernel", "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuMemsetD8Async", "cuStreamSynchronize"
    assert [calls.count(name) for name in names] == [launches, 2, 1, 0, 1]


@pytest.mark.parametrize(
    ("shape", "name", "precision"),
    [
        (sized(blocks=1), "tower.out.bias", "float32"),
        (sized(blocks=1), "tower.convolutions.1.weight", "float32"),
        (sized(blocks=1), "tower.convolutions.1.weight", "bfloat16"),
        (PAPER, "14.bias", "bfloat16"),
    ],
    ids=str,
)
def test_non_finite_gradients_and_losses_are_reported(shape, name, precision):
    """The NaN has all bits set, as on GPUs."""
    network = varied(shape)
    network.values[name].view(np.int32).flat[0] = 0x7FFFFFFF
    engine = on_gpu(network, precision)
    values = {name: array.copy() for name, array in engine.state_dict().items()}
    step = TrainingStep(engine, engine.create_optimizer(ProcessGroup(), OptimizerOptions(), 40))
    result = step(some_batch(network.shape, 20), 1, 0.001)
    assert result.nonfinite_grad_ranks
    assert bool(result.nonfinite_loss_ranks) == name.endswith("bias")
    assert all(np.array_equal(array, values[name], equal_nan=True) for name, array in engine.state_dict().items())


def test_buffers_that_grow_are_freed_first(monkeypatch):
    gpu = on_gpu(varied(DROPPING))
    device, free = gpu._program.gpu, []
    monkeypatch.setattr(
        DeviceBuffer, "clear", lambda memory: free.append(device.memory()[0])
    )  # Called after each allocation.
    for rows in (4, 16):
        gpu.logits(some_batch(DROPPING, rows))
    assert min(free) == device.memory()[0]
