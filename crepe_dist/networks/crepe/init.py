"""Initial parameters of Crepe."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from crepe_dist.data.dataset import Dataset
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.model.init import kaiming_normal, normal, uniform, zeros
from crepe_dist.networks.crepe.config import CrepeConfig
from crepe_dist.networks.ngrams import init as ngrams
from crepe_dist.networks.ngrams.init import bucket_totals, class_z_scores, count_ngrams, iter_frequent_buckets
from crepe_dist.optim.parameter import Parameter

# Learning-rate multipliers. Most embeddings are rarely updated. If all parameters had one learning rate, the
# convolutions would memorise training documents before the embeddings are trained (docs/decisions/networks.md).
EMBEDDING_LR_MULT, CONV_LR_MULT = 7.0, 0.3
CLASS_AWARE_SCALE = 0.5  # Factor of the class-aware embedding, which is added to the random embedding.
MAX_COUNTS = 1 << 25  # Maximum number of counts: rows of the embedding table × classes.
CHANCE = 2.0  # Deviations of a count up to this number of standard deviations are attributed to chance and ignored.
FRACTION = 1 << 12  # Weights are rounded to multiples of 1 / FRACTION, so that their sums are exact.
PREFIX = "ngrams."  # Prefix of the parameter names of the n-gram branch.


def init_parameters(config: CrepeConfig, seed: int) -> dict[str, Parameter]:
    """Create the initial parameters. The second convolution of each block starts at zero."""
    generator = np.random.default_rng([seed, 1])  # ``class_aware_embedding`` draws other numbers, from ``seed``.
    parameters = {
        f"{PREFIX}{name}": parameter for name, parameter in ngrams.init_parameters(config.ngram_config, seed).items()
    }
    parameters["tower.table"] = Parameter(
        normal(generator, (config.embedding_rows, config.width), 0.2), EMBEDDING_LR_MULT, rowwise_second_moment=True
    )
    for name, size in config.parameter_shapes().items():
        if name.startswith("tower.convolutions."):
            starts_random = name.endswith("weight") and int(name.split(".")[2]) % 2 == 0
            parameters[name] = Parameter(
                kaiming_normal(generator, size) if starts_random else zeros(*size), CONV_LR_MULT
            )
    features = 2 * config.width
    parameters["tower.out.weight"] = Parameter(uniform(generator, (config.num_classes, features), features**-0.5))
    parameters["tower.out.bias"] = Parameter(zeros(config.num_classes))
    return parameters


def init_from_data(
    parameters: Mapping[str, Parameter],
    config: CrepeConfig,
    data: Dataset,
    process_group: ProcessGroup,
    seed: int,
    steps: int,
    loaded: Collection[str],
) -> None:
    """Initialise the parameters from the training split.

    The n-gram branch is always initialised. The embedding table is changed only if no parameters were loaded: the
    class-aware embedding is added, and rows that no n-gram of the training split uses are set to zero, so that files
    can omit them. If there are more than ``MAX_COUNTS`` / ``embedding_rows`` classes, some classes are counted together
    and have the same direction.

    If no parameters were loaded and the run has few steps, the learning rates of both branches are raised
    (docs/decisions/training.md).
    """
    ngram_parameters = {
        name[len(PREFIX) :]: parameter for name, parameter in parameters.items() if name.startswith(PREFIX)
    }
    loaded_ngrams = {name[len(PREFIX) :] for name in loaded if name.startswith(PREFIX)}
    ngrams.init_from_data(ngram_parameters, config.ngram_config, data, process_group, seed, steps, loaded_ngrams)
    if loaded:
        return
    ngrams.raise_lr_for_few_steps(
        {name: parameter for name, parameter in parameters.items() if not name.startswith(PREFIX)}, steps
    )
    counting_config = replace(
        config.embedding_config, num_classes=min(config.num_classes, MAX_COUNTS // config.embedding_rows)
    )
    documents = data.class_counts()
    class_sizes = np.bincount(np.arange(len(documents)) % counting_config.num_classes, documents).astype(np.int64)
    counts = count_ngrams(counting_config, data, process_group)
    embeddings = parameters["tower.table"].data
    embeddings += np.float32(CLASS_AWARE_SCALE) * class_aware_embedding(counts, class_sizes, config.width, seed)
    embeddings[~counts.any(axis=1)] = 0


def class_aware_embedding(
    counts: npt.NDArray[np.int32], documents: npt.NDArray[np.int64], width: int, seed: int
) -> npt.NDArray[np.float32]:
    """Embed n-grams by the classes of the documents that contain them, float32 [rows, width].

    Each class has a random direction: ``width`` numbers, each 1 or -1. The embedding of an n-gram is a weighted sum of
    the directions. The weight of a class is the deviation of the n-gram's frequency in the class (``class_z_scores``),
    reduced by ``CHANCE`` and divided by the square root of the number of documents with the n-gram. The weight is
    between -2 and 2. The sums are exact, so the result is the same on every machine.

    Args:
        counts: Number of documents of each class that contain an n-gram of a row, int32 [rows, classes].
        documents: Number of documents of each class, int64 [classes].
        width: Number of elements of an embedding.
        seed: Seed of the directions.
    """
    directions = np.random.default_rng(seed).choice((-1.0, 1.0), (counts.shape[1], width))
    embedding = np.zeros((len(counts), width), np.float32)
    for chunk in iter_frequent_buckets(counts, CHANCE):
        excess = class_z_scores(counts[chunk], documents)
        excess = np.sign(excess) * np.maximum(np.abs(excess) - CHANCE, 0)
        deviates = excess.any(axis=1)
        chunk, excess = chunk[deviates], excess[deviates]
        excess /= np.sqrt(bucket_totals(counts[chunk])[:, None])
        embedding[chunk] = np.rint(excess * FRACTION) @ directions / FRACTION
    return embedding
