"""Our binding of the NVIDIA driver, on a stand-in that runs kernels on the processor."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from crepe_dist.cuda import compiler, driver, gpu
from crepe_dist.training.guards import is_out_of_memory
from tests.helpers import cuda_emulator
from tests.helpers.needs import needs

pytestmark = needs("g++")
NUMBER = {"FACTOR": 2}
# Opens a GPU and loads the kernels; an error is printed as a command prints it.
OPEN = """
import os, sys
import numpy as np
from crepe_dist.cuda import compiler, gpu
from crepe_dist.errors import UserError
from tests.helpers import cuda_emulator
try:
    device = gpu.Gpu(0)
    probe = gpu.Module(device, compiler.compiled("probe.cu", {"FACTOR": 2}, device.capability, cuda_emulator.FOLDER))
    memory = device.allocate(400)
    array = np.zeros(100, np.int32)
"""
CAUGHT = """
except (UserError, MemoryError) as error:
    print(error)
"""


@pytest.fixture(scope="module")
def device():
    with cuda_emulator.used():
        yield gpu.Gpu(0)


@pytest.fixture(scope="module")
def probe(device):
    return gpu.Module(device, compiler.compiled("probe.cu", NUMBER, device.capability, cuda_emulator.FOLDER))


def said(lines: str, **told: object) -> str:
    """Return what a process prints that opens a GPU and then does these lines."""
    code = OPEN + "".join(f"    {line}\n" for line in lines.splitlines()) + CAUGHT
    environment = cuda_emulator.environment(**told)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True, timeout=200
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.stdout


def read(memory, dtype):
    array = np.empty(memory.size // np.dtype(dtype).itemsize, dtype)
    memory.read(array)
    return array


# ---- kernels


def test_a_kernel_computes_what_it_says(device, probe):
    memory = device.allocate(4000)
    memory.write(np.ones(1000, np.float32))
    probe.function("add_index")(8, 128, memory, 1000, 0.5)
    assert np.array_equal(read(memory, np.float32), 1 + np.arange(1000, dtype=np.float32))


def test_barriers_shuffles_shared_memory_and_atomics(device, probe):
    numbers = np.random.default_rng(0).integers(-(1 << 31), 1 << 31, 100_003).astype(np.int32)
    given, total, most = device.allocate(numbers.nbytes), device.allocate(8), device.allocate(4)
    given.write(numbers)
    probe.function("add_all")(50, 256, given, len(numbers), total, most, shared=64)
    assert read(total, np.int64)[0] == numbers.astype(np.int64).sum()
    assert read(most, np.int32)[0] == numbers.max()


def test_conversions_are_those_of_cuda(device, probe):
    given = np.array([0.5, 1.5, -2.5, 1e30, -1e30, np.nan, np.inf, 3e9], np.float32)
    memory, whole = (device.allocate(4 * len(given)) for _ in range(2))
    memory.write(given)
    probe.function("numbers_of")(1, 32, memory, len(given), whole)
    largest, smallest = (1 << 31) - 1, -(1 << 31)
    assert read(whole, np.int32).tolist() == [0, 2, -2, largest, smallest, 0, largest, largest]


@pytest.mark.parametrize(
    ("mistake", "error", "what"),
    [
        (1, "ILLEGAL_ADDRESS (700)", "reads or writes where it may not: byte 512 of an allocation of 400"),
        (2, "ILLEGAL_ADDRESS (700)", "wrote beside an allocation of 400 bytes"),
        (3, "ILLEGAL_ADDRESS (700)", "thread (7, 0, 0) reads or writes where it may not: address 0x10"),
        (4, "LAUNCH_FAILED (719)", "63 threads wait at __syncthreads"),
        (5, "LAUNCH_FAILED (719)", "31 at an operation of a warp"),
        (6, "LAUNCH_FAILED (719)", "an operation of a part of a warp"),
    ],
)
def test_the_emulator_finds_mistakes_of_kernels(mistake, error, what):
    lines = f'probe.function("go_wrong")(2, 64, memory, 100, {mistake})\nmemory.read(array)'
    shown = said(lines)
    assert what in shown
    assert f"CUDA_ERROR_{error}" in shown
    assert "why: a kernel failed" in shown


# ---- memory


def test_memory_is_zero_at_first_and_freed_with_its_last_view(device):
    gc.collect()
    before = device.memory()
    memory = device.allocate(1 << 20)
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


def test_an_array_may_be_changed_as_soon_as_it_was_written(device):
    memory = device.allocate(4 * 64 * 100)
    array = np.empty(64, np.int32)
    for turn in range(100):
        array[:] = turn
        memory.view(256 * turn, 256).write(array)
        array[:] = -1
    assert np.array_equal(read(memory, np.int32), np.repeat(np.arange(100), 64))


def test_large_and_strided_arrays_are_written(device):
    array = np.arange(3 << 20, dtype=np.int32)
    memory = device.allocate(array.nbytes)
    memory.write(array)
    assert np.array_equal(read(memory, np.int32), array)
    memory.write(array[::2])
    assert np.array_equal(read(memory.view(0, array.nbytes // 2), np.int32), array[::2])
    memory.view(4, 8).clear()
    assert read(memory.view(0, 16), np.int32).tolist() == [0, 0, 0, 6]


def test_bytes_outside_of_memory_are_refused(device):
    memory = device.allocate(16)
    for wrong in (
        lambda: memory.view(8, 9),
        lambda: memory.view(-1, 4),
        lambda: memory.write(np.zeros(5, np.int32)),
        lambda: memory.read(np.zeros(5, np.int32)),
    ):
        with pytest.raises(ValueError, match="are not within 16"):
            wrong()
    with pytest.raises(ValueError, match="contiguous"):
        memory.read(np.zeros((4, 2), np.int16)[:, 0])


def test_a_full_gpu_says_what_was_wanted(device, monkeypatch):
    monkeypatch.setenv("DRIVER_MEMORY", str(1 << 20))
    with pytest.raises(
        MemoryError, match=r"GPU 0 \(GPU of a test\) is out of memory: 2,097,152 bytes wanted"
    ) as caught:
        device.allocate(2 << 20)
    assert is_out_of_memory(caught.value)


def test_other_threads_use_the_same_gpu(device, probe):
    memory = device.allocate(400)
    array = np.empty(100, np.float32)

    def use():
        memory.write(np.zeros(100, np.float32))
        probe.function("add_index")(1, 128, memory, 100, 1.0)
        memory.read(array)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert np.array_equal(array, 2 * np.arange(100))


# ---- calls


def test_parameters_must_have_the_sizes_of_the_kernel(device, probe):
    memory = device.allocate(16)
    add = probe.function("add_index")
    with pytest.raises(TypeError, match=r"add_index takes parameters of \[8, 4, 4\] bytes, not \[8, 4\]"):
        add(1, 32, memory, 4)
    with pytest.raises(TypeError, match=r"not \[8, 8, 4\]"):
        add(1, 32, memory, ctypes.c_int64(4), 1.0)
    with pytest.raises(OverflowError, match="2147483648 does not fit"):
        add(1, 32, memory, 1 << 31, 1.0)
    add(1, 32, None, 0, np.float32(1))
    add(1, 32, memory, np.int64(4), ctypes.c_float(1))
    assert read(memory, np.float32).tolist() == [0, 2, 4, 6]


def test_a_driver_that_does_not_tell_the_sizes_is_believed(device, probe, monkeypatch):
    def function(name):
        if name == "cuFuncGetParamInfo":
            raise AttributeError(name)
        return genuine(name)

    genuine = driver.function
    monkeypatch.setattr(driver, "function", function)
    memory = device.allocate(16)
    probe.function("add_index")(1, 32, memory, 4, 1.0)
    assert read(memory, np.float32).tolist() == [0, 2, 4, 6]


def test_much_shared_memory_is_asked_for(device, probe, monkeypatch):
    numbers, total, most = device.allocate(400), device.allocate(8), device.allocate(4)
    add = probe.function("add_all")
    add(1, 32, numbers, 100, total, most, shared=99 << 10)
    device.wait()
    with pytest.raises(gpu.UserError, match="cuFuncSetAttribute: CUDA_ERROR_INVALID_VALUE"):
        add(1, 32, numbers, 100, total, most, shared=(99 << 10) + 1)


def test_empty_grids_are_left_out(device, probe):
    memory = device.allocate(400)
    add = probe.function("add_index")
    add(0, 32, memory, 100, 1.0)
    add((2, 0), 32, memory, 100, 1.0)
    assert not read(memory, np.float32).any()


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ('probe.function("add_index")(1, 1025, memory, 100, 1.0)', "blocks of 1025 × 1 × 1 threads"),
        ('probe.function("add_index")((1, 65536), 32, memory, 100, 1.0)', "a grid of 1 × 65536 × 1 blocks"),
        ('probe.function("missing")', "cuModuleGetFunction: CUDA_ERROR_NOT_FOUND"),
        ('probe.function("add_index")(1, 32, gpu.Memory(device, array.ctypes.data, 400), 100, 1.0)', "is no memory of"),
        (
            "gpu.Memory(device, memory.address, 500).clear()\nmemory.read(array)",
            "bytes 0 to 500 of an allocation of 400",
        ),
        ("other = gpu.Gpu(1)\ngpu.Memory(other, memory.address, 400).clear()", "it is memory of another GPU"),
    ],
)
def test_the_emulator_finds_mistakes_of_calls(call, what):
    shown = said(f"{call}\ndevice.wait()", DRIVER_GPUS=2)
    assert what in shown
    assert "error: GPU" in shown


# ---- errors


def test_a_machine_without_a_driver_is_told(tmp_path):
    code = OPEN + CAUGHT
    environment = {**cuda_emulator.environment(), "LD_LIBRARY_PATH": str(tmp_path)}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, stdout=-1, text=True, check=True).stdout
    assert shown.startswith("error: no NVIDIA driver was found\n  why: libcuda.so.1: cannot open shared object file")
    assert "525.60.13 or later" in shown


def test_an_old_driver_is_told():
    assert said("", DRIVER_VERSION=11080) == (
        "error: the NVIDIA driver is too old: it is for CUDA 11.8\n"
        "  why: our kernels are compiled for CUDA 12\n"
        "  do:  install the NVIDIA driver 525.60.13 or later, or compute without it: --device cpu\n"
    )


@pytest.mark.parametrize(
    ("told", "what", "why"),
    [
        ({"DRIVER_GPUS": 0}, "GPU 0 cannot be used: cuInit: CUDA_ERROR_NO_DEVICE (100)", "finds no GPU"),
        ({"DRIVER_FAILS": 34}, "cuInit: CUDA_ERROR_STUB_LIBRARY (34)", "stub of the CUDA toolkit"),
        ({"DRIVER_FAILS": 802}, "cuInit: CUDA_ERROR_SYSTEM_NOT_READY (802)", "not ready yet"),
        ({"DRIVER_FAILS": 803}, "cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)", "the driver was updated"),
        ({"DRIVER_FAILS": 999}, "cuInit: CUDA_ERROR_UNKNOWN (999)", "a GPU that was lost"),
        ({"DRIVER_FAILS": 12345}, "cuInit: unknown error (12345)", "a bug"),
        (
            {"EMULATOR_FAILS": "cuDevicePrimaryCtxRetain=46"},
            "GPU 0 (GPU of a test) cannot be used: cuDevicePrimaryCtxRetain: CUDA_ERROR_DEVICE_UNAVAILABLE (46)",
            "another process has it for itself",
        ),
        ({"EMULATOR_FAILS": "cuModuleLoadData=222"}, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)", "cannot load the"),
        ({"EMULATOR_FAILS": "cuStreamCreate=214"}, "CUDA_ERROR_ECC_UNCORRECTABLE (214)", "a fault of the GPU"),
    ],
)
def test_a_gpu_that_cannot_be_opened_is_told(told, what, why):
    first, second, third = said("", **told).splitlines()
    assert first.startswith("error: ")
    assert what in first
    assert second.startswith("  why: ")
    assert why in second
    assert third.startswith("  do:  ")


def test_a_lost_gpu_stays_lost():
    lines = """
