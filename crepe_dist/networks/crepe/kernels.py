"""Crepe in our own kernels: its sizes and how it is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crepe_dist.networks.ngrams import kernels as ngrams

if TYPE_CHECKING:
    from crepe_dist.networks.crepe.config import CrepeConfig


def sizes(shape: CrepeConfig) -> npt.NDArray[np.int64]:
    """Return the sizes of both parts, in the order of ``crepe_open_crepe`` in native/engine.cpp."""
    tower = [shape.reach, shape.rows, shape.width, shape.blocks, shape.stride, shape.reduction_group]
    return np.array([*ngrams.sizes(shape.table), *tower], np.int64)


def open_network(functions: Any, shape: CrepeConfig, precision: str, threads: int) -> Any:
    """Open the network; return ``None`` if memory runs out."""
    bfloat16 = precision == "bfloat16"
    return functions.crepe_open_crepe(bfloat16, sizes(shape).ctypes.data, shape.FEATURE_DROPOUT, threads)
