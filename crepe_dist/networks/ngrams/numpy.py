"""The n-gram network in NumPy."""

import numpy as np

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.char_encoder import CharIds
from crepe_dist.model.inference import Floats
from crepe_dist.native.constants import NGRAM_ROOT_SCALE, NGRAM_SCALE, NUM_BUCKET_GROUPS
from crepe_dist.networks.ngrams.config import NGramConfig
from crepe_dist.networks.ngrams.hashing import hash_documents


def logits(config: NGramConfig, arrays: Arrays, char_ids: CharIds) -> Floats:
    """Compute logits: uint8 [n, feature_len] → float32 [n, classes]."""
    result = np.tile(arrays["bias"], (len(char_ids), 1))
    for row, buckets, number in zip(result, *hash_documents(char_ids, config)):
        buckets = buckets[:number]
        groups = arrays["significant"][buckets] + 2 * (buckets >= config.buckets - config.word_buckets)
        factors = np.zeros(number, np.float32)
        for group in (groups == number for number in range(NUM_BUCKET_GROUPS)):
            size = max(float(group.sum()), 1)
            factors += group * np.float32(min(NGRAM_ROOT_SCALE * size**0.5, NGRAM_SCALE) / size)
        row += factors @ arrays["weight"][buckets]
    return result
