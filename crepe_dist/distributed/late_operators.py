"""Import of MXNet that leaves for later what a run may never need.

``import mxnet`` writes and compiles 3,200 functions, of which a run calls a few dozen: each operator's is compiled at
its first call. The two private functions of ``mxnet.base`` that make them were checked with MXNet 1.9.1. The modules
``LATE``, and those that they import, take a third of the rest: they are loaded at their first use.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

LATE = ("mxnet.contrib.onnx", "mxnet.contrib.text", "requests")
DISTUTILS = "distutils"
SHIM = "DistutilsMetaFinder"  # of setuptools, which takes 0.1 s to import: MXNet compares two versions


def import_mxnet() -> None:
    """Import MXNet, unless it is imported. Its operators have neither a docstring nor a signature of their own."""
    spec = None if "mxnet" in sys.modules else importlib.util.find_spec("mxnet")
    if spec is None or spec.loader is None:
        importlib.import_module("mxnet")
        return
    package = sys.modules["mxnet"] = importlib.util.module_from_spec(spec)
    try:
        base: Any = importlib.import_module("mxnet.base")  # the other modules take the functions from it
        for name in ("_init_op_module", "_init_np_op_module"):
            setattr(base, name, _making_late(getattr(base, name)))
        with _loading_late():
            spec.loader.exec_module(package)
    except BaseException:
        del sys.modules["mxnet"]
        raise


class _LateFinder:
    """Finder of ``LATE`` modules, which are loaded when an attribute is first read."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in LATE else None
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


@contextmanager
def _loading_late() -> Iterator[None]:
    """Load ``LATE`` modules late within the block, and take ``distutils`` from Python's own library."""
    before, had_distutils = sys.meta_path[:], DISTUTILS in sys.modules
    others = [finder for finder in before if type(finder).__name__ != SHIM]
    sys.meta_path[:] = [_LateFinder, *others]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(The )?distutils ", category=DeprecationWarning)
            yield
    finally:
        sys.meta_path[:] = before
        if not had_distutils:  # setuptools warns if it is imported later
            for name in [name for name in sys.modules if name.partition(".")[0] == DISTUTILS]:
                del sys.modules[name]


def _making_late(make_all: Callable[..., None]) -> Callable[..., None]:
    """Change a function that makes operators: what it is given to make one waits for the operator's first call."""
    signature = inspect.signature(make_all)

    def late(make: Callable[..., Callable[..., Any]], *operator: Any) -> Callable[..., Any]:
        made = functools.cache(lambda: make(*operator))

        def function(*arguments: Any, **settings: Any) -> Any:
            return made()(*arguments, **settings)

        _, _, function.__name__ = operator  # its handle, the library's name of it, and Python's
        function.__qualname__ = function.__name__
        function.__doc__ = ""
        return function

    @functools.wraps(make_all)
    def make_all_late(*arguments: Any, **settings: Any) -> None:
        call = signature.bind(*arguments, **settings)
        call.arguments["make_op_func"] = functools.partial(late, call.arguments["make_op_func"])
        make_all(*call.args, **call.kwargs)

    return make_all_late
