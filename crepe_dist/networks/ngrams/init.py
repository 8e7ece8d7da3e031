"""Initial parameters of the n-gram branch, and statistics of n-grams in the classes of the training split."""

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

DEVIATIONS = 4.25  # Deviation in standard deviations above which an n-gram is significant.
CHUNK = 1 << 20  # Number of counts per vectorised step.
COUNTED_AT_ONCE = 4096  # Number of documents per call of the n-gram counter.
# Number of steps above which the learning rate of the n-gram weights is lowered (docs/decisions/networks.md).
MANY_STEPS = 1500
# Maximum learning-rate multiplier of all parameters in a run of few steps (docs/decisions/training.md).
MAX_LR_MULT = 2.0


def table_lr_mult(steps: int) -> float:
    """Return the learning-rate multiplier of the n-gram weights for a run of ``steps`` steps."""
    return min(1.0, math.sqrt(MANY_STEPS / steps))


def raise_lr_for_few_steps(parameters: Mapping[str, Parameter], steps: int) -> None:
    """Raise the learning-rate multiplier of every parameter if the run has few steps."""
    multiple = min(MAX_LR_MULT, max(1.0, math.sqrt(ENOUGH_STEPS / steps)))
    for parameter in parameters.values():
        parameter.lr_mult *= multiple


def init_parameters(config: NGramConfig, seed: int) -> dict[str, Parameter]:
    """Create the initial parameters. No n-gram is significant until ``init_from_data`` has counted the n-grams."""
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
    """Mark the significant n-grams unless the marks were loaded, and set the learning-rate multipliers."""
    if "significant" not in loaded:
        counts, documents = count_ngrams(config, data, process_group), data.class_counts()
        parameters["significant"].data[:] = select_significant(counts, documents, DEVIATIONS)
    parameters["weight"].lr_mult = table_lr_mult(steps)
    if not loaded:
        raise_lr_for_few_steps(parameters, steps)


def count_ngrams(config: NGramConfig, dataset: Dataset, process_group: ProcessGroup) -> npt.NDArray[np.int32]:
    """For each bucket and each class, count the training documents of the class in which the bucket occurs.

    Every rank counts its own shard. Classes are numbered modulo ``config.num_classes``.

    Returns:
        The sum of the counts over all shards, int32 [buckets, classes].
    """
    split = dataset.splits["train"]
    counts = np.zeros((config.buckets, config.num_classes), np.int32)
    first, last = shard_range(0, len(split), process_group.rank, process_group.size)
    for start in range(first, last, COUNTED_AT_ONCE):
        rows = np.arange(start, min(start + COUNTED_AT_ONCE, last))
        # A document counts once for each of its labels.
        indices, labels = split.targets.iter_labels(rows)
        rows = rows[indices]
        _count(split.char_ids(rows), labels % config.num_classes, config, counts)
        process_group.heartbeat()
    return process_group.all_reduce(counts, "n-grams")


def class_z_scores(counts: npt.NDArray[np.int32], documents: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Compute how much more frequent each bucket is in each class than expected, in standard deviations.

    For a bucket that n documents contain, the expected count in a class is n × the fraction of the documents that
    belong to the class. If buckets and classes are independent, twice the difference between the square roots of the
    observed and the expected count is approximately standard normal, even for small counts (Freeman & Tukey 1950,
    "Transformations related to the angular and the square root"). The result has the shape [buckets, classes].

    Args:
        counts: Number of documents of each class that contain a bucket, int32 [buckets, classes].
        documents: Number of documents of each class, int64 [classes].
    """
    fractions = documents / max(documents.sum(), 1)
    return np.asarray(2 * (np.sqrt(counts) - np.sqrt(bucket_totals(counts)[:, None] * fractions)))


def bucket_totals(counts: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Sum the counts of each bucket over the classes, int32 [buckets]."""
    # If there are few columns, einsum is five times as fast as sum(axis=1).
    total: npt.NDArray[np.int32] = np.einsum("ij->i", counts)
    return total


def select_significant(
    counts: npt.NDArray[np.int32], documents: npt.NDArray[np.int64], threshold: float
) -> npt.NDArray[np.bool_]:
    """Return a mask of the significant buckets, which discriminate between classes, bool [buckets].

    Args:
        counts: Number of documents of each class that contain a bucket, int32 [buckets, classes].
        documents: Number of documents of each class, int64 [classes].
        threshold: Threshold in standard deviations. Normal noise exceeds 4.25 in 2 of 100,000 cases.
    """
    result = np.zeros(len(counts), np.bool_)
    for chunk in iter_frequent_buckets(counts, threshold):
        result[chunk] = (np.abs(class_z_scores(counts[chunk], documents)) > threshold) @ np.ones(
            counts.shape[1], np.bool_
        )
    return result


def iter_frequent_buckets(counts: npt.NDArray[np.int32], threshold: float) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the buckets that are frequent enough to deviate by more than ``threshold``, in chunks.

    If n documents contain a bucket, it deviates by at most 2 √n standard deviations. Rare buckets are thus skipped.

    Args:
        counts: Number of documents of each class that contain a bucket, int32 [buckets, classes].
        threshold: Deviation in standard deviations.
    """
    buckets = max(1, CHUNK // counts.shape[1])
    for start in range(0, len(counts), buckets):
        yield start + np.flatnonzero(2 * np.sqrt(bucket_totals(counts[start : start + buckets])) > threshold)


def _count(
    char_ids: CharIds, labels: npt.NDArray[np.int32], config: NGramConfig, counts: npt.NDArray[np.int32]
) -> None:
    """Add documents to counts, in place.

    Args:
        char_ids: Encoded documents, uint8 [n, L].
        labels: Classes of the documents, int32 [n].
        counts: Number of documents of each class that contain a bucket, int32 [buckets, classes].
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
