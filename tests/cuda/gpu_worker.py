"""Program of ``test_cuda_driver.py``: opens a GPU and does what the argument names: ``python gpu_worker.py ACTION``.

An error of opening the GPU is printed as a command prints it.
"""

import hashlib
import os
import sys
import threading
from typing import Any
from unittest import mock

import numpy as np

from crepe_dist.cuda import compiler, gpu
from crepe_dist.errors import UserError
from tests.helpers import cuda_emulator


def load_probe(device: gpu.Gpu) -> tuple[bytes, gpu.CudaModule]:
    compiler.KERNELS = cuda_emulator.FOLDER
    image = compiler.compile_cached("probe.cu", {"FACTOR": 2}, device.capability)
    return image, gpu.CudaModule(device, image, compiler.parameters())


def open_only(device: gpu.Gpu, memory: gpu.DeviceBuffer) -> None:
    """Do nothing after the GPU has been opened."""


def compile_and_launch(device: gpu.Gpu, memory: gpu.DeviceBuffer) -> None:
    """Print the checksum of the compiled kernels and the sum of what they compute."""
    image, module = load_probe(device)
    module.launch("add_index", 4, 32, memory, 100, 1.0)
    array = np.empty(100, np.float32)
    memory.read(array)
    print(hashlib.sha256(image).hexdigest(), array.sum())


def launch_three_times(device: gpu.Gpu, memory: gpu.DeviceBuffer) -> None:
    """Print the outcome of each of three launches."""
    _, module = load_probe(device)
    for _ in range(3):
        try:
            module.launch("add_index", 1, 32, memory, 32, 1.0)
            print("launched")
        except UserError as error:
            print(error.what.split("(")[-1].strip(")"))


def free_in_a_thread(device: gpu.Gpu, memory: gpu.DeviceBuffer) -> None:
    """Free memory in another thread, and print what cannot be raised there."""
    sys.unraisablehook = lambda given: print(given.exc_value)
    thread = threading.Thread(target=[device.allocate(8)].clear)
    thread.start()
    thread.join()
    print("nothing raised")


def count_page_locked(device: gpu.Gpu, memory: gpu.DeviceBuffer) -> None:
    """Print how often page-locked memory is allocated and freed, and the driver's last call."""
    function, called = gpu.driver.function, list[str]()

    def record(name: str) -> Any:
        called.append(name)
        return function(name)

    with mock.patch.object(gpu.driver, "function", record):
        other = gpu.Gpu(0)
        other.allocate(8).write(np.zeros(2, np.int32))
        del other
    print(called.count("cuMemHostAlloc"), called.count("cuMemFreeHost"), called[-1])


def fork(device: gpu.Gpu, memory: gpu.DeviceBuffer) -> None:
    """Use the GPU in a forked process, then in its parent."""
    if child := os.fork():
        os.waitpid(child, 0)
        memory.read(np.zeros(100, np.int32))
        print("parent")
        return
    try:
        memory.read(np.zeros(100, np.int32))
    except UserError as error:
        print(error.why)
    del memory
    sys.exit()


ACTIONS = (open_only, compile_and_launch, launch_three_times, free_in_a_thread, count_page_locked, fork)


def main() -> None:
    try:
        device = gpu.Gpu(0)
        memory = device.allocate(400)
    except UserError as error:
        sys.exit(print(error))
    next(action for action in ACTIONS if action.__name__ == sys.argv[1])(device, memory)


if __name__ == "__main__":
    main()
