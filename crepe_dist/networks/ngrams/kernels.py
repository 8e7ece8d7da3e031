"""The n-gram table in our own kernels: its sizes and how it is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from crepe_dist.networks.ngrams.config import NGramConfig


def sizes(shape: NGramConfig) -> npt.NDArray[np.int64]:
    """Return the sizes of the table, in the order of ``ngram_shape`` in native/engine.cpp."""
    own = [getattr(shape, name) for name in shape.hyperparameter_names()]
    return np.array([shape.alphabet_size, shape.feature_len, shape.num_classes, *own], np.int64)


def open_network(functions: Any, shape: NGramConfig, precision: str, threads: int) -> Any:
    """Open the network; return ``None`` if memory runs out."""
    return functions.crepe_open_ngrams(sizes(shape).ctypes.data, threads)
