"""Check of the lengths of received arrays: no old number stays in place, and no number is copied to many elements."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crepe_dist.parallel.inter_host import InterHostReducer

HOSTS = [[0], [1]]
ROWS, COLUMNS = 4, 3  # Of each shard.


class StubEmbedding:
    """Stand-in of an embedding with two shards. This host's batch uses two rows of the other shard."""

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
    header = np.array([len(arrays), *map(len, arrays)], np.int64).view(np.int32)
    return np.concatenate([header, *(np.asarray(array, np.int32) for array in arrays)])


def create_reducer(messages: list[Any]) -> tuple[InterHostReducer, StubEmbedding]:
    """Return the reducer of rank 0, and its embedding. Rank 1 sends these messages."""
    messages_of_rank1 = iter(messages)

    def all_to_all(array: Any, counts: Any, name: str) -> Any:
        message = next(messages_of_rank1)
        own = array[: counts[0]]
        return np.concatenate([own, message]), np.array([len(own), len(message)])

    group: Any = SimpleNamespace(rank=0, size=2, all_to_all=all_to_all)
    embedding: Any = StubEmbedding()
    return InterHostReducer(group, HOSTS, [0, 1], np.arange(5, dtype=np.int32), [embedding]), embedding


REQUEST = message([0, 1])
VALUES = np.arange(2 * COLUMNS)


def test_values_arrive():
    reducer, embedding = create_reducer([REQUEST, message(VALUES)])
    reducer.pull_rows()
    assert embedding.values.reshape(-1).tolist() == VALUES.tolist()


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([message(), message(VALUES)], "rank 1 sent no arrays to rank 0 as rows, not arrays of lengths any"),
        ([REQUEST, message()], "rank 1 sent no arrays to rank 0 as values, not arrays of lengths 6"),
        ([REQUEST, message([7])], "rank 1 sent arrays of lengths 1 to rank 0 as values, not arrays of lengths 6"),
        ([REQUEST, message(VALUES, [1])], "sent arrays of lengths 6, 1 to rank 0 as values"),
        ([REQUEST, VALUES[:0]], "rank 1 sent no arrays to rank 0 as values"),
        ([REQUEST, message(VALUES)[:-1]], "a message of 9 words does not hold the arrays that it names"),
        ([REQUEST, np.array([-1, -1, 0, 0], np.int32)], "does not hold the arrays"),
        ([REQUEST, np.array([1, 0, -1, -1], np.int32)], "does not hold the arrays"),
        ([REQUEST, np.array([0, 1], np.int32)], "does not hold the arrays"),
        ([REQUEST, np.array([0], np.int32)], "does not hold the arrays"),
    ],
)
def test_wrong_lengths_are_reported(messages, error):
    reducer, embedding = create_reducer(messages)
    with pytest.raises(RuntimeError, match=error):
        reducer.pull_rows()
    assert not embedding.values.any()


@pytest.mark.parametrize(
    ("call", "reply", "error"),
    [
        (
            lambda reducer: reducer.gather_rows(StubEmbedding(), [np.zeros((8, 3), np.int32)], [0]),
            message([1]),
            "not .* lengths 12",
        ),
        (
            lambda reducer: reducer.gather_rows(StubEmbedding(), [np.zeros((8, 3), np.int32)], [1]),
            message([1]),
            "not no arrays",
        ),
        (
            lambda reducer: reducer.all_reduce(),
            message([1, 2, 3]),
            "lengths 3 to rank 0 as gradients, not .* lengths 3, any",
        ),
    ],
    ids=["too few rows", "rows for nobody", "no sums of rows"],
)
def test_wrong_lengths_of_other_messages_are_reported(
    call: Any, reply: Any, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reducer, _ = create_reducer([reply])
    monkeypatch.setattr(StubEmbedding, "reduce_remote_grads", lambda embedding: None, raising=False)
    monkeypatch.setattr("crepe_dist.parallel.inter_host.pack_int16", lambda numbers: numbers)
    with pytest.raises(RuntimeError, match=error):
        call(reducer)


def test_lengths_have_64_bits():
    header = np.array([1, 1 << 33], np.int64).view(np.int32)
    reducer, _ = create_reducer([REQUEST, header])
    with pytest.raises(RuntimeError, match="a message of 4 words does not hold"):
        reducer.pull_rows()
