"""Counts of what another host sends: no number is left in place, and none is copied to many."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crepe_dist.parallel.inter_host import InterHostReducer

HOSTS = [[0], [1]]
ROWS, COLUMNS = 4, 3  # of each owner


class Table:
    """A table of two owners. This host's batch touches two rows of the other owner."""

    name = "t"

    def __init__(self) -> None:
        self.values = np.zeros((2, COLUMNS), np.int32)

    def collect_remote_rows(self) -> None:
        pass

    def remote_row_ids(self, shard: int) -> Any:
        return np.array([ROWS, ROWS + 2], np.int32)

    def remote_buffer(self, shard: int) -> Any:
        return self.values.reshape(-1)

    def shard_slice(self, shard: int) -> slice:
        return slice(shard * ROWS, (shard + 1) * ROWS)

    def read_rows(self, rows: Any) -> Any:
        return np.zeros(len(rows) * COLUMNS, np.int32)


def message(*arrays: Any) -> Any:
    head = np.array([len(arrays), *map(len, arrays)], np.int64).view(np.int32)
    return np.concatenate([head, *(np.asarray(each, np.int32) for each in arrays)])


def exchange(answers: list[Any]) -> tuple[InterHostReducer, Table]:
    """The exchange of rank 0 with a rank 1 that sends these messages."""
    came = iter(answers)

    def all_to_all(array: Any, counts: Any, name: str) -> Any:
        message = next(came)
        own = array[: counts[0]]
        return np.concatenate([own, message]), np.array([len(own), len(message)])

    world: Any = SimpleNamespace(rank=0, size=2, all_to_all=all_to_all)
    table: Any = Table()
    return InterHostReducer(world, HOSTS, [0, 1], np.arange(5, dtype=np.int32), [table]), table


ASKED = message([0, 1])
VALUES = np.arange(2 * COLUMNS)


def test_values_arrive():
    between, table = exchange([ASKED, message(VALUES)])
    between.pull_rows()
    assert table.values.reshape(-1).tolist() == VALUES.tolist()


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([message(), message(VALUES)], "rank 1 sent no arrays to rank 0 as rows, not arrays of lengths any"),
        ([ASKED, message()], "rank 1 sent no arrays to rank 0 as values, not arrays of lengths 6"),
        ([ASKED, message([7])], "rank 1 sent arrays of lengths 1 to rank 0 as values, not arrays of lengths 6"),
        ([ASKED, message(VALUES, [1])], "sent arrays of lengths 6, 1 to rank 0 as values"),
        ([ASKED, VALUES[:0]], "rank 1 sent no arrays to rank 0 as values"),
        ([ASKED, message(VALUES)[:-1]], "a message of 9 words does not hold the arrays that it names"),
        ([ASKED, np.array([-1, -1, 0, 0], np.int32)], "does not hold the arrays"),
        ([ASKED, np.array([1, 0, -1, -1], np.int32)], "does not hold the arrays"),
        ([ASKED, np.array([0, 1], np.int32)], "does not hold the arrays"),
        ([ASKED, np.array([0], np.int32)], "does not hold the arrays"),
    ],
)
def test_wrong_counts_are_told(answers, error):
    between, table = exchange(answers)
    with pytest.raises(RuntimeError, match=error):
        between.pull_rows()
    assert not table.values.any()


@pytest.mark.parametrize(
    ("work", "answer", "error"),
    [
        (
            lambda between: between.gather_rows(Table(), [np.zeros((8, 3), np.int32)], [0]),
            message([1]),
            "not .* lengths 12",
        ),
        (
            lambda between: between.gather_rows(Table(), [np.zeros((8, 3), np.int32)], [1]),
            message([1]),
            "not no arrays",
        ),
        (
            lambda between: between.all_reduce(),
            message([1, 2, 3]),
            "lengths 3 to rank 0 as gradients, not .* lengths 3, any",
        ),
    ],
    ids=["too few rows", "rows for nobody", "no sums of rows"],
)
def test_other_messages_are_counted_too(work: Any, answer: Any, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    between, _ = exchange([answer])
    monkeypatch.setattr(Table, "reduce_remote_grads", lambda table: None, raising=False)
    monkeypatch.setattr("crepe_dist.parallel.inter_host.pack_int16", lambda numbers: numbers)
    with pytest.raises(RuntimeError, match=error):
        work(between)


def test_lengths_beyond_32_bits_are_kept():
    head = np.array([1, 1 << 33], np.int64).view(np.int32)
    between, _ = exchange([ASKED, head])
    with pytest.raises(RuntimeError, match="a message of 4 words does not hold"):
        between.pull_rows()
