"""Inference engines that compute logits on the CPU without MXNet: with the native C++ kernels, or with NumPy."""

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist import network_registry
from crepe_dist.data.arrays import Arrays
from crepe_dist.data.batch import RowIndices
from crepe_dist.data.char_encoder import CharIds
from crepe_dist.data.dataset import Split
from crepe_dist.data.loader import shard_range
from crepe_dist.model.backend import Backend
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.model.quantization import RowReadableArray, decompress
from crepe_dist.model.weights_io import validate
from crepe_dist.native.library import CParameter, num_threads, pointers

Floats = npt.NDArray[np.float32]
Logits = Floats
# Maximum number of documents per thread in one call of the kernels. More documents per thread would use more memory
# without saving time.
MAX_ROWS_PER_PASS = 64
# Maximum number of elements in the output of a layer in NumPy. Larger outputs would not fit into the CPU's cache.
MAX_ACTIVATIONS = 1 << 22


class InferenceEngine(ABC):
    """Base class of the inference engines. Inference engines are thread-safe.

    Attributes:
        config: Configuration of the network.
        parameters: float32 arrays by structural name. Arrays of a compressed file are ``RowReadableArray``.
        backend: Precision and kernels.
        threads: Maximum number of threads that one call of the native kernels uses.

    Raises:
        UserError: The parameters do not belong to this network, or are not finite.
    """

    def __init__(self, config: NetworkConfig, arrays: Arrays, backend: Backend) -> None:
        validate(arrays, config)
        self.config = config
        self.parameters: Arrays = {
            name: array
            if isinstance(array := arrays[name], RowReadableArray)
            else np.ascontiguousarray(array, np.float32)
            for name in config.parameter_shapes()
        }
        self.backend = backend
        self.threads = num_threads()

    @property
    def arrays(self) -> Arrays:
        """Float32 parameters by structural name. Each access to this property decompresses compressed parameters."""
        return {name: decompress(array) for name, array in self.parameters.items()}

    @abstractmethod
    def logits(self, char_ids: CharIds) -> Logits:
        """Compute logits: uint8 [n, feature_len] → float32 [n, classes]."""

    def iter_logits(
        self, split: Split, batch_size: int, rank: int = 0, size: int = 1
    ) -> Iterator[tuple[RowIndices, npt.NDArray[np.int32], Logits]]:
        """Compute the logits of one rank's shard of each batch. Yield the row numbers, labels and logits per batch."""
        for start in range(0, len(split), batch_size):
            rows = np.arange(*shard_range(start, min(start + batch_size, len(split)), rank, size))
            yield rows, np.asarray(split.labels[rows]), self.logits(split.char_ids(rows))


def open_inference(config: NetworkConfig, arrays: Arrays, backend: Backend) -> InferenceEngine:
    """Build the CPU engine that ``backend`` selects; see ``InferenceEngine`` for the arguments."""
    kind = NumpyInferenceEngine if backend.library is None else CpuInferenceEngine
    return kind(config, arrays, backend)


