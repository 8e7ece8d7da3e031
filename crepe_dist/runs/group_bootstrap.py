"""Confidence intervals of proportions of documents that come in groups, such as the documents of an author.

The documents of a group are alike, so they are not independent evidence. The bootstrap therefore draws whole groups.
The result of a draw depends only on the numbers of documents and of correct documents in each drawn group. Groups with
the same two numbers are drawn together, so the time does not grow with the number of groups.
"""

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from crepe_dist.model.calibration import wilson_lower_bound

Counts = npt.NDArray[np.int64]

NUM_REPLICATES = 2000  # Number of bootstrap replicates.
Z = NormalDist().inv_cdf(0.975)  # 97.5 % quantile of the normal distribution.
ALL_CLASSES = -1  # Value of the first column of the counts for the documents of all classes.


def count_by_group(
    groups: npt.NDArray[np.int32], labels: npt.NDArray[np.int32], is_correct: npt.NDArray[np.bool_]
) -> Counts:
    """Count the documents and the correct documents of each group, over all classes and in each class.

    Returns:
        int64 [n, 4]. Each row contains a class or ``ALL_CLASSES``, a number of documents, a number of correct
        documents, and the number of groups that have these numbers. Groups without documents of the class are not
        counted.
    """
    numbers = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    num_groups, base = int(numbers.max(initial=0)) + 1, len(labels) + 1
    tables = []
    for classes in (np.full(len(labels), ALL_CLASSES), labels.astype(np.int64)):
        cells, cell_of = np.unique(classes * num_groups + numbers, return_inverse=True)
        documents, correct = np.bincount(cell_of), np.bincount(cell_of, is_correct).astype(np.int64)
        # The three numbers are packed into one, because ``unique`` is slow for rows.
        rows, counts = np.unique((cells // num_groups * base + documents) * base + correct, return_counts=True)
        tables.append(np.stack([rows // base // base, rows // base % base, rows % base, counts], axis=1))
    return np.concatenate(tables)


def bootstrap_interval(counts: Counts) -> tuple[float, float]:
    """Compute the 95 % interval of the proportion of correct documents.

    The percentiles of the bootstrap are expanded for small numbers of groups (Hesterberg 2015,
    doi:10.1080/00031305.2015.1089789). If all replicates are equal, each group counts as one document in Wilson's
    interval. With a single group, nothing is known, and the interval is 0 to 1.

    Args:
        counts: Number of documents, number of correct documents and number of groups, int64 [n, 3].
    """
    documents, correct, groups = counts.T
    num_groups = int(groups.sum())
    if num_groups < 2:
        return 0.0, 1.0
    draws = np.random.default_rng(0).multinomial(num_groups, groups / num_groups, NUM_REPLICATES)
    proportions = (draws @ correct) / (draws @ documents)
    if np.ptp(proportions) == 0:
        right = proportions[0] * num_groups
        low, wrong = (wilson_lower_bound(num_groups, part, Z) for part in (right, num_groups - right))
        return max(float(low), 0.0), min(1 - float(wrong), 1.0)
    tail = NormalDist().cdf(-np.sqrt(num_groups / (num_groups - 1)) * student_quantile(Z, num_groups - 1))
    low, high = np.quantile(proportions, [tail, 1 - tail]).tolist()
    return low, high


def student_quantile(z: float, degrees: float) -> float:
    """Approximate a quantile of Student's distribution (Abramowitz & Stegun 1964, 26.7.5).

    Args:
        z: Quantile of the normal distribution for the same probability.
        degrees: Degrees of freedom.
    """
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))
