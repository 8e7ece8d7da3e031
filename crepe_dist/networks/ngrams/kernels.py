"""Binding of the n-gram network to the native CPU kernels."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from crepe_dist.networks.ngrams.config import NGramConfig


def sizes(config: "NGramConfig") -> npt.NDArray[np.int64]:
    """Return the sizes of the network, in the order that ``ngram_config`` in native/engine.cpp expects."""
    own = [getattr(config, name) for name in config.hyperparameter_names()]
    return np.array([config.alphabet_size, config.feature_len, config.num_classes, *own], np.int64)


def open_network(functions: Any, config: "NGramConfig", precision: str, threads: int) -> Any:
    """Open the network; return ``None`` if memory runs out."""
    # ``ctypes``, not ``ctypes.data``: the argument keeps the array alive during the call.
    return functions.crepe_open_ngrams(sizes(config).ctypes, threads)
