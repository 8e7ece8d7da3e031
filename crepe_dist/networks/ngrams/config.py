"""The n-gram network: a linear classifier on hashed character n-grams and words, for data sets with thousands of rows.

A convolution of width n over one-hot characters has one weight per position and character. This network has one weight
per n-gram and class, n = 1 … ``maxn``, in a hash table, like fastText's table of word n-grams (Bojanowski et al. 2017,
arXiv:1607.04606; Weinberger et al. 2009, arXiv:0902.2206). Each distinct n-gram of a document counts once, at any
position (Wang & Manning 2012, "Baselines and Bigrams"):

    logits = bias + 300 × (mean of weight[b] over the document's significant buckets b of n-grams
                           + mean of weight[b] over its other buckets of n-grams
                           + the same two means over its buckets of words)

Words are runs of letters and digits, and pairs of neighbouring words. They span more text than n-grams, and have
buckets of their own, so that words and n-grams do not collide: on 15 data sets the validation loss falls from 0.450 to
0.447 (docs/decisions/networks.md). There is no vocabulary. A misspelt word still matches by its n-grams.

N-grams may contain symbols for the start and the end of the document. For a mean over n buckets, the factor 300 is
replaced by 10 × √n if that is smaller, so that the n-grams of short documents do not learn too fast. Adam keeps one
second moment for all classes of a bucket, so that a class that hardly contributes to the loss hardly changes.

A bucket is significant if its frequency in some class deviates from its overall frequency by more than chance explains.
The frequencies are counted once, before training (``init.py``). The significant n-grams have their own mean. Otherwise,
the thousands of other n-grams would memorise the training documents before the few informative n-grams are trained.

The loss is convex in the parameters, so training cannot stay at chance because of the initialisation or the data order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from crepe_dist.data.char_encoder import CharIds
from crepe_dist.model.network_config import NetworkConfig, RowUsage
from crepe_dist.native.constants import NGRAM_ROOT_SCALE, NGRAM_SCALE, NUM_BUCKET_GROUPS
from crepe_dist.networks.ngrams.hashing import hash_documents

if TYPE_CHECKING:
    from crepe_dist.data.arrays import Arrays
    from crepe_dist.data.char_encoder import CharEncoder
    from crepe_dist.settings.options import ModelOptions

DEFAULT_MAXN, MAX_MAXN = 6, 7  # Length of the longest n-grams, in characters: default and maximum.
WORD_BUCKET_FRACTION = 0.25  # Fraction of the buckets that hold words.
MAX_BUCKETS = 1 << 20  # Maximum of the default number of buckets.
MIN_BUCKETS = 1 << 14  # Minimum of the default number of buckets.
MAX_PARAMETERS = 8_000_000  # Maximum number of weights by default. ``MIN_BUCKETS`` takes precedence over this limit.


def buckets_for(classes: int) -> int:
    """Return the default number of buckets, a power of two that decreases as the number of classes grows."""
    buckets = MAX_BUCKETS
    while buckets > MIN_BUCKETS and buckets * classes > MAX_PARAMETERS:
        buckets //= 2
    return buckets


@dataclass(frozen=True)
class NGramConfig(NetworkConfig):
    """Configuration of the n-gram network.

    Attributes:
        maxn: Length of the longest n-grams, in characters.
        buckets: Number of rows of the hash table.
        num_word_char_ids: Number of ids of characters that form words. These are the lowest ids.
        word_buckets: Number of buckets of words and of pairs of words. These are the last buckets.
    """

    kind: ClassVar[str] = "ngrams"
    title: ClassVar[str] = "hashed character n-grams and words"
    description_template: ClassVar[str] = "character n-grams of length 1 to {maxn}, and words, {buckets} buckets"
    class_axes: ClassVar[Mapping[str, int]] = {"weight": 1, "bias": 0}
    sparse_parameters: ClassVar[tuple[str, ...]] = ("weight",)
    buffers: ClassVar[tuple[str, ...]] = ("significant",)
    is_matmul_bound: ClassVar[bool] = False
    too_large_hint: ClassVar[str] = "lower model.buckets"
    max_sizes: ClassVar[Mapping[str, int]] = {"maxn": MAX_MAXN}

    maxn: int
    buckets: int
    num_word_char_ids: int
    word_buckets: int

    @classmethod
    def for_data(cls, options: "ModelOptions", encoder: "CharEncoder", classes: int, rows: int) -> "NGramConfig":
        buckets = options.buckets or buckets_for(classes)
        of_words = encoder.num_word_ids, int(buckets * WORD_BUCKET_FRACTION)
        return cls(encoder.num_ids, encoder.feature_len, classes, DEFAULT_MAXN, buckets, *of_words)

    @property
    def activations(self) -> int:
        return self.max_ngrams

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.buckets, self.num_classes), "bias": (self.num_classes,), "significant": (self.buckets,)}

    @property
    def max_ngrams(self) -> int:
        """Maximum number of n-grams, words and pairs of words in a document of full length."""
        return sum(max(self.feature_len + 2 - n, 0) for n in range(self.maxn)) + self.feature_len

    def max_rows_per_batch(self, documents: int) -> dict[str, int]:
        return {"weight": min(self.buckets, documents * self.max_ngrams)}

    def row_usage(self, arrays: "Arrays", char_ids: CharIds) -> dict[str, RowUsage]:
        buckets, counts = hash_documents(char_ids, self)
        used = np.arange(buckets.shape[1]) < counts[:, None]
        groups = (arrays["significant"] + 2 * (np.arange(self.buckets) >= self.buckets - self.word_buckets))[buckets]
        group_masks = [(groups == number) & used for number in range(NUM_BUCKET_GROUPS)]
        sizes = sum(group * group.sum(axis=1, keepdims=True) for group in group_masks)[used]
        return {"weight": (buckets[used], np.square(np.minimum(NGRAM_ROOT_SCALE * sizes**0.5, NGRAM_SCALE) / sizes))}

    def __str__(self) -> str:
        return f"words and character n-grams up to {self.maxn}, {self.buckets:,} buckets"


CONFIG_CLASS = NGramConfig
