"""Splitting of rows: independent of the order of reading."""

import numpy as np
import pytest

from crepe_dist.data.counter_rng import hash_random
from crepe_dist.errors import UserError
from crepe_dist.preparing import splitting
from crepe_dist.preparing.splitting import (
    DUPLICATE,
    TEST,
    TRAIN,
    UNKNOWN,
    VALIDATION,
    SplitOptions,
    assign_splits,
    iter_duplicates,
    training_labels,
)
from crepe_dist.preparing.spool import ROW


def rows(count, labels=2, **columns):
    made = np.zeros(count, dtype=ROW)
    made["line"] = np.arange(1, count + 1)
    made["label"] = np.arange(count) % labels
    made["exact"] = made["near"] = np.arange(count)
    for name, values in columns.items():
        made[name] = values
    return made


def fates(made, fixed=None, **split):
    fixed = np.zeros(len(made), dtype=np.uint8) if fixed is None else np.array(fixed, dtype=np.uint8)
    return assign_splits(made, fixed, SplitOptions(**split), training_labels(made, fixed))


def counts(fate):
    return np.bincount(fate, minlength=6).tolist()


class TestDraw:
    def test_is_uniform_and_independent(self):
        lines = np.arange(100_000)
        one, two, other = hash_random(1, 0, lines), hash_random(2, 0, lines), hash_random(1, 1, lines)
        for numbers in (one, two, other):
            histogram = np.bincount((numbers >> np.uint64(56)).astype(np.int64), minlength=256)
            chi_square = ((histogram - 100_000 / 256) ** 2 / (100_000 / 256)).sum()
            assert 170 < chi_square < 350  # 255 degrees of freedom: mean 255, deviation 23
        for a, b in ((one, two), (one, other), (one[1:], one[:-1])):
            assert abs(np.corrcoef(a / 2.0**64, b / 2.0**64)[0, 1]) < 0.02


class TestSplit:
    def test_fractions_are_exact_and_cover_all(self):
        assert counts(fates(rows(1001), test=0.2, validation=0.1)) == [701, 100, 200, 0, 0, 0]

    def test_another_order_of_reading_changes_nothing(self):
        made = rows(500)
        order = np.random.default_rng(0).permutation(500)
        fixed = np.zeros(500, dtype=np.uint8)
        split = SplitOptions(0.2, 0.1)
        known = np.array([True, True])
        assert np.array_equal(
            assign_splits(made, fixed, split, known)[order], assign_splits(made[order], fixed, split, known)
        )

    def test_labels_that_are_not_trained_are_unknown(self):
        fate = fates(rows(30, label=np.repeat([0, 1, 2], 10)), [TRAIN] * 20 + [TEST] * 10, test=0.0)
        assert (fate[20:] == UNKNOWN).all()
        assert UNKNOWN not in fate[:20]

    @pytest.mark.parametrize(
        "split",
        [{"test": 1.0}, {"validation": -0.1}, {"test": 0.6, "validation": 0.4}],
    )
    def test_what_is_impossible_is_refused(self, split):
        with pytest.raises(UserError):
            SplitOptions(**split)

    def test_enough_rows_have_a_validation_split_by_default(self):
        assert counts(fates(rows(2000), validation=None))[:3] == [1400, 200, 400]
        assert counts(fates(rows(1999), validation=None))[VALIDATION] == 0
        assert counts(fates(rows(3000), [TRAIN] * 1900 + [TEST] * 1100, test=0.0, validation=None))[VALIDATION] == 0


class TestDuplicates:
    def test_the_first_stays_and_test_rows_come_first(self):
        made = rows(6, near=[7, 7, 8, 9, 8, 7], label=0)
        fixed = np.array([TRAIN, TRAIN, VALIDATION, TRAIN, TEST, TRAIN], dtype=np.uint8)
        ((again, first),) = iter_duplicates(made["near"], fixed)
        assert dict(zip(again.tolist(), first.tolist())) == {1: 0, 2: 4, 5: 0}
        fate = fates(made, fixed, dedupe="near", test=0.0)
        assert fate.tolist() == [TRAIN, DUPLICATE, DUPLICATE, TRAIN, TEST, DUPLICATE]

    def test_keys_sorted_in_parts_give_the_same_repeats(self, monkeypatch):
        generator = np.random.default_rng(0)
        keys, fate = generator.integers(0, 300, 1000, dtype=np.uint64), generator.integers(0, 6, 1000).astype(np.uint8)
        ((again, first),) = iter_duplicates(keys, fate)
        whole = dict(zip(again.tolist(), first.tolist()))
        monkeypatch.setattr(splitting, "CHUNK_ROWS", 64)
        parts = [dict(zip(again.tolist(), first.tolist())) for again, first in iter_duplicates(keys, fate)]
        assert len(parts) > 10
        assert {row: first for part in parts for row, first in part.items()} == whole
