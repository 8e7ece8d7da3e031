"""Initial parameters of the n-gram table, and how well n-grams of the training split separate the classes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from crepe_dist.data.char_encoder import CharIds
from crepe_dist.data.dataset import Dataset
from crepe_dist.data.loader import shard_range
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.model.init import zeros
from crepe_dist.native import library
from crepe_dist.networks.ngrams.config import NGramConfig
from crepe_dist.networks.ngrams.hashing import hash_documents
from crepe_dist.networks.ngrams.kernels import sizes as sizes_of
from crepe_dist.optim.parameter import Parameter
from crepe_dist.settings.options import ENOUGH_STEPS

DEVIATIONS = 4.25  # standard deviations between classes, from which on an n-gram is informative
CHUNK = 1 << 20  # counts per vectorised step
COUNTED_AT_ONCE = 4096  # documents per call of the n-gram counter
MANY_STEPS = 1500  # from which on the table learns more slowly (docs/decisions/networks.md)
MAX_LR_MULT = 2.0  # multiple of all learning rates in a run of few steps (docs/decisions/training.md)


def table_lr_mult(steps: int) -> float:
    """Return the multiple of the table's learning rate in a run of ``steps`` steps."""
    return min(1.0, math.sqrt(MANY_STEPS / steps))


def raise_lr_for_few_steps(parameters: Mapping[str, Parameter], steps: int) -> None:
    """Raise all learning rates for a run of few steps."""
    multiple = min(MAX_LR_MULT, max(1.0, math.sqrt(ENOUGH_STEPS / steps)))
    for parameter in parameters.values():
        parameter.lr_mult *= multiple


def init_parameters(config: NGramConfig, seed: int) -> dict[str, Parameter]:
    """Make the parameters; no n-gram is significant until ``adapt`` has counted them."""
    return {
        "weight": Parameter(zeros(config.buckets, config.num_classes), rowwise_second_moment=True),
        "bias": Parameter(zeros(config.num_classes)),
        "significant": Parameter(zeros(config.buckets), requires_grad=False),
    }


def init_from_data(
    parameters: Mapping[str, Parameter],
    config: NGramConfig,
    data: Dataset,
    process_group: ProcessGroup,
    seed: int,
    steps: int,
    loaded: Collection[str],
) -> None:
    """Set the significant n-grams and multiples of the learning rate."""
    if "significant" not in loaded:
        counts, documents = count_ngrams(config, data, process_group), data.class_counts()
        parameters["significant"].data[:] = select_significant(counts, documents, DEVIATIONS)
    parameters["weight"].lr_mult = table_lr_mult(steps)
    if not loaded:
        raise_lr_for_few_steps(parameters, steps)


def count_ngrams(config: NGramConfig, dataset: Dataset, process_group: ProcessGroup) -> npt.NDArray[np.int32]:
    """Count the training documents of each class, modulo ``shape.classes``, that contain each bucket.

    Every rank counts its share.

    Returns:
        The counts over all shares, int32 [buckets, classes].
    """
    split = dataset.splits["train"]
    counts = np.zeros((config.buckets, config.num_classes), np.int32)
    first, last = shard_range(0, len(split), process_group.rank, process_group.size)
    for start in range(first, last, COUNTED_AT_ONCE):
        rows = np.arange(start, min(start + COUNTED_AT_ONCE, last))
        indices, labels = split.targets.iter_labels(rows)  # a document counts once for each of its labels
        rows = rows[indices]
        _count(split.char_ids(rows), labels % config.num_classes, config, counts)
        process_group.heartbeat()
    return process_group.all_reduce(counts, "n-grams")


def class_z_scores(counts: npt.NDArray[np.int32], documents: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Compute by how many standard deviations a bucket is more frequent in a class than elsewhere, [buckets, classes].

    A bucket found in n documents is expected in n × share of the class. Under chance, twice the difference between the
    square roots of the observed and the expected count is close to standard normal, even for small counts (Freeman &
    Tukey 1950, "Transformations related to the angular and the square root").

    Args:
        counts: number of documents of each class that contain a bucket, int32 [buckets, classes].
        documents: number of documents of each class, int64 [classes].
    """
    shares = documents / max(documents.sum(), 1)
    return np.asarray(2 * (np.sqrt(counts) - np.sqrt(bucket_totals(counts)[:, None] * shares)))


def bucket_totals(counts: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Sum the counts of each bucket, int32 [buckets]."""
    total: npt.NDArray[np.int32] = np.einsum("ij->i", counts)  # sum(axis=1) takes five times as long for few columns
    return total


def select_significant(
    counts: npt.NDArray[np.int32], documents: npt.NDArray[np.int64], least: float
) -> npt.NDArray[np.bool_]:
    """Tell which buckets discriminate between classes, as bool [buckets].

    Args:
        counts: number of documents of each class that contain a bucket, int32 [buckets, classes].
        documents: number of documents of each class, int64 [classes].
        least: threshold in standard deviations; normal noise exceeds 4.25 in 2 of a hundred thousand cases.
    """
    result = np.zeros(len(counts), np.bool_)
    for chunk in iter_frequent_buckets(counts, least):
        result[chunk] = (np.abs(class_z_scores(counts[chunk], documents)) > least) @ np.ones(counts.shape[1], np.bool_)
    return result


def iter_frequent_buckets(counts: npt.NDArray[np.int32], least: float) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the buckets that might deviate by more than ``least`` standard deviations, as vectorised steps take them.

    The deviation of a bucket of n documents is at most 2 √n: most buckets are too rare.

    Args:
        counts: number of documents of each class that contain a bucket, int32 [buckets, classes].
    """
    buckets = max(1, CHUNK // counts.shape[1])
    for start in range(0, len(counts), buckets):
        yield start + np.flatnonzero(2 * np.sqrt(bucket_totals(counts[start : start + buckets])) > least)


def _count(
    char_ids: CharIds, labels: npt.NDArray[np.int32], config: NGramConfig, counts: npt.NDArray[np.int32]
) -> None:
    """Add documents to the counts of ``deviations``.

    Args:
        codes: encoded documents, uint8 [n, L].
        labels: their classes, int32 [n].
        counts: documents of each class that contain a bucket, int32 [buckets, classes]; updated in place.
    """
    native, _ = library.find()
    if native is None:
        for label, buckets, number in zip(labels, *hash_documents(char_ids, config)):
            counts[buckets[:number], label] += 1
        return
    char_ids, labels, sizes = np.ascontiguousarray(char_ids), np.ascontiguousarray(labels), sizes_of(config)
    failed = native.functions.crepe_count_ngrams(
        char_ids.ctypes.data, char_ids.shape[1], len(char_ids), sizes.ctypes.data, labels.ctypes.data,
        counts.ctypes.data, library.num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError("there is not enough memory to count the n-grams")
