"""Start-up of a Python whose PYTHONPATH has this folder: MXNet's contexts on the CPU say that they are GPUs.

What it is good for. Code that asks for the kind of a device takes its GPU branch: choice of the device, precision and
engine, trainer, memory, messages. MXNet is given ``cpu(k + 1)`` for ``gpu(k)``, a place of its own: a compiled graph
whose inputs lie partly on the host, ``cpu(0)``, is an error, as it is on a GPU.

What it does not show. Nothing of CUDA, cuDNN, cuBLAS or NCCL runs: not their speed, memory, order of additions, random
numbers or errors, no stream, and no overlap. The driver is that of ``tests.helpers.cuda_emulator``.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import Any

FIRST = 1  # cpu(FIRST) stands in for gpu(0)


class Changed(PathFinder):
    """Finder of modules that changes MXNet after its import."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = super().find_spec(name, path, target)
        if name == "mxnet" and spec is not None and spec.loader is not None:
            from crepe_dist.distributed import mxnet_cuda

            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                if mxnet_cuda.is_installed():
                    change(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def change(mx: Any) -> None:
    from crepe_dist.cuda import driver

    class Device(mx.Context):  # type: ignore[misc]
        """Context that is ``cpu(FIRST + number)`` for MXNet's library, and ``gpu(number)`` for all other code."""

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
    devices = {number: Device(number - FIRST) for number in range(FIRST, FIRST + driver.gpu_count())}

    def context(array: Any) -> Any:
        found = plain(array)
        return devices.get(found.device_id, found)

    mx.nd.NDArray.context = property(context)
    listed = mx.runtime.feature_list
    mx.runtime.feature_list = lambda: [*listed(), SimpleNamespace(name="CUDA", enabled=True)]
    for module in (mx, mx.context):
        module.gpu = Device
        module.num_gpus = driver.gpu_count


sys.meta_path[:] = [Changed if finder is PathFinder else finder for finder in sys.meta_path]
