"""Reader of the optimizer's arrays in a saved state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import Arrays
from crepe_dist.errors import UserError


class OptimizerState:
    """State of an optimizer as plain arrays of a saved state, whose checksum has been verified, to be read one by one.

    ``updates``          number of updates, int64 [1]
    ``<parameter>.<k>``  momentum; or mean and mean square: float32 in the parameter's shape; the mean square of a table
                         is that of each row, [rows, 1]
    ``<parameter>.updated``  the update that each row of a table is from, int32 [rows]; none if all are up to date
    ``<parameter>.drift``    the drift since each of them, float64 [updates + 1]
    ``quanta``           exponents of the next quanta, int32 [parameters]; see ``FixedPointScales``

    A parameter has its structural name, such as ``ngrams.weight``; the quanta are in the order of the trained ones.

    Attributes:
        updates: number of updates.

    Raises:
        UserError: in every method: an array has not the dtype or the shape that the kernels will access.
    """

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        count: Any = self._read("updates", np.int64, (1,))
        if count is None:
            raise incompatible_state_error("it has no count of updates")
        self.num_updates = int(count[0])

    def moments(self, parameter: str, shapes: Sequence[tuple[int, ...]]) -> list[npt.NDArray[np.float32]] | None:
        """Return the moments of a parameter; ``None`` if it has none."""
        found = [self._read(f"{parameter}.{k}", np.float32, shape) for k, shape in enumerate(shapes)]
        moments = [moment for moment in found if moment is not None]
        return moments if len(moments) == len(shapes) > 0 else None

    def lazy_state(self, parameter: str, num_rows: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
        """Return the drift since each update, and the update of each row."""
        drift: Any = self._read(f"{parameter}.drift", np.float64, None)
        updated: Any = self._read(f"{parameter}.updated", np.int32, (num_rows,))
        if drift is None or updated is None:
            return np.zeros(1), np.zeros(num_rows, np.int32)
        if drift.ndim != 1 or not 0 <= updated.min() <= updated.max() < len(drift) <= self.num_updates + 1:
            raise incompatible_state_error(f"its arrays {parameter}.drift and {parameter}.updated do not fit")
        return drift, updated

    def exponents(self, num_parameters: int) -> npt.NDArray[np.int32] | None:
        """Return the exponents of the quanta; ``None`` if there are none."""
        return self._read("quanta", np.int32, (num_parameters,))

    def _read(self, name: str, dtype: Any, shape: tuple[int, ...] | None) -> npt.NDArray[Any] | None:
        array = self._arrays.get(name)
        if array is not None and (array.dtype != dtype or shape not in (None, array.shape)):
            raise incompatible_state_error(f"array {name} is {array.dtype} {list(array.shape)}")
        return array


def incompatible_state_error(why: str) -> UserError:
    """Make the error for a saved state that does not fit the optimizer or the parameters."""
    return UserError("the saved state belongs to another optimizer", why, "start another run with --fresh")
