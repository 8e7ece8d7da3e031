"""Numbers that each rank sends along with the all-reduce of its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.distributed.control import Wish
from crepe_dist.distributed.gradients import Row
from crepe_dist.errors import ExitCode, UserError

DIGITS = 2**20  # step and documents travel as two digits of this base: float32 holds integers up to 2**24


@dataclass(frozen=True)
class StepReport:
    """Report of one rank about the current step.

    Attributes:
        step: number of the step, counted from 1.
        documents: number of documents in the global batch.
        loss: sum of the losses of this rank's documents, in nats.
        wish: action that this rank wishes for after the step.
    """

    step: int
    documents: int
    loss: float
    wish: Wish

    @staticmethod
    def row(step: int, documents: int, wish: Wish) -> Row:
        """Return the numbers of a report without its loss, float32 [5]; exact up to 2**40."""
        return np.array([*divmod(step, DIGITS), *divmod(documents, DIGITS), wish], dtype=np.float32)

    @classmethod
    def of(cls, row: npt.NDArray[Any]) -> StepReport:
        """Return the report of a row, to which the loss was appended."""
        high, low, more, less, wish, loss = row.tolist()
        return cls(int(high) * DIGITS + int(low), int(more) * DIGITS + int(less), loss, Wish(int(wish)))


def check_same(reports: Sequence[StepReport]) -> None:
    """Check that all ranks are at the same step with the same batch; else the replicas would diverge silently.

    Raises:
        UserError: on every rank, if step or batch differ.
    """
    first = reports[0]
    for rank, each in enumerate(reports):
        if (each.step, each.documents) != (first.step, first.documents):
            raise UserError(
                f"the processes are at different steps: rank 0 at step {first.step} of {first.documents} documents, "
                f"rank {rank} at step {each.step} of {each.documents}",
                "a bug in crepe_dist, or data that changed during the run",
                "run the same command again to resume from the newest saved state",
                on_all_ranks=True,
                code=ExitCode.FAILURE,
            )
