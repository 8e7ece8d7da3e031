"""Whose documents they were, for a message about a step that went wrong."""

from __future__ import annotations

from collections.abc import Iterable

from crepe_dist.data.loader import Order, share
from crepe_dist.distributed.watchdog import SHOWN_ROWS


def name(ranks: Iterable[int], order: Order, start: int, stop: int, size: int) -> str:
    """The ranks, each with its rows of the batch that is ``order[start:stop]``, for a person to read."""
    named = []
    for rank in ranks:
        first, end = share(start, stop, rank, size)
        rows = order[first:end].tolist()
        shown = ", ".join(map(str, rows[:SHOWN_ROWS]))
        more = f", … {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
        named.append(f"rank {rank} (rows {shown}{more} of the train part)")
    return "; ".join(named)
