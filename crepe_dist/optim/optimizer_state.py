"""Reader of the optimizer's arrays in a saved state."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import Arrays
from crepe_dist.errors import UserError

Moments = list[npt.NDArray[np.float32]]
LazyState = tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]  # Result of ``OptimizerState.lazy_state``.


class OptimizerState:
    """Reader of the optimizer's arrays in a saved state.

    The caller must have verified the checksum of the file. The arrays are:

    ``updates``                  Number of updates, int64 [1].
    ``<parameter>.0``            SGD: momentum. Adam: first moment. float32, in the shape of the parameter.
    ``<parameter>.1``            Adam: second moment, float32. Its shape is the shape of the parameter, or [rows, 1] if
                                 each row has one second moment.
    ``<parameter>.last_update``  Row-sparse parameters: the number of the update that last wrote each row, int32 [rows].
                                 Updates are counted from the last ``synchronize``. The array is missing if all rows
                                 are up to date.
    ``<parameter>.lazy_drift``   Pending changes of the rows, float64 [updates + 1]. Element k applies to the rows that
                                 were last written in update k. It is the change that the later updates cause, as a
                                 multiple of the row's first moments.
    ``exponents``                Exponents of the fixed-point scales of the next step, int32 [parameters]. See
                                 ``FixedPointScales``.

    ``<parameter>`` is the structural name of a parameter, such as ``ngrams.weight``. The exponents are in the order of
    the trained parameters. Every method raises ``UserError`` if an array does not have the dtype and the shape that the
    kernels expect.

    Attributes:
        num_updates: Number of updates.

    Raises:
        UserError: The state has no valid number of updates.
    """

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        num_updates: Any = self._read("updates", np.int64, (1,))
        if num_updates is None:
            raise incompatible_state_error("it has no number of updates")
        self.num_updates = int(num_updates[0])

    def moments(self, parameter: str, shapes: Sequence[tuple[int, ...]]) -> Moments | None:
        """Return the moments of a parameter, or ``None`` if the state does not have all of them."""
        arrays = [self._read(f"{parameter}.{k}", np.float32, shape) for k, shape in enumerate(shapes)]
        moments = [array for array in arrays if array is not None]
        return moments if len(moments) == len(shapes) > 0 else None

    def lazy_state(self, parameter: str, num_rows: int) -> LazyState:
        """Return the arrays ``lazy_drift`` and ``last_update`` of a row-sparse parameter with ``num_rows`` rows.

        If one of them is missing, return arrays for rows that are all up to date.
        """
        drift: Any = self._read(f"{parameter}.lazy_drift", np.float64, None)
        last_update: Any = self._read(f"{parameter}.last_update", np.int32, (num_rows,))
        if drift is None or last_update is None:
            return np.zeros(1), np.zeros(num_rows, np.int32)
        if drift.ndim != 1 or not 0 <= last_update.min() <= last_update.max() < len(drift) <= self.num_updates + 1:
            raise incompatible_state_error(
                f"its arrays {parameter}.lazy_drift and {parameter}.last_update do not match"
            )
        return drift, last_update

    def exponents(self, num_parameters: int) -> npt.NDArray[np.int32] | None:
        """Return the exponents of the fixed-point scales, or ``None`` if the state has none."""
        return self._read("exponents", np.int32, (num_parameters,))

    def _read(self, name: str, dtype: Any, shape: tuple[int, ...] | None) -> npt.NDArray[Any] | None:
        array = self._arrays.get(name)
        if array is not None and (array.dtype != dtype or shape not in (None, array.shape)):
            raise incompatible_state_error(f"its array {name} is {array.dtype} {list(array.shape)}")
        return array


def incompatible_state_error(why: str) -> UserError:
    """Return the error for a saved state that does not match the optimizer or the parameters."""
    return UserError("the saved state belongs to another optimizer", why, "start another run with --fresh")