for _ in range(2):
    try:
        device.wait()
    except UserError as error:
        print(error.what, int(error.code))
"""
    assert said(lines, EMULATOR_FAILS="cuStreamSynchronize=719@1") == (
        "GPU 0 (GPU of a test) cannot be used: cuStreamSynchronize: CUDA_ERROR_LAUNCH_FAILED (719) 70\n" * 2
    )


def test_out_of_memory_passes(tmp_path):
    lines = """
try:
    device.allocate(100)
except MemoryError as error:
    print(error)
device.allocate(100)
"""
    shown = said(lines, EMULATOR_FAILS="cuMemAlloc_v2=2@2")
    assert shown.startswith("GPU 0 (GPU of a test) is out of memory: 100 bytes wanted, ")
    assert shown.count("\n") == 1


def test_a_forked_process_cannot_use_its_parents_gpu():
    lines = """
if child := os.fork():
    os.waitpid(child, 0)
    memory.read(array)
    print("parent")
else:
    try:
        memory.read(array)
    except UserError as error:
        print(error.why)
    del memory
    sys.exit()
"""
    shown = said(lines).splitlines()
    assert [line for line in shown if "emulator" not in line] == [
        "the process was forked from one that uses the GPU",
        "parent",
    ]


def test_questions_without_a_context():
    code = "from crepe_dist.cuda.driver import *; print(driver_version(), count(), compute_capability(1), name_of(1))"
    told = cuda_emulator.environment(DRIVER_GPUS=2, DRIVER_CAPABILITY="9.0")
    done = subprocess.run([sys.executable, "-c", code], env=told, stdout=-1, text=True, check=True)
    assert done.stdout == "(12, 4) 2 (9, 0) GPU of a test\n"
    told = {**told, "LD_LIBRARY_PATH": os.devnull}
    done = subprocess.run([sys.executable, "-c", code], env=told, stdout=-1, text=True, check=True)
    assert done.stdout == "None 0 None \n"
