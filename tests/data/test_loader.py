import itertools
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crepe_dist.data.batch import unpack_batch
from crepe_dist.data.batch_schedule import BatchSchedule, equal_batches
from crepe_dist.data.char_encoder import PAD_UNK_ID
from crepe_dist.data.dataset import open_dataset
from crepe_dist.data.loader import (
    DataLoader,
    epoch_order,
    iter_shards,
    length_balanced_order,
    max_shard_size,
    shard_range,
    training_order,
)
from crepe_dist.settings.options import REFERENCE_BATCH_SIZE

sizes = st.integers(1, 9)


@given(st.integers(0, 100), st.integers(0, 100), sizes, sizes)
def test_shares_are_disjoint_complete_and_even(start, count, size, group_size):
    shares = [shard_range(start, start + count, rank, size, group_size) for rank in range(size)]
    rows = [row for first, last in shares for row in range(first, last)]
    assert rows == list(range(start, start + count))
    lengths = [last - first for first, last in shares]
    assert max(lengths) - min(lengths) < 2 * group_size
    assert shard_range(0, count, 0, size, group_size)[1] == max(lengths)
    assert all((first - start) % group_size == 0 for first, last in shares if first < last)


@given(st.integers(1, 200), st.integers(1, 9), st.sampled_from([1, 4, 8]))
def test_no_rank_has_more_documents_than_the_bound(count, size, group_size):
    most = max_shard_size(count, size, group_size)
    for documents in range(1, count + 1):  # smaller batches, such as the last batch of an epoch
        found = [shard_range(0, documents, rank, size, group_size) for rank in range(size)]
        assert max(end - begin for begin, end in found) <= most
    assert most < count / size + 2 * group_size


