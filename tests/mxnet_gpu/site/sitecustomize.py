"""Start-up of a Python whose PYTHONPATH has this folder: it sees GPUs that are none (``tests.mxnet_gpu.stand_in``).

MXNet and Horovod are changed when they are imported, in any process that inherits the environment. The commands of
the package and those that they start need no launcher for the tests.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MODULES = {"mxnet", "horovod.common.basics"}


class Changed:
    """Finder of the two modules: their own loader, and the change after it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in MODULES:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            stand_in = importlib.import_module("tests.mxnet_gpu.stand_in")
            stand_in.change(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Changed())
os.environ.setdefault("DRIVER_GPUS", "2")  # a supervisor passes on no variable of the driver's stand-in
