"""One square of a matrix product of each layout and type: on a GPU, a tile of its tensor cores."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from crepe_dist.cuda import compiler, gpu
from crepe_dist.cuda.network import PRECISIONS
from crepe_dist.engines.cuda import shared_constants
from crepe_dist.model.backend import OLDEST_WITH_BFLOAT16
from crepe_dist.networks.crepe.cuda import SIDE
from tests.helpers import cuda_emulator
from tests.helpers.needs import needs

SOURCE = Path(__file__).with_name("square.cu")
DEPTH = 2 * SIDE
STORED = {
    "float32": lambda array: array,
    "float16": lambda array: array.astype(np.float16),
    "bfloat16": lambda array: (array.view(np.uint32) >> 16).astype(np.uint16),  # exact for small whole numbers
}


@needs("g++")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_square_is_exact(precision, tmp_path, monkeypatch):
    for path in (SOURCE, *compiler.KERNELS.glob("*.cuh")):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(compiler, "KERNELS", tmp_path)
    sizes = {"SIDE": SIDE, "DEPTH": DEPTH, "PRECISION": PRECISIONS.index(precision)}
    left, right = np.random.default_rng(0).integers(-8, 9, (2, SIDE, DEPTH)).astype(np.float32)
    with cuda_emulator.used():
        device = gpu.Gpu(0)
        if precision == "bfloat16" and device.capability < OLDEST_WITH_BFLOAT16:
            pytest.skip("bfloat16 needs compute capability 8.0")
        image = compiler.compiled(SOURCE.name, {**shared_constants(), **sizes}, device.capability)
        module, found = gpu.Module(device, image, compiler.parameters()), np.empty((SIDE, SIDE), np.float32)
        for kernel, given in (("straight", (left, right)), ("turned", (left.T, right.T))):
            operands = [STORED[precision](np.ascontiguousarray(each)) for each in given]
            *memory, out = (device.allocate(each.nbytes) for each in (*operands, found))
            for each, operand in zip(memory, operands):
                each.write(operand)
            module.launch(kernel, 1, 32, *memory, out, shared=16 << 10)
            out.read(found)
            assert np.array_equal(found, left @ right.T), kernel
