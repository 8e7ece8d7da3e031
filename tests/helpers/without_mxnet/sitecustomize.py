"""Start-up of a Python whose PYTHONPATH has this folder: neither MXNet nor Horovod is installed there."""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

MISSING = {"mxnet", "horovod"}


class WithoutThem(PathFinder):
    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None if name.partition(".")[0] in MISSING else super().find_spec(name, path, target)


sys.meta_path[:] = [WithoutThem if finder is PathFinder else finder for finder in sys.meta_path]
