"""Inference without MXNet: NumPy equals our kernels, and our kernels equal those of training, bit for bit."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

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
    monkeypatch.setenv(library.KERNELS_ENV, library.NONE)  # n-grams are found by NumPy, too
    found = open_inference(shape, arrays, choose_for_inference(shape))
    assert isinstance(found, NumpyInferenceEngine)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found.logits(codes), expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(found, "_rows", 5)  # in several parts
    np.testing.assert_allclose(found.logits(codes), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", BUILDS)
def test_the_kernels_equal_those_of_training_bit_for_bit(name, shape):
    """Whatever documents share a batch; training scores some hundreds at a time."""
    arrays, codes, native = varied(shape).values, some_codes(shape, 23), Library(name)
    parameters = {name: Parameter(array) for name, array in arrays.items()}
    for precision in ("float32", "bfloat16") if shape.is_matmul_bound else ("float32",):
        backend = Backend(precision, native, "")
        batch = pack_batch(codes, np.zeros(len(codes), np.int32), 32, len(codes))
        expected = create_engine(shape, parameters, backend).logits(batch)[: len(codes)]
        inference = CpuInferenceEngine(shape, arrays, backend)
        np.testing.assert_array_equal(inference.logits(codes), expected)
        apart = [inference.logits(codes[row : row + 1]) for row in range(len(codes))]
        np.testing.assert_array_equal(np.concatenate(apart), expected)
        assert inference.logits(codes[:0]).shape == (0, shape.num_classes)


@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("numbers", [0, -1, 1, 2, 3, 4, 8])  # in a byte; 0: float16, -1: float32
def test_tables_are_read_as_stored(name, shape, numbers, monkeypatch):
    monkeypatch.setattr(quantization, "SAMPLE", 1 << 8)
    generator, packed = np.random.default_rng(2), {quantization.MARK: np.array([quantization.VERSION])}
    for each, array in varied(shape).values.items():
        kept = generator.random(len(array)) < 0.7
        if each in shape.sparse_parameters and numbers > 0:
            packed |= quantization.product_quantize(each, array, min(numbers, array.shape[1]), kept)
        elif each in (*shape.sparse_parameters, *shape.buffers):
            rounded = array if numbers else array.astype(np.float16).astype(np.float32)
            packed |= quantization.drop_zero_rows(each, np.where(kept.reshape(-1, *[1] * (array.ndim - 1)), rounded, 0))
        else:
            packed[each] = array
    arrays, codes = weights_io.validate_compressed(quantization.group_compressed(packed), shape), some_codes(shape, 23)
    stored, whole = (
        CpuInferenceEngine(shape, given, Backend("float32", Library(name), "")).logits(codes)
        for given in (arrays, {each: quantization.decompress(array) for each, array in arrays.items()})
    )
    np.testing.assert_array_equal(stored.view(np.uint32), whole.view(np.uint32))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads_that_share_an_engine_get_the_same_bits(shape):
    engine = open_inference(shape, varied(shape).values, choose_for_inference(shape))
    engine.threads = 3
    some = [some_codes(shape, rows) for rows in (1, 9, 1, 70, 200, 3)]
    expected = list(map(engine.logits, some))
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for got, alone in zip(pool.map(engine.logits, some), expected):
                np.testing.assert_array_equal(got, alone)


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
