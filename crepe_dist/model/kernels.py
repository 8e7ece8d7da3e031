"""A network opened in our own kernels (``crepe_dist/native``)."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

from crepe_dist import registry
from crepe_dist.model.shape import Shape
from crepe_dist.native.library import Library, threads


class Kernels:
    """A network opened in our own kernels, without parameters.

    A forked child must open it again, since OpenMP's threads do not survive a fork.

    Args:
        precision: float32 or bfloat16.

    Attributes:
        lock: held during a call, since each call uses all cores.

    Raises:
        MemoryError: There is not enough memory.
    """

    def __init__(self, shape: Shape, library: Library, precision: str) -> None:
        self._shape = shape
        self._precision = precision
        self._functions = library.functions
        self._open(threads())

    def _open(self, number: int) -> None:
        binding = registry.part(self._shape.kind, "kernels")
        handle = binding.open_network(self._functions, self._shape, self._precision, number)
        _check(handle is None)
        self._handle = handle
        self._process = os.getpid()
        self.lock = threading.Lock()
        weakref.finalize(self, self._functions.crepe_close, handle)

    def follow_fork(self) -> bool:
        """Open the network again, with one thread, if this process was forked since; tell whether it was."""
        if self._process == os.getpid():
            return False
        self._open(1)
        return True

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the library on this network."""
        _check(getattr(self._functions, function)(self._handle, *arguments))


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("there is not enough memory for the network and this batch")
