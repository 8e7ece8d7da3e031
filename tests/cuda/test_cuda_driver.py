"""Our binding of the NVIDIA driver, on a stand-in that runs kernels on the processor."""

import gc
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from crepe_dist.cuda import compiler, gpu
from crepe_dist.cuda.branch import PRECISIONS
from crepe_dist.engines.cuda_engine import shared_constants
from crepe_dist.model.backend import MIN_COMPUTE_CAPABILITY_BFLOAT16
from crepe_dist.networks.crepe.cuda import SIDE
from tests.helpers import cuda_emulator
from tests.helpers.needs import needs
from tests.helpers.programs import program

pytestmark = needs("g++")
STORED = {
    "float32": lambda array: array,
    "float16": lambda array: array.astype(np.float16),
    "bfloat16": lambda array: (array.view(np.uint32) >> 16).astype(np.uint16),  # Exact for small integers.
}


@pytest.fixture(scope="module")
def device():
    with cuda_emulator.used():
        yield gpu.Gpu(0)


def loaded(device, folder, name, **constants):
    """Compile and load kernels of a folder outside the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "KERNELS", folder)
        return gpu.CudaModule(
            device, compiler.compile_cached(name, constants, device.capability), compiler.parameters()
        )


@pytest.fixture(scope="module")
def probe(device):
    return loaded(device, cuda_emulator.FOLDER, "probe.cu", FACTOR=2)


def said(action: str, **told: object) -> str:
    """Run an action of ``gpu_worker.py`` on a GPU, and return the output."""
    arguments, environment = program("cuda/gpu_worker.py", action), cuda_emulator.environment(**told)
    return subprocess.run(arguments, env=environment, stdout=-1, text=True, timeout=200, check=True).stdout


def read(memory, dtype):
    array = np.empty(memory.size // np.dtype(dtype).itemsize, dtype)
    memory.read(array)
    return array


# ---- kernels


def test_a_kernel_computes_what_it_says(device, probe):
    memory = device.allocate(4000)
    memory.write(np.ones(1000, np.float32))
    probe.launch("add_index", 8, 128, memory, 1000, 0.5)
    assert np.array_equal(read(memory, np.float32), 1 + np.arange(1000, dtype=np.float32))
    probe.launch("add_index", 1, 32, memory, np.int64(2), 3)  # An integer is passed for a float.
    assert read(memory, np.float32)[:3].tolist() == [1, 8, 3]
    probe.launch("add_index", 1, 32, None, 0, np.float32(1))


def test_warps_and_blocks_add_and_numbers_are_rounded(device, probe):
    """Test shuffles, barriers, shared memory and 64-bit atomics. Numbers are rounded to even; NaN becomes 0."""
    numbers = np.random.default_rng(0).integers(-(1 << 31), 1 << 31, 5000).astype(np.int32)
    memory, total, most = (device.allocate(size) for size in (numbers.nbytes, 8, 4))
    memory.write(numbers)
    most.write(np.array([-(1 << 31)], np.int32))
    probe.launch("add_all", 7, 256, memory, 5000, total, most, shared=64)
    assert read(total, np.int64)[0] == numbers.sum(dtype=np.int64)
    assert read(most, np.int32)[0] == numbers.max()
    given = np.array([0.5, 1.5, -2.5, 2.4999998, -0.5000001, 1e-40, 3e9, -np.inf, np.nan], np.float32)
    memory.write(given)
    whole = device.allocate(given.nbytes)
    probe.launch("numbers_of", 1, 32, memory, len(given), whole)
    assert read(whole, np.int32).tolist() == [0, 2, -2, 2, -1, 0, (1 << 31) - 1, -(1 << 31), 0]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_square_is_exact(precision, device, tmp_path):
    """A square is one tile of a matrix product. Each layout and type is tested. On a GPU, tensor cores compute it."""
    if precision == "bfloat16" and device.capability < MIN_COMPUTE_CAPABILITY_BFLOAT16:
        pytest.skip("bfloat16 needs compute capability 8.0")
    for path in (Path(__file__).with_name("square.cu"), *compiler.KERNELS.glob("*.cuh")):
        shutil.copy(path, tmp_path)
    depth = 2 * SIDE
    constants = {**shared_constants(), "SIDE": SIDE, "DEPTH": depth, "PRECISION": PRECISIONS.index(precision)}
    module = loaded(device, tmp_path, "square.cu", **constants)
    left, right = np.random.default_rng(0).integers(-8, 9, (2, SIDE, depth)).astype(np.float32)
    out = device.allocate(4 * SIDE * SIDE)
    straight = left, right.T if precision == "float32" else right  # see ``MatrixTile::place``
    for kernel, given in (("straight", straight), ("transposed", (left.T, right.T))):
        memory = [device.allocate(each.nbytes) for each in given]
        for each, operand in zip(memory, given):
            each.write(STORED[precision](np.ascontiguousarray(operand)))
        module.launch(kernel, 1, 32, *memory, out, shared=16 << 10)
        np.testing.assert_array_equal(read(out, np.float32).reshape(SIDE, SIDE), left @ right.T, kernel)


def test_two_processes_fill_a_cold_cache_at_once(tmp_path):
    told = {**cuda_emulator.environment(), "XDG_CACHE_HOME": str(tmp_path), "CUDA_CACHE_PATH": str(tmp_path / "driver")}
    arguments = program("cuda/gpu_worker.py", "compile_and_launch")
    both = [subprocess.Popen(arguments, env=told, stdout=-1, text=True) for _ in range(2)]
    first, second = (process.communicate(timeout=200)[0] for process in both)
    assert first == second
    assert first.split()[1:] == ["9900.0"]
    assert [path.suffix for path in (tmp_path / "crepe_dist" / "cuda").iterdir()] == [".cubin"]


@pytest.mark.parametrize(
    "wrong", [(0, 1.5, 1.0), (1 << 40, 1, 1.0), (0, 1 << 31, 1.0), (0, 1), (0, 1, 1.0, 1)], ids=str
)
def test_arguments_that_do_not_fit_are_refused(device, probe, wrong):
    with pytest.raises(TypeError, match=r"add_index.*; its parameters are 'Pif'"):
        probe.launch("add_index", 1, 32, *wrong)


# ---- memory


def test_memory_is_zero_at_first_and_freed_with_its_last_view(device):
    gc.collect()
    before = device.memory()
    memory = device.allocate(32 << 20)  # Too large for a block that the driver has already allocated.
    assert not read(memory, np.uint8).any()
    view = memory.view(1 << 10, 16)
    del memory
    gc.collect()
    view.write(np.arange(16, dtype=np.uint8))
    assert np.array_equal(read(view, np.uint8), np.arange(16))
    assert device.memory()[0] < before[0]
    del view
    gc.collect()
    assert device.memory() == before


def test_large_and_strided_arrays_are_written(device):
    array = np.arange(3 << 20, dtype=np.int32)
    memory = device.allocate(array.nbytes)
    memory.write(array)
    assert np.array_equal(read(memory, np.int32), array)
    memory.write(array[::2])
    assert np.array_equal(read(memory.view(0, array.nbytes // 2), np.int32), array[::2])
    memory.view(4, 8).clear()
    assert read(memory.view(0, 16), np.int32).tolist() == [0, 0, 0, 6]


def test_a_thread_may_ask_while_another_writes(device, monkeypatch):
    array, memory, function = np.arange(250, dtype=np.int32), device.allocate(1000), gpu.driver.function

    def asked(stream):
        code = function("cuStreamQuery")(stream)
        memory.write(array)  # As another thread would, before this one has recorded the answer.
        return code

    monkeypatch.setattr(gpu, "STAGED_BYTES", 256)
    monkeypatch.setattr(gpu.driver, "function", lambda name: asked if name == "cuStreamQuery" else function(name))
    assert device.is_done()
    memory.write(array[::-1])
    assert np.array_equal(read(memory, np.int32), array[::-1])


def test_bytes_outside_of_memory_are_refused(device):
    memory = device.allocate(16)
    for wrong in (lambda: memory.view(8, 9), lambda: memory.write(np.zeros(5)), lambda: memory.read(np.zeros(5))):
        with pytest.raises(ValueError, match="are not within 16"):
            wrong()


def test_a_full_gpu_says_what_was_wanted(device):
    wanted = device.memory()[1] + 1
    with pytest.raises(MemoryError) as caught:
        device.allocate(wanted)
    assert f"GPU 0 ({device.name}) is out of memory: {wanted:,} bytes wanted" in str(caught.value)


# ---- errors


@pytest.mark.parametrize(
    ("told", "what", "why"),
    [
        ({"DRIVER_VERSION": 11080}, "the NVIDIA driver is too old: it is for CUDA 11.8", "compiled for CUDA 12"),
        ({"DRIVER_GPUS": 0}, "GPU 0 cannot be used: cuInit: CUDA_ERROR_NO_DEVICE (100)", "finds no GPU"),
        (
            {"EMULATOR_FAILS": "cuDevicePrimaryCtxRetain=46"},
            "GPU 0 (GPU of a test) cannot be used: cuDevicePrimaryCtxRetain: CUDA_ERROR_DEVICE_UNAVAILABLE (46)",
            "another process has exclusive use of the GPU",
        ),
        (
            {"EMULATOR_FAILS": "cuStreamCreate=221"},
            "CUDA_ERROR_JIT_COMPILER_NOT_FOUND (221)",
            "cannot load the compiled",
        ),
    ],
)
def test_a_gpu_that_cannot_be_opened_is_told(told, what, why):
    first, second, third = said("open_only", **told).splitlines()
    assert what in first
    assert why in second
    assert third.startswith("  do:  ")


@pytest.mark.parametrize(("code", "told"), [(719, ["719"] * 3), (500, ["500", "launched", "launched"])])
def test_an_error_is_told_by_each_call_while_it_lasts(code, told):
    assert said("launch_three_times", EMULATOR_FAILS=f"cuModuleGetFunction={code}@1").splitlines() == told


def test_memory_that_another_thread_frees_after_an_error_raises_none():
    assert said("free_in_a_thread", EMULATOR_FAILS="cuCtxSetCurrent=700@2") == "nothing raised\n"


def test_page_locked_memory_is_freed_with_its_gpu():
    assert said("count_page_locked") == "1 1 cuDevicePrimaryCtxRelease_v2\n"


def test_a_forked_process_cannot_use_its_parents_gpu():
    assert said("fork").splitlines() == ["the process was forked from one that uses the GPU", "parent"]