@given(st.integers(1, 200), st.integers(1, 60), sizes, st.integers(0, 5), st.integers(0, 3))
def test_every_world_size_sees_the_same_global_batches(rows, batch_size, size, seed, epoch):
    order = epoch_order(rows, seed, epoch)
    assert sorted(order.tolist()) == list(range(rows))
    ranks = [list(iter_shards(order, equal_batches(rows, batch_size), rank, size)) for rank in range(size)]
    assert {len(each) for each in ranks} == {-(-rows // batch_size)}
    for step, of_ranks in enumerate(zip(*ranks)):
        group_size = np.concatenate([indices for (indices, _, _) in of_ranks])
        expected = order[step * batch_size : (step + 1) * batch_size]
        assert group_size.tolist() == expected.tolist()
        assert {documents for (_, documents, _) in of_ranks} == {len(expected)}
        assert all(
            expected[first : first + len(indices)].tolist() == indices.tolist() for (indices, _, first) in of_ranks
        )


@given(st.integers(1, 20), st.integers(1, 60), st.integers(0, 5))
def test_a_balanced_order_has_the_same_global_batches(rows, batch_size, seed):
    rows *= batch_size
    order, lengths = epoch_order(rows, seed, 0), np.random.default_rng(seed).integers(0, 1000, rows)
    reordered = length_balanced_order(order, lengths, batch_size)
    for start in range(0, rows, batch_size):
        batch = slice(start, start + batch_size)
        assert sorted(reordered[batch].tolist()) == sorted(order[batch].tolist())


@pytest.mark.parametrize(("size", "group_size"), [(2, 1), (2, 8), (4, 4), (8, 8)])
def test_shares_of_a_balanced_order_have_about_the_same_length(size, group_size):
    lengths = np.random.default_rng(0).lognormal(4.5, 0.5, 6400).astype(int)

    def excess(order):
        """Return the length of the longest shard relative to the mean length, averaged over the batches."""
        batches = [
            [shard_range(start, start + 64, rank, size, group_size) for rank in range(size)]
            for start in range(0, 6400, 64)
        ]
        totals = np.array([[lengths[order[slice(*bounds)]].sum() for bounds in batch] for batch in batches])
        return (totals.max(axis=1) / totals.mean(axis=1)).mean() - 1

    order = epoch_order(6400, 0, 0)
    assert excess(length_balanced_order(order, lengths, 64)) < 0.4 * excess(order)


@given(st.integers(1, 20_000), st.integers(1, 2000), st.integers(0, 4), st.data())
def test_batches_grow_and_do_not_depend_on_where_a_run_was_resumed(rows, max_size, epoch, data):
    schedule = BatchSchedule(max_size, growth=7)
    ranges = list(schedule.ranges(rows, epoch))
    assert [0, *(stop for _, stop in ranges)] == [*(start for start, _ in ranges), rows]
    sizes_of_all_but_the_last = [stop - start for start, stop in ranges[:-1]]
    assert sizes_of_all_but_the_last == sorted(sizes_of_all_but_the_last)
    for start, stop in ranges[:-1]:
        seen, smallest, size = epoch * rows + start, min(max_size, REFERENCE_BATCH_SIZE), stop - start
        assert smallest <= size <= min(max_size, max(smallest, seen // 7))
        assert size in (max_size, smallest) or size > 2 / 3 * (seen // 7)
    resumed_at = data.draw(st.sampled_from(ranges))
    assert list(schedule.ranges(rows, epoch, resumed_at[0])) == ranges[ranges.index(resumed_at) :]


@given(st.integers(1, 3000), st.integers(1, 300), sizes, sizes, st.data())
def test_a_position_goes_on_under_any_world_size(rows, max_size, size_before, size_after, data):
    order, ranges = epoch_order(rows, 0, 0), list(BatchSchedule(max_size, growth=7).ranges(rows, 1))
    done = data.draw(st.integers(0, len(ranges)))
    before = [list(iter_shards(order, ranges[:done], rank, size_before)) for rank in range(size_before)]
    after = [list(iter_shards(order, ranges[done:], rank, size_after)) for rank in range(size_after)]
    seen = [
        row
        for world in (before, after)
        for of_ranks in zip(*world)
        for (indices, _, _) in of_ranks
        for row in indices.tolist()
    ]
    assert seen == order.tolist()


def test_a_training_order_is_balanced_within_the_growing_batches(data):
    split = open_dataset(data).splits["train"]
    schedule = BatchSchedule(96, growth=7)
    order, balanced = epoch_order(len(split), 3, 2), training_order(split, 3, 2, schedule)
    assert balanced.tolist() != order.tolist()
    for start, stop in schedule.ranges(len(split), 2):
        assert sorted(balanced[start:stop].tolist()) == sorted(order[start:stop].tolist())


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (2, 3), (3, 4), (6, 7)])
def test_batches_have_one_shape_on_all_ranks_and_mark_the_filling(data, rank, size):
    part = open_dataset(data).splits["train"]
    order = epoch_order(len(part), 0, 0)
    ranges = list(equal_batches(len(part), 50))
    expected = list(iter_shards(order, ranges, rank, size))
    got = list(DataLoader(part, order, ranges, rank, size))
    assert len(got) == len(expected) == 7  # 301 rows: the last global batch has one document
    for batch, (indices, documents, first) in zip(got, expected):
        codes, labels, weights = unpack_batch(batch, classes=3)
        assert codes.shape == (-(-documents // size), 123)
        assert (batch.global_batch_size, batch.first) == (documents, first)
        assert weights.sum() == len(indices)
        real = weights[:, 0] > 0
        assert np.array_equal(codes[real], part.char_ids(indices))
        assert np.array_equal(labels[real].argmax(axis=1), part.labels[indices])
        assert np.array_equal(batch.labels, part.labels[indices])
        assert (codes[~real] == PAD_UNK_ID).all()


def test_an_error_while_reading_ahead_is_the_reader_s(data):
    part = open_dataset(data).splits["train"]
    with pytest.raises(IndexError):
        list(DataLoader(part, np.array([0, len(part)]), [(0, 2)], 0, 1))


@pytest.mark.parametrize("taken", [0, 5, 30])
def test_a_reader_that_stops_early_ends_the_thread(data, taken):
    part = open_dataset(data).splits["train"]
    before = threading.active_count()
    source = iter(DataLoader(part, epoch_order(len(part), 0, 0), equal_batches(len(part), 5), 0, 1))
    assert sum(1 for _ in itertools.islice(source, taken)) == taken
    source.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]
    assert threading.active_count() == before