class NativeModel:
    """Network that is held by the native kernels. Only one thread may call it at a time.

    The network has no parameters until ``crepe_set_parameters`` is called.

    Args:
        number: Number of threads that the kernels use.

    Raises:
        MemoryError: There is not enough memory.
    """

    def __init__(self, config: NetworkConfig, backend: Backend, number: int) -> None:
        assert backend.library is not None
        self._functions = backend.library.functions
        binding = network_registry.import_network_module(config.kind, "kernels")
        self._handle = binding.open_network(self._functions, config, backend.precision, number)
        _check(self._handle is None)
        weakref.finalize(self, self._functions.crepe_close, self._handle)

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the kernel library on this network."""
        _check(getattr(self._functions, function)(self._handle, *arguments))


def to_c_parameters(arrays: Iterable[Any]) -> Any:
    """Build the C array of parameters for ``crepe_set_parameters``. The caller must keep ``arrays`` alive.

    Args:
        arrays: Parameters. Each is a float32 array or a ``RowReadableArray``.
    """
    c_parameters = [
        _to_c_parameter(array) if isinstance(array, RowReadableArray) else CParameter(values=array.ctypes.data)
        for array in arrays
    ]
    return (CParameter * len(c_parameters))(*c_parameters)


def _to_c_parameter(array: RowReadableArray) -> CParameter:
    words, before, values, codes = pointers((array.words, array.before, array.values, array.codes))
    numbers = 0 if array.codes is None else array.values.shape[1]
    is_half = values is not None and array.values.dtype == np.float16
    return CParameter(words, before, len(array.words), values, codes, numbers, is_half)


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("there is not enough memory for the network and this batch")


class CpuInferenceEngine(InferenceEngine):
    """Engine that uses the native CPU kernels.

    If training used the same build of the kernels and the same precision, the logits are bit-identical to the logits
    computed in training. Concurrent calls divide the threads among themselves. Each call has its own workspace. All
    calls share the embedding tables, which stay compressed. A forked child process uses only one thread, because it
    shares the cores with other processes.
    """

    def __init__(self, config: NetworkConfig, arrays: Arrays, backend: Backend) -> None:
        super().__init__(config, arrays, backend)
        for name, array in self.parameters.items():
            is_flags = isinstance(array, RowReadableArray) and array.values is None
            if name not in (
                config.buffers if is_flags else config.sparse_parameters
            ):  # The kernels can read single rows of these parameters, but not of other parameters.
                self.parameters[name] = decompress(array)
        self._start()

    def _start(self) -> None:
        # The lock guards the number of running calls and the choice of an idle workspace. The lock is not held during
        # the computation.
        self._lock = threading.Lock()
        self._idle: dict[int, list[NativeModel]] = defaultdict(list)
        self._running, self._process = 0, os.getpid()

    @contextmanager
    def _workspace(self) -> Iterator[tuple[NativeModel, int]]:
        """Provide a network that no other call uses, and its number of threads."""
        with self._lock:
            self._running += 1
            number = max(1, self.threads // self._running)
            kernels = self._idle[number].pop() if self._idle[number] else None
        try:
            if kernels is None:
                kernels = NativeModel(self.config, self.backend, number)
                kernels.call("crepe_set_parameters", to_c_parameters(self.parameters.values()), True)
            yield kernels, number
            self._idle[number].append(kernels)
        finally:
            with self._lock:
                self._running -= 1

    def logits(self, char_ids: CharIds) -> Logits:
        if self._process != os.getpid():
            self.threads = 1
            self._start()
        char_ids = np.ascontiguousarray(char_ids)
        rows, length = char_ids.shape
        if length != self.config.feature_len:
            raise ValueError(f"the documents have {length} characters, the network reads {self.config.feature_len}")
        logits = np.empty((rows, self.config.num_classes), np.float32)
        with self._workspace() as (kernels, number):
            for start in range(0, rows, MAX_ROWS_PER_PASS * number):
                rows_of_pass, out = char_ids[start : start + MAX_ROWS_PER_PASS * number], logits[start:]
                kernels.call("crepe_forward", rows_of_pass.ctypes.data, length, len(rows_of_pass), out.ctypes.data)
        return logits


class NumpyInferenceEngine(InferenceEngine):
    """Engine that uses NumPy, in float32."""

    def __init__(self, config: NetworkConfig, arrays: Arrays, backend: Backend) -> None:
        super().__init__(config, arrays, backend)
        self._arrays = self.arrays
        self._logits = network_registry.import_network_module(config.kind, "numpy").logits
        self._rows = max(1, MAX_ACTIVATIONS // config.activations)

    def logits(self, char_ids: CharIds) -> Logits:
        starts = range(0, len(char_ids), self._rows)
        # NumPy's overflow warnings are suppressed, because the caller checks the logits and reports the cause.
        with np.errstate(over="ignore", invalid="ignore"):
            parts = [self._logits(self.config, self._arrays, char_ids[start : start + self._rows]) for start in starts]
        return np.concatenate([np.empty((0, self.config.num_classes), np.float32), *parts])


# Layers for the ``numpy.py`` module of each network. Activations have the layout [n, positions, channels], so that a
# convolution is a sum of matrix products.


def convolve(x: Floats, weight: Floats) -> Floats:
    """Convolve [n, positions, channels] with a weight [filters, channels, kernel], without padding or bias."""
    kernel = weight.shape[2]
    positions = x.shape[1] - kernel + 1
    return sum_in_order([x[:, tap : tap + positions] @ weight[:, :, tap].T for tap in range(kernel)])


def sum_in_order(terms: list[Floats]) -> Floats:
    """Add arrays in the order of the list."""
    result = terms[0]
    for term in terms[1:]:
        np.add(result, term, out=result)
    return result


def max_pool(x: Floats, size: int) -> Floats:
    """Return the maximum of each group of ``size`` neighbouring positions; ``size`` divides the number of positions."""
    return np.asarray(x.reshape(len(x), x.shape[1] // size, size, *x.shape[2:]).max(axis=2))
