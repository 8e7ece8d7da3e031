"""Binding of Crepe to the native CPU kernels."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crepe_dist.networks.ngrams import kernels as ngrams

if TYPE_CHECKING:
    from crepe_dist.networks.crepe.config import CrepeConfig


def sizes(config: "CrepeConfig") -> npt.NDArray[np.int64]:
    """Return the sizes of both branches, in the order of ``crepe_open_crepe`` in native/engine.cpp."""
    conv_branch = [
        config.embedding_maxn, config.embedding_rows, config.width, config.blocks, config.stride,
        config.reduction_group,
    ]  # fmt: skip
    return np.array([*ngrams.sizes(config.ngram_config), *conv_branch], np.int64)


def open_network(functions: Any, config: "CrepeConfig", precision: str, threads: int) -> Any:
    """Open the network; return ``None`` if memory runs out."""
    bfloat16 = precision == "bfloat16"
    # ``ctypes``, not ``ctypes.data``: the argument keeps the array alive during the call.
    return functions.crepe_open_crepe(bfloat16, sizes(config).ctypes, config.FEATURE_DROPOUT, threads)
