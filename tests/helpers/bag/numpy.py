"""The bag of characters in NumPy."""

import numpy as np

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.char_encoder import CharIds
from crepe_dist.model.inference import Floats
from tests.helpers.bag.config import BagShape


def logits(shape: BagShape, arrays: Arrays, char_ids: CharIds) -> Floats:
    """Compute logits: uint8 [n, feature_len] → float32 [n, classes]."""
    counts = (char_ids[:, :, None] == np.arange(shape.alphabet_size)).sum(axis=1, dtype=np.float32)
    return np.asarray(counts @ arrays["weight"].T + arrays["bias"])
