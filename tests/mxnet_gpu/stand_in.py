"""A GPU that is none: an MXNet context that says ``gpu`` and computes on the CPU.

What it is good for. Code that asks for the kind of a device takes its GPU branch: choice of the device, precision and
engine, Horovod's trainer, optimizer, memory, messages. MXNet is given ``cpu(k + 1)`` for ``gpu(k)``, a place of its
own: a compiled graph whose inputs lie partly on the host, ``cpu(0)``, is an error, as it is on a GPU.

What it does not show. Nothing of CUDA, cuDNN, cuBLAS or NCCL runs: not their speed, memory, order of additions,
random numbers or errors, no stream, and no overlap. Horovod sums with Gloo and never sees memory of a device. The
driver is that of ``tests.helpers.cuda_emulator``, and the packages are those of ``tests.mxnet_gpu.packages``.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

from crepe_dist.cuda import driver as nvidia
from crepe_dist.distributed import cuda

FIRST = 1  # cpu(FIRST) stands in for gpu(0)


def change(module: ModuleType) -> None:
    """Change MXNet, or Horovod's ``common.basics``, after its import, if it is said to be the GPU flavour."""
    if not cuda.is_installed():
        return
    if module.__name__ == "mxnet":
        _contexts(module)
    else:
        module.HorovodBasics.cuda_built = lambda self: True


def _contexts(mx: Any) -> None:
    class Device(mx.Context):  # type: ignore[misc]
        """A context that MXNet's library takes for ``cpu(FIRST + number)``, and everybody else for ``gpu(number)``."""

        def __init__(self, number: int = 0) -> None:
            super().__init__("cpu", FIRST + number)

        @property
        def device_type(self) -> str:
            return "gpu"

        def __str__(self) -> str:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            for_library = caller.startswith("mxnet.") and caller != "mxnet.context"
            return f"cpu({self.device_id})" if for_library else f"gpu({self.device_id - FIRST})"

        __repr__ = __str__

    plain = mx.nd.NDArray.context.fget
    devices = {number: Device(number - FIRST) for number in range(FIRST, FIRST + nvidia.count())}

    def context(array: Any) -> Any:
        found = plain(array)
        return devices.get(found.device_id, found)

    mx.nd.NDArray.context = property(context)
    listed = mx.runtime.feature_list
    mx.runtime.feature_list = lambda: [*listed(), SimpleNamespace(name="CUDA", enabled=True)]
    for module in (mx, mx.context):
        module.gpu = Device
        module.num_gpus = nvidia.count
