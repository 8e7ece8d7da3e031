"""Engines that compute logits without MXNet: our own kernels where they are compiled, NumPy elsewhere."""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist import registry
from crepe_dist.data.alphabet import Codes
from crepe_dist.data.arrays import Arrays
from crepe_dist.data.batch import Order
from crepe_dist.data.dataset import Split
from crepe_dist.data.loader import share
from crepe_dist.model.backend import Backend
from crepe_dist.model.parameters import check
from crepe_dist.model.shape import Shape
from crepe_dist.native.library import pointers, threads

Floats = npt.NDArray[np.float32]
Logits = Floats
MAX_ACTIVATIONS = 1 << 22  # numbers in the output of one of NumPy's layers; more do not fit into a processor's cache


class Inference(ABC):
    """Interface of the engines for trained parameters.

    Attributes:
        shape: configuration of the network.
        arrays: float32 parameters by structural name.
        backend: precision and kernels.

    Raises:
        UserError: The parameters do not belong to this network, or are not finite.
    """

    def __init__(self, shape: Shape, arrays: Arrays, backend: Backend) -> None:
        check(arrays, shape)
        self.shape = shape
        self.arrays = {name: np.ascontiguousarray(arrays[name], np.float32) for name in shape.parameter_shapes()}
        self.backend = backend

    @abstractmethod
    def logits(self, codes: Codes) -> Logits:
        """Compute logits: uint8 [n, feature_len] → float32 [n, classes]."""

    def scored(
        self, split: Split, batch_size: int, rank: int = 0, size: int = 1
    ) -> Iterator[tuple[Order, npt.NDArray[np.int32], Logits]]:
        """Yield rows, labels and logits of a rank's share of each batch of a split."""
        for start in range(0, len(split), batch_size):
            rows = np.arange(*share(start, min(start + batch_size, len(split)), rank, size))
            yield rows, np.asarray(split.labels[rows]), self.logits(split.codes(rows))


def open_inference(shape: Shape, arrays: Arrays, backend: Backend) -> Inference:
    """Build the engine on the CPU that ``backend`` selects; see ``Inference`` for the arguments."""
    kind = NumpyInference if backend.library is None else KernelInference
    return kind(shape, arrays, backend)


class Kernels:
    """A network opened in our own kernels, without parameters.

    Args:
        number: number of threads.

    Attributes:
        lock: held during a call, since each call uses all threads.

    Raises:
        MemoryError: There is not enough memory.
    """

    def __init__(self, shape: Shape, backend: Backend, number: int) -> None:
        assert backend.library is not None
        self._functions = backend.library.functions
        binding = registry.part(shape.kind, "kernels")
        self._handle = binding.open_network(self._functions, shape, backend.precision, number)
        _check(self._handle is None)
        self.lock = threading.Lock()
        weakref.finalize(self, self._functions.crepe_close, self._handle)

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the library on this network."""
        _check(getattr(self._functions, function)(self._handle, *arguments))


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("there is not enough memory for the network and this batch")


class KernelInference(Inference):
    """Engine on our own kernels. Its logits are bit-identical to those of training on the same build of them.

    A forked child opens the network again, with one thread, because it shares the cores with others.
    """

    def __init__(self, shape: Shape, arrays: Arrays, backend: Backend) -> None:
        super().__init__(shape, arrays, backend)
        self._open(threads())

    def _open(self, number: int) -> None:
        self._kernels = Kernels(self.shape, self.backend, number)
        self._kernels.call("crepe_set", pointers(self.arrays.values()), True)
        self._process = os.getpid()

    def logits(self, codes: Codes) -> Logits:
        if self._process != os.getpid():
            self._open(1)
        codes = np.ascontiguousarray(codes)
        rows, length = codes.shape
        if length != self.shape.feature_len:
            raise ValueError(f"the documents have {length} characters, the network reads {self.shape.feature_len}")
        logits = np.empty((rows, self.shape.classes), np.float32)
        with self._kernels.lock:
            self._kernels.call("crepe_forward", codes.ctypes.data, length, rows, logits.ctypes.data)
        return logits


class NumpyInference(Inference):
    """Engine on NumPy, in float32."""

    def __init__(self, shape: Shape, arrays: Arrays, backend: Backend) -> None:
        super().__init__(shape, arrays, backend)
        self._logits = registry.part(shape.kind, "numpy").logits
        self._rows = max(1, MAX_ACTIVATIONS // shape.activations)

    def logits(self, codes: Codes) -> Logits:
        starts = range(0, len(codes), self._rows)
        with np.errstate(over="ignore", invalid="ignore"):  # an answer that is not finite is refused with its cause
            parts = [self._logits(self.shape, self.arrays, codes[start : start + self._rows]) for start in starts]
        return np.concatenate([np.empty((0, self.shape.classes), np.float32), *parts])


# Layers of the networks' numpy.py. Activations are [n, positions, channels], so that a convolution is a sum of matrix
# products.


def convolved(x: Floats, weight: Floats) -> Floats:
    """Convolve [n, positions, channels] with a weight [filters, channels, kernel], without padding and bias."""
    kernel = weight.shape[2]
    positions = x.shape[1] - kernel + 1
    return total([x[:, tap : tap + positions] @ weight[:, :, tap].T for tap in range(kernel)])


def total(terms: list[Floats]) -> Floats:
    """Add arrays up, from the first to the last."""
    result = terms[0]
    for term in terms[1:]:
        np.add(result, term, out=result)
    return result


def pooled(x: Floats, size: int) -> Floats:
    """Return the maxima of ``size`` neighbouring positions each, which divides their number."""
    return np.asarray(x.reshape(len(x), x.shape[1] // size, size, *x.shape[2:]).max(axis=2))
