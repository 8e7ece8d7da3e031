"""Our binding of the NVIDIA driver and NVRTC, on stand-ins that run kernels on the processor."""

from __future__ import annotations

import numpy as np
import pytest

from crepe_dist.cuda import compiler, gpu
from tests import cuda_emulator
from tests.needs import needs

pytestmark = needs("g++")


@pytest.fixture(scope="module")
def device():
    cuda_emulator.use()
    return gpu.Gpu(0)


@pytest.fixture(scope="module")
def probe(device):
    return device.load(compiler.compiled("probe.cu", {"FACTOR": 2}, device.capability, cuda_emulator.FOLDER))


def test_a_kernel_computes_what_it_says(device, probe):
    memory = device.allocate(4000)
    memory.write(np.ones(1000, np.float32))
    probe.function("add_index")(8, 128, memory, 1000, 0.5)
    read = np.empty(1000, np.float32)
    memory.read(read)
    assert np.array_equal(read, 1 + np.arange(1000, dtype=np.float32))


def test_barriers_shuffles_shared_memory_and_atomics(device, probe):
    numbers = np.random.default_rng(0).integers(-(1 << 31), 1 << 31, 100_003).astype(np.int32)
    given, total, most = device.allocate(numbers.nbytes), device.allocate(8), device.allocate(4)
    given.write(numbers)
    probe.function("add_all")(50, 256, given, len(numbers), total, most, shared=64)
    read, read_most = np.empty(1, np.int64), np.empty(1, np.int32)
    total.read(read)
    most.read(read_most)
    assert (read[0], read_most[0]) == (numbers.astype(np.int64).sum(), numbers.max())
