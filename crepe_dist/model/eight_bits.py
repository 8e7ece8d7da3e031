"""Tables of n-grams in eight bits a number, with a scale for each row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crepe_dist.errors import UserError
from crepe_dist.model.parameters import Arrays
from crepe_dist.model.shape import Shape

LARGEST = 127


def split(table: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Round a table to products of an int8 and a float16, which float32 holds exactly.

    Rounding the products again gives the same numbers.

    Args:
        table: [rows][columns].

    Returns:
        Codes [rows][columns] and scales [rows][1].
    """
    largest = np.abs(table).max(axis=1, keepdims=True)
    scales = (largest / LARGEST).astype(np.float16)
    # Below 6e-5 float16 is coarse. A row's largest code is 127 all the same, or other scales would be found again.
    is_too_large = largest <= (LARGEST - 0.5) * scales.astype(np.float32)
    scales = np.where(is_too_large, np.nextafter(scales, np.float16(0)), scales)
    steps = scales.astype(np.float32)
    codes = np.divide(table, steps, out=np.zeros_like(table), where=steps > 0)
    return np.clip(np.rint(codes), -LARGEST, LARGEST).astype(np.int8), scales


def rounded(shape: Shape, arrays: Arrays) -> Arrays:
    """Return parameters with rounded tables.

    Raises:
        UserError: the network has no tables.
    """
    tables = {name: split(arrays[name]) for name in shape.tables}
    if not tables:
        raise UserError(f"the network {shape.kind} has no tables to quantize", remedy="leave --quantize out")
    return {**arrays, **{name: codes * scales.astype(np.float32) for name, (codes, scales) in tables.items()}}
