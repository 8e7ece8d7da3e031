"""Intervals of proportions over groups of documents."""

from dataclasses import replace

import numpy as np
import pytest

from crepe_dist.reports.score_page import accuracy_interval, describe_interval, interval, table
from crepe_dist.runs.group_bootstrap import Z, bootstrap_interval, count_by_group, student_quantile
from crepe_dist.runs.scores import MulticlassScores


def test_the_documents_are_counted_by_group_and_class():
    groups = np.array([5, 5, 5, -2, 9, 9], np.int32)
    labels = np.array([0, 1, 1, 0, 0, 1], np.int32)
    is_correct = np.array([1, 1, 0, 1, 1, 0], bool)
    counts = count_by_group(groups, labels, is_correct)
    every, first, second = [[1, 1, 1], [2, 1, 1], [3, 2, 1]], [[1, 1, 3]], [[1, 0, 1], [2, 1, 1]]
    rows = [[index, *row] for index, table in enumerate([every, first, second], start=-1) for row in table]
    assert counts.tolist() == rows


@pytest.mark.parametrize("num_groups", [10, 40, pytest.param(200, marks=pytest.mark.slow)])
def test_the_interval_contains_the_true_accuracy_as_often_as_it_says(num_groups):
    generator, hits = np.random.default_rng(0), {"groups": 0, "rows": 0}
    for _ in range(200):
        documents = generator.integers(1, 30, num_groups)
        correct = generator.binomial(documents, generator.beta(4, 2, num_groups))
        low, high = bootstrap_interval(np.stack([documents, correct, np.ones_like(documents)], axis=1))
        hits["groups"] += low <= 2 / 3 <= high
        low, high = interval(correct.sum(), documents.sum())
        hits["rows"] += low <= 2 / 3 <= high
    assert 180 <= hits["groups"] <= 198  # 190 are expected
    assert hits["rows"] < 160


def test_intervals_of_few_or_uniform_groups():
    assert bootstrap_interval(np.array([[100, 90, 1]])) == (0, 1)
    assert [*bootstrap_interval(np.array([[5, 5, 20], [9, 9, 30]]))] == pytest.approx([*map(float, interval(50, 50))])
    assert student_quantile(Z, 4) == pytest.approx(2.776, abs=0.01)
    assert student_quantile(3.4808, 20) == pytest.approx(4.146, abs=0.01)  # 99.975 %.


def test_groups_of_one_document_give_nearly_wilson_s_interval():
    is_correct = np.arange(1000) % 10 > 0
    counts = count_by_group(np.arange(1000, dtype=np.int32), np.zeros(1000, np.int32), is_correct)
    assert [*bootstrap_interval(counts[:2, 1:])] == pytest.approx([*map(float, interval(900, 1000))], abs=0.003)


def test_scores_show_and_store_the_interval_over_groups():
    generator = np.random.default_rng(0)
    labels, groups = generator.integers(0, 2, 600).astype(np.int32), np.repeat(np.arange(30, dtype=np.int32), 20)
    is_correct = generator.random(600) < np.repeat(generator.random(30), 20)
    confusion = np.zeros((2, 2), np.int64)
    np.add.at(confusion, (labels, np.where(is_correct, labels, 1 - labels)), 1)
    plain = MulticlassScores(confusion, 1.0, np.zeros((15, 3), np.int64), [], is_correct)
    assert "group_counts" not in plain.to_dict()
    assert plain.num_groups is None
    scores = replace(plain, group_counts=count_by_group(groups, labels, is_correct))
    low, high = accuracy_interval(scores)
    assert high - low > 2 * np.diff(accuracy_interval(plain))
    assert "95 % interval over 30 groups: " in describe_interval(scores)
    assert "over" not in describe_interval(plain)
    again = MulticlassScores.from_dict(scores.to_dict())
    assert accuracy_interval(again) == (low, high)
    wide, narrow = ([row["interval"] for row in table(each, ["a", "b"])] for each in (scores, plain))
    assert wide != narrow
