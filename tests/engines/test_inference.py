"""Inference without MXNet: NumPy equals the native kernels, and inference is bit-identical to the training engine."""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from crepe_dist.data.batch import pack_batch
from crepe_dist.engines.engine import create_engine
from crepe_dist.errors import UserError
from crepe_dist.model import quantization, weights_io
from crepe_dist.model.backend import Backend, choose_for_inference
from crepe_dist.model.inference import CpuInferenceEngine, NumpyInferenceEngine, open_inference
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.native import library
from crepe_dist.native.library import Library
from crepe_dist.network_registry import import_network_module
from crepe_dist.networks.crepe.config import CrepeConfig
from crepe_dist.networks.ngrams.config import NGramConfig
from crepe_dist.networks.paper.config import PaperConfig
from crepe_dist.optim.parameter import Parameter
from tests.helpers.engines import some_codes, varied

SHAPES: list[NetworkConfig] = [
    CrepeConfig(69, 61, 5, 4, 1 << 12, 36, 1 << 10, 3, 1 << 10, 32, 1, 1),
    CrepeConfig(69, 60, 3, 4, 1 << 12, 36, 1 << 10, 3, 1 << 10, 20, 3, 2),
    CrepeConfig(254, 47, 40, 7, 1000, 100, 250, 7, 1000, 64, 4, 5),
    CrepeConfig(69, 5, 3, 7, 1000, 36, 250, 7, 1000, 8, 2, 1),
    NGramConfig(69, 60, 4, 5, 1 << 12, 36, 1 << 10),
    PaperConfig(69, 123, 3, 8, 16),
    PaperConfig(254, 331, 40, 48, 33),
]
pytestmark = pytest.mark.usefixtures("every_build")
BUILDS = library.supported_builds()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", BUILDS)
def test_numpy_equals_the_kernels(name, shape, monkeypatch):
    arrays, codes = varied(shape).values, some_codes(shape, 23)
    expected = CpuInferenceEngine(shape, arrays, Backend("float32", Library(name), "")).logits(codes)
    monkeypatch.setenv(library.KERNELS_ENV, library.NONE)  # NumPy also hashes the n-grams.
    engine = open_inference(shape, arrays, choose_for_inference(shape))
    assert isinstance(engine, NumpyInferenceEngine)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(engine.logits(codes), expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(engine, "_rows", 5)  # The documents are computed in several passes.
    np.testing.assert_allclose(engine.logits(codes), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", BUILDS)
def test_inference_is_bit_identical_to_the_training_engine(name, shape):
    """The logits of a document do not depend on the other documents of its batch."""
    arrays, codes, native = varied(shape).values, some_codes(shape, 23), Library(name)
    parameters = {name: Parameter(array) for name, array in arrays.items()}
    for precision in ("float32", "bfloat16") if shape.is_matmul_bound else ("float32",):
        backend = Backend(precision, native, "")
        batch = pack_batch(codes, np.zeros(len(codes), np.int32), 32, len(codes))
        expected = create_engine(shape, parameters, backend).logits(batch)[: len(codes)]
        inference = CpuInferenceEngine(shape, arrays, backend)
        np.testing.assert_array_equal(inference.logits(codes), expected)
        one_by_one = [inference.logits(codes[row : row + 1]) for row in range(len(codes))]
        np.testing.assert_array_equal(np.concatenate(one_by_one), expected)
        assert inference.logits(codes[:0]).shape == (0, shape.num_classes)


@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("numbers", [0, -1, 1, 2, 3, 4, 8])  # Numbers per byte. 0: float16, -1: float32.
def test_compressed_embeddings_are_read_without_decompression(name, shape, numbers, monkeypatch):
    monkeypatch.setattr(quantization, "SAMPLE", 1 << 8)
    generator, packed = np.random.default_rng(2), {quantization.MARK: np.array([quantization.VERSION])}
    for parameter, array in varied(shape).values.items():
        is_kept = generator.random(len(array)) < 0.7
        if parameter in shape.sparse_parameters and numbers > 0:
            packed |= quantization.product_quantize(parameter, array, min(numbers, array.shape[1]), is_kept)
        elif parameter in (*shape.sparse_parameters, *shape.buffers):
            rounded = array if numbers else array.astype(np.float16).astype(np.float32)
            packed |= quantization.drop_zero_rows(
                parameter, np.where(is_kept.reshape(-1, *[1] * (array.ndim - 1)), rounded, 0)
            )
        else:
            packed[parameter] = array
    arrays, codes = weights_io.validate_compressed(quantization.group_compressed(packed), shape), some_codes(shape, 23)
    compressed, decompressed = (
        CpuInferenceEngine(shape, parameters, Backend("float32", Library(name), "")).logits(codes)
        for parameters in (arrays, {key: quantization.decompress(array) for key, array in arrays.items()})
    )
    np.testing.assert_array_equal(compressed.view(np.uint32), decompressed.view(np.uint32))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_engine_is_bit_identical_in_concurrent_threads(shape):
    engine = open_inference(shape, varied(shape).values, choose_for_inference(shape))
    engine.threads = 3
    batches = [some_codes(shape, rows) for rows in (1, 9, 1, 70, 200, 3)]
    expected = list(map(engine.logits, batches))
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for logits, expected_logits in zip(pool.map(engine.logits, batches), expected):
                np.testing.assert_array_equal(logits, expected_logits)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[4], SHAPES[5]], ids=str)
def test_the_sizes_of_a_network_live_while_the_kernels_read_them(shape):
    """Other threads allocate memory during the call, and would overwrite the sizes if these had been freed."""
    binding = import_network_module(shape.kind, "kernels")
    expected = binding.sizes(shape)
    read: list[np.ndarray] = []

    def open_native(*arguments):
        (address,) = [argument for argument in arguments if isinstance(argument, int) and argument > 1 << 20]
        others = [np.full_like(expected, -1) for _ in range(100)]
        read.append(np.array((ctypes.c_int64 * len(expected)).from_address(address)))
        return len(others)

    name = f"crepe_open_{shape.kind}"
    result, arguments = library._FUNCTIONS[name]
    functions = SimpleNamespace(**{name: ctypes.CFUNCTYPE(result, *arguments)(open_native)})  # type: ignore[arg-type]
    binding.open_network(functions, shape, "float32", 1)
    np.testing.assert_array_equal(read, [expected])


def test_wrong_parameters_are_refused():
    shape = SHAPES[4]
    arrays = varied(shape).values
    with pytest.raises(UserError, match="missing or unexpected names: bias"):
        open_inference(shape, {"weight": arrays["weight"]}, choose_for_inference(shape))
    arrays["bias"][0] = np.nan
    with pytest.raises(UserError, match="non-finite"):
        open_inference(shape, arrays, choose_for_inference(shape))


def test_a_forked_child_classifies():
    shape = SHAPES[0]
    engine = CpuInferenceEngine(shape, varied(shape).values, Backend("float32", Library(BUILDS[-1]), ""))
    codes = some_codes(shape, 3)
    expected, (reader, writer) = engine.logits(codes), os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, engine.logits(codes).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, expected.nbytes) == expected.tobytes()
