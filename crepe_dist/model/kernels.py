"""A network opened in our own kernels (``crepe_dist/native``)."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from crepe_dist import registry
from crepe_dist.model.precision import Plan
from crepe_dist.model.shape import Shape


class Kernels:
    """A network opened in our own kernels, without parameters.

    Args:
        number: number of threads.

    Attributes:
        lock: held during a call, since each call uses all threads.

    Raises:
        MemoryError: There is not enough memory.
    """

    def __init__(self, shape: Shape, plan: Plan, number: int) -> None:
        assert plan.library is not None
        self._functions = plan.library.functions
        binding = registry.part(shape.kind, "kernels")
        self._handle = binding.open_network(self._functions, shape, plan.precision, number)
        _check(self._handle is None)
        self.lock = threading.Lock()
        weakref.finalize(self, self._functions.crepe_close, self._handle)

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the library on this network."""
        _check(getattr(self._functions, function)(self._handle, *arguments))


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("there is not enough memory for the network and this batch")
