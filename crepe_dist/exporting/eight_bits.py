"""Tables of n-grams in eight bits a number, with a scale for each row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crepe_dist.errors import UserError
from crepe_dist.model.parameters import Arrays
from crepe_dist.model.shape import Shape
from crepe_dist.networks.paper.shape import PaperShape

TABLES = ("weight", "ngrams.weight", "tower.table")  # of the n-gram network, and of Crepe
LARGEST = 127


def split(table: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Round a table to products of an int8 and a float16, which float32 holds exactly.

    Rounding the products again gives the same numbers.

    Args:
        table: [rows][columns].

    Returns:
        Codes [rows][columns] and scales [rows][1].
    """
    scales = (np.abs(table).max(axis=1, keepdims=True) / LARGEST).astype(np.float16)
    steps = scales.astype(np.float32)
    codes = np.divide(table, steps, out=np.zeros_like(table), where=steps > 0)
    return np.clip(np.rint(codes), -LARGEST, LARGEST).astype(np.int8), scales


def rounded(shape: Shape, arrays: Arrays) -> Arrays:
    """Return parameters with rounded tables.

    Raises:
        UserError: the network has no tables.
    """
    if isinstance(shape, PaperShape):
        raise UserError("the paper's network has no tables to quantize", remedy="leave --quantize out")
    tables = {name: split(arrays[name]) for name in TABLES if name in arrays}
    return {**arrays, **{name: codes * scales.astype(np.float32) for name, (codes, scales) in tables.items()}}
