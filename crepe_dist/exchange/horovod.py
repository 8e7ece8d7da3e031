"""Exchange of floating-point gradients through Horovod, on GPUs and on CPUs without kernels.

Horovod wraps the Gluon trainer. The numbers of each rank travel with the gradients, in a table that is zero except for
this rank's row. Its sum holds every rank's row, unrounded. The table travels in the last group, which is ready first,
because it has the gradients of the last layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mxnet as mx
import numpy as np

from crepe_dist.distributed import horovod_internals
from crepe_dist.distributed.world import World
from crepe_dist.errors import PeerGone
from crepe_dist.exchange.exchange import Reduced
from crepe_dist.exchange.rule import Rule
from crepe_dist.exchange.single import SingleExchange, make_optimizer, read
from crepe_dist.mxnet_internals import allreduce_arrays, host_array, scale_gradients, view

DIGITS = 2**20  # a number travels as two digits of this base: float32 holds integers up to 2**24


class HorovodExchange(SingleExchange):
    """All-reduce by Horovod's ``DistributedTrainer``.

    Args:
        parameters: Gluon parameters by Gluon's names.
        rule, names: as for ``SingleExchange``.
    """

    by = "Horovod"

    def __init__(self, world: World, parameters: Mapping[str, Any], rule: Rule, names: Mapping[str, str]) -> None:
        # Groups fix the order of additions, which otherwise depends on timing (`choose_settings`). One alone avoids a
        # race in MXNet's handling of a failed collective. On a GPU three: the gradients of the paper's dense layers,
        # four fifths of the bytes and the first to be ready, travel while those of the convolutions are computed.
        on_cpu = all(parameter.list_ctx()[0].device_type == "cpu" for parameter in parameters.values())
        trainer = world.horovod.DistributedTrainer(parameters, make_optimizer(rule), num_groups=1 if on_cpu else 3)
        if horovod_internals.sum_not_average(trainer):
            scale_gradients(trainer, 1 / world.size)
        super().__init__(trainer, rule, names)
        self.size = world.size
        self._ranks = world
        # The table before this rank's loss, in host memory, and after it, on the device.
        self._around: tuple[mx.nd.NDArray, mx.nd.NDArray] | None = None

    def sum(self, compute: Callable[[], Any], numbers: Sequence[int], documents: int) -> Reduced:
        table = self._table(np.array([divmod(number, DIGITS) for number in numbers], np.float32), compute())
        arrays = [*self.gradients, table]
        # Norms of this rank's gradients, which the sums will replace. One operator per group, so that no group waits
        # for another. They stay on the device and are read only after a failure.
        groups = horovod_internals.groups(self.trainer, arrays)
        norms = [mx.nd.multi_sum_sq(*group, num_arrays=len(group)) for group in groups]
        allreduce_arrays(self.trainer, arrays)
        values, finite = read(table, self.gradients)
        rows = values.reshape(self.size, -1).astype(np.float64)
        if not (rows[:, -1] == 1).all():
            raise PeerGone("an all-reduce was interrupted: another process ended, or the network failed")
        digits = rows[:, :-2].astype(np.int64)
        own_are_bad = not finite and not all(np.isfinite(norm.asnumpy()).all() for norm in norms)
        not_finite = () if finite else self._culprits(own_are_bad)
        return Reduced((digits[:, ::2] * DIGITS + digits[:, 1::2]).tolist(), rows[:, -2].tolist(), not_finite)

    def _table(self, digits: Any, loss: mx.nd.NDArray) -> mx.nd.NDArray:
        """Return the flattened table [size, n + 2] on the device; this rank's row has its digits, its loss and a 1."""
        width, device = digits.size + 2, loss.context
        start, rest = self._ranks.rank * width, (self.size - self._ranks.rank - 1) * width
        if self._around is None:
            before = host_array(np.zeros(start + digits.size, np.float32))
            self._around = before, mx.nd.array([1] + [0] * rest, ctx=device)
        before, after = self._around
        view(before)[start:] = digits.reshape(-1)  # the last step has read it: each waits for its sum
        return mx.nd.concat(before.as_in_context(device), loss, after, dim=0)

    def _culprits(self, own_are_bad: bool) -> tuple[int, ...]:
        """Find the ranks whose own gradients were not finite; return all ranks if only the sum overflowed."""
        flags = self._ranks.gather(own_are_bad, "culprits")
        return tuple(np.flatnonzero(flags).tolist()) or tuple(range(self.size))
