"""Import of MXNet that compiles the Python function of each operator at its first call.

``import mxnet`` writes and compiles 3,200 functions, of which a run calls a few dozen. The two private functions of
``mxnet.base`` that make them were checked with MXNet 1.9.1.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from typing import Any


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
        spec.loader.exec_module(package)
    except BaseException:
        del sys.modules["mxnet"]
        raise


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
