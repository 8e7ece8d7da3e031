"""All-reduce of gradients in each step, together with a row of numbers from each rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt

from crepe_dist.distributed.collectives import Collectives
from crepe_dist.distributed.horovod_internals import groups
from crepe_dist.distributed.table import Arrays, Table
from crepe_dist.distributed.whole_sums import WholeSums
from crepe_dist.errors import PeerGone
from crepe_dist.mxnet_internals import (
    allreduce_arrays,
    gradient_scale,
    host_array,
    pointer,
    trainer_parameters,
    view,
    whole_view,
)
from crepe_dist.native import library

Row = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Reduced:
    """Outcome of an all-reduce, the same on every rank.

    Attributes:
        rows: float32 or float64 [size, n + 1], one row per rank; the last number is its loss.
        not_finite: ranks with non-finite gradients; all ranks if only the sum overflowed.
        fits: False if a sum in whole numbers might have overflowed: compute the gradients again.
    """

    rows: npt.NDArray[Any]
    not_finite: tuple[int, ...]
    fits: bool = True


class Trainer:
    """Gluon trainer of a single process, where the all-reduce changes nothing; base class of those of many.

    Args:
        trainer: the Gluon trainer, or Horovod's.
        tables: the parameters that are trained row by row.
        sums: quanta of the gradients, if they are whole numbers.

    Attributes:
        by: name of the mechanism that sums the gradients, for messages; empty for a single process.
    """

    by = ""

    def __init__(self, trainer: Any, tables: Sequence[Table] = (), sums: WholeSums | None = None) -> None:
        self.gluon = trainer
        self.tables = tables
        self.sums = sums
        self._rehearses = False

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Let steps without an update decide the quanta of the next one; forget these at the end."""
        before = self.sums.state() if self.sums else []
        self._rehearses = True
        try:
            yield
        finally:
            self._rehearses = False
            if self.sums:
                self.sums.restore(before)

    @property
    def gradients(self) -> list[Any]:
        return [each.grad() for each in trainer_parameters(self.gluon) if each.grad_req != "null"]

    def all_reduce(self, row: Row, loss: mx.nd.NDArray) -> Reduced:
        """Replace the gradients by their sums over the ranks and collect the rows; every rank calls it.

        It waits for the device once, at the end.

        Args:
            row: this rank's numbers, float32 [n].
            loss: this rank's loss, float32 [1], on the device of the gradients; it may still be pending. If these are
                whole numbers it is float64, and arrives unrounded.
        """
        if self.sums is None:
            return self._sum(row, loss)
        # As two words: only zeros are added to them, so the sums have their bits.
        words = loss.asnumpy().astype(np.float64).view(np.float32)
        reduced = self._sum(np.concatenate([row, self.sums.bounds, words[:1]]), host_array(words[1:]))
        rows, bounds, words = np.split(reduced.rows, [len(row), -2], axis=1)
        losses = np.ascontiguousarray(words).view(np.float64)
        bad = np.flatnonzero(~np.isfinite(bounds).all(axis=1)).tolist()
        fits = self.sums.fit(bounds)
        if fits:
            self.sums.to_float()
            if self._rehearses:
                self.sums.keep()
        return Reduced(np.hstack([rows, losses]), tuple(bad), fits)

    def _sum(self, row: Row, loss: mx.nd.NDArray) -> Reduced:
        """Sum the gradients, whole numbers or not; see ``all_reduce``."""
        numbers, finite = self._read(loss)
        self._sum_rows()
        return Reduced(np.append(row, numbers)[None], () if finite else (0,))

    def update(self, documents: float, learning_rate: float, clip_norm: float | None = None) -> None:
        """Update the parameters with the sums of the last all-reduce; every rank calls it.

        Args:
            documents: divisor that makes the summed gradients those of the mean loss.
            learning_rate: learning rate.
            clip_norm: largest norm of the mean gradient; ``None``: no clipping.
        """
        scale = float(np.float32(gradient_scale(self.gluon) / documents))  # the same for any number of ranks
        clipped = 1.0
        if clip_norm is not None:
            norm = self._squares().sqrt() * scale
            factor = mx.nd.minimum(clip_norm / (norm + 1e-12), 1.0)
            for gradient in self.gradients:
                gradient[:] = mx.nd.broadcast_mul(gradient, factor.reshape((1,) * gradient.ndim))
            clipped = float(factor.asscalar()) if self.tables else 1.0
        self.gluon.set_learning_rate(learning_rate)
        self.gluon.update(documents)
        for table in self.tables:
            table.update(learning_rate, scale * clipped * self._quantum(table))
        self._wait_for_rows()
        if self.sums:
            self.sums.keep()

    def flush(self) -> None:
        """Bring all parameters up to date for scoring and checkpoints; every rank calls it."""
        for table in self.tables:
            table.flush()
        self._wait_for_rows()
        self.publish()

    def publish(self) -> None:
        """Copy the values of parameters that are trained row by row into the network; every rank calls it."""
        for table in self.tables:
            table.publish()

    def table_arrays(self) -> Arrays:
        """Copy the optimizer's state of the parameters that are trained row by row; see ``Table.arrays``."""
        return {name: array for table in self.tables for name, array in table.arrays().items()}

    def restore_tables(self, arrays: Arrays, updates: int) -> Arrays:
        """Restore the tables from the network's parameters and ``arrays``, and return the others; every rank calls it.

        Raises:
            UserError: the arrays do not fit; see ``Table.restore``.
        """
        for table in self.tables:
            arrays = table.restore(arrays, updates)
        self._wait_for_rows()
        return arrays

    def _read(self, numbers: mx.nd.NDArray) -> tuple[Row, bool]:
        """Read a small array, and check that no gradient holds an infinity or NaN; that of whole numbers never does."""
        return _read(numbers, [] if self.sums else self.gradients)

    def _sum_rows(self) -> None:
        """Sum the gradients of the tables over the ranks."""
        for table in self.tables:
            table.sum()

    def _quantum(self, table: Table) -> float:
        assert self.sums is not None
        return float(2.0 ** self.sums.exponent(table.parameter))

    def _squares(self) -> mx.nd.NDArray:
        """Compute the sum of the squares of all gradients, float32 [1], the same on every rank."""
        if self.sums is None:
            return mx.nd.multi_sum_sq(*self.gradients, num_arrays=len(self.gradients)).sum()
        mx.nd.waitall()
        total = sum(library.functions().crepe_squares(pointer(each), each.size) for each in self.gradients)
        for table, squares in zip(self.tables, self._squares_of_rows()):
            total += squares * self._quantum(table) ** 2
        return mx.nd.array([total])

    def _squares_of_rows(self) -> list[int]:
        """Return the sum of the squares of each table's summed gradient, in quanta, over all its rows."""
        return [table.squares() for table in self.tables]

    def _wait_for_rows(self) -> None:
        """Wait until all processes that share the tables have written their rows."""


