"""State of an optimizer as plain arrays, for saved states.

``updates``          number of updates, int64 [1]
``<parameter>.<k>``  momentum; or mean and mean square: float32 in the parameter's shape; the mean square of a table
                     is that of each row, [rows, 1]
``<parameter>.updated``, ``<parameter>.drift``  ages of the rows of a table; see ``Table.arrays``
``quanta``           exponents of the next quanta, int32 [parameters]; see ``Quanta``

A parameter has its structural name, such as ``ngrams.weight``; the quanta are in the order of the trained ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.errors import UserError

Arrays = dict[str, npt.NDArray[Any]]
EXPONENTS = range(-90, 111)  # of quanta


class SavedArrays:
    """Arrays of a saved state, to be taken one by one.

    Attributes:
        updates: number of updates.

    Raises:
        UserError: in every method: the arrays do not fit the optimizer or the parameters, or hold numbers that no
            optimizer computes. NaNs of rows that are not read would reach the parameters unnoticed.
    """

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = dict(arrays)
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise other_optimizer(f"array {name[:80]!r} has NaN or infinity")
            if name.endswith(".1") and (array < 0).any():
                raise other_optimizer(f"array {name[:80]!r} has a negative mean of squares")
        count = self._take("updates", np.int64, (1,))
        if count is None or count[0] < 0:
            raise other_optimizer("it has no count of updates")
        self.updates = int(count[0])

    def moments(self, parameter: str, shapes: Sequence[tuple[int, ...]]) -> list[npt.NDArray[np.float32]] | None:
        """Take the moments of a parameter; ``None`` if it has none."""
        moments = [self._take(f"{parameter}.{k}", np.float32, shape) for k, shape in enumerate(shapes)]
        present = [moment for moment in moments if moment is not None]
        if len(present) not in (0, len(shapes)):
            raise other_optimizer(f"it has {len(present)} arrays for {parameter} instead of {len(shapes)}")
        return present or None

    def ages(self, parameter: str, rows: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
        """Take the drift since each update, and the update of each row; see ``Table.arrays``."""
        length = self._arrays.get(f"{parameter}.drift", np.zeros(0)).size
        drift: Any = self._take(f"{parameter}.drift", np.float64, (length,))
        updated: Any = self._take(f"{parameter}.updated", np.int32, (rows,))
        if drift is None and updated is None:
            return np.zeros(1), np.zeros(rows, np.int32)
        complete = drift is not None and updated is not None and updated.size > 0 and len(drift) <= self.updates + 1
        if not complete or not 0 <= updated.min() <= updated.max() < len(drift):
            raise other_optimizer(f"its arrays {parameter}.drift and {parameter}.updated do not fit")
        if drift.any() and f"{parameter}.0" not in self._arrays:
            raise other_optimizer(f"it has no momentum of {parameter}")
        return drift, updated

    def quanta(self, parameters: int) -> npt.NDArray[np.int32] | None:
        """Take the exponents of the quanta; ``None`` if there are none."""
        quanta = self._take("quanta", np.int32, (parameters,))
        if quanta is not None and not all(int(exponent) in EXPONENTS for exponent in quanta):
            raise other_optimizer("its quanta are out of range")
        return quanta

    def end(self) -> None:
        """Check that all arrays were taken."""
        for name in self._arrays:
            raise other_optimizer(f"it has an array {name[:80]!r}")

    def _take(self, name: str, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any] | None:
        array = self._arrays.pop(name, None)
        if array is not None and (array.dtype != dtype or array.shape != shape):
            actual, expected = f"{array.dtype} {list(array.shape)}", f"{np.dtype(dtype)} {list(shape)}"
            raise other_optimizer(f"array {name} is {actual} instead of {expected}")
        return array


def other_optimizer(why: str) -> UserError:
    """Make the error for a saved state that does not fit the optimizer or the parameters."""
    return UserError("the saved state belongs to another optimizer", why, "start another run with --fresh")
