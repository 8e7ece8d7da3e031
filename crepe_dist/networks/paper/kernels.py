"""Binding of the paper's network to the native CPU kernels."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from crepe_dist.networks.paper.config import PaperConfig


def sizes(config: "PaperConfig") -> npt.NDArray[np.int64]:
    """Return the sizes of the network, in the order of ``crepe_open_paper`` in native/engine.cpp."""
    return np.array(
        [config.alphabet_size, config.feature_len, config.num_classes, config.filters, config.units], np.int64
    )


def open_network(functions: Any, config: "PaperConfig", precision: str, threads: int) -> Any:
    """Open the network; return ``None`` if memory runs out."""
    # ``ctypes``, not ``ctypes.data``: the argument keeps the array alive during the call.
    return functions.crepe_open_paper(precision == "bfloat16", sizes(config).ctypes, threads)