class HorovodTrainer(Trainer):
    """All-reduce by Horovod, across hosts and on GPUs.

    The rows travel with the gradients, in a table that is zero except for this rank's row. Its sum holds every rank's
    row, unrounded. The table is in the last group, because the gradients of the last layers and the loss are the first
    to be ready; so it delays nothing.
    """

    by = "Horovod"

    def __init__(
        self, trainer: Any, ranks: Collectives, tables: Sequence[Table] = (), sums: WholeSums | None = None
    ) -> None:
        super().__init__(trainer, tables, sums)
        self._ranks = ranks
        # By the width of a row: the table up to this rank's loss, in host memory, and from its 1 on, on the device.
        self._around: dict[int, tuple[mx.nd.NDArray, mx.nd.NDArray]] = {}

    def _sum(self, row: Row, loss: mx.nd.NDArray) -> Reduced:
        arrays, table = self.gradients, self._table(row, loss)
        if self.sums:
            mx.nd.waitall()
            allreduce_arrays(self.gluon, map(whole_view, [*arrays, table]))
        else:
            # Norms of this rank's gradients, which the sums will replace. One operator per group, so that no group
            # waits for another. They stay on the device and are read only after a failure.
            norms = [
                mx.nd.multi_sum_sq(*group, num_arrays=len(group)) for group in groups(self.gluon, [*arrays, table])
            ]
            allreduce_arrays(self.gluon, [*arrays, table])
        numbers, finite = self._read(table)
        rows = numbers.reshape(self._ranks.size, -1)
        if not (rows[:, -1] == 1).all():
            raise PeerGone("an all-reduce was broken off: another process ended, or the network failed")
        self._sum_rows()
        if finite:
            return Reduced(rows[:, :-1], ())
        bad = not all(np.isfinite(norm.asnumpy()).all() for norm in norms)
        return Reduced(rows[:, :-1], culprits(self._ranks, bad))

    def _table(self, row: Row, loss: mx.nd.NDArray) -> mx.nd.NDArray:
        """Return [size, n + 2] as one dimension on the device: in this rank's row its numbers, its loss, and a 1."""
        width, device = len(row) + 2, loss.context
        start, rest = self._ranks.rank * width, (self._ranks.size - self._ranks.rank - 1) * width
        if width not in self._around:
            before = mx.nd.empty(start + len(row), ctx=mx.cpu())
            view(before)[:] = 0
            self._around[width] = before, mx.nd.array([1] + [0] * rest, ctx=device)
        before, after = self._around[width]
        view(before)[start:] = row  # the last step has read it: each waits for its sum
        loss = loss.astype("float32", copy=False)  # our own kernels sum losses in float64
        return mx.nd.concat(before.as_in_context(device), loss, after, dim=0)


def culprits(ranks: Collectives, bad: bool) -> tuple[int, ...]:
    """Find the ranks whose own gradients were not finite; all ranks if there are none, so only the sum overflowed.

    All ranks call it after a sum that was not finite, which they all saw.

    Args:
        bad: this rank's own gradients were not finite.
    """
    flags = np.zeros(ranks.size, np.int32)
    flags[ranks.rank] = bad
    return tuple(np.flatnonzero(ranks.sum(flags, "culprits")).tolist() or range(ranks.size))


def _read(numbers: mx.nd.NDArray, gradients: list[Any]) -> tuple[Row, bool]:
    """Read a small array, and check that no gradient holds an infinity or NaN, with one wait for the device."""
    if numbers.context.device_type == "cpu":
        # MXNet's operator takes about a second for 12 million gradients there (MXNet 1.9.1).
        mx.nd.waitall()
        return view(numbers).copy(), all(_is_finite(view(each).reshape(-1)) for each in gradients)
    finite = mx.nd.multi_all_finite(*gradients, num_arrays=len(gradients))
    found = mx.nd.concat(numbers, finite, dim=0).asnumpy()
    return found[:-1], bool(found[-1])


def _is_finite(numbers: Row) -> bool:
    # The sum of squares takes a third of the time; where it overflows, each number is looked at.
    return bool(np.isfinite(np.dot(numbers, numbers)) or np.isfinite(numbers).all())
