"""The paper's network in NumPy."""

import numpy as np

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.char_encoder import CharIds
from crepe_dist.model.inference import Floats, convolve, max_pool, sum_in_order
from crepe_dist.native.constants import PAPER_POOL
from crepe_dist.networks.paper.config import CONVOLUTION_NAMES, CONVOLUTIONS, DENSE_NAMES, PaperConfig


def logits(config: PaperConfig, arrays: Arrays, char_ids: CharIds) -> Floats:
    """Compute logits: uint8 [n, feature_len] → float32 [n, classes]."""
    x: Floats = _characters(arrays["0.weight"], char_ids) + arrays["0.bias"]
    for name, (_, is_pooled) in zip(CONVOLUTION_NAMES, CONVOLUTIONS):
        if name != CONVOLUTION_NAMES[0]:
            x = convolve(x, arrays[f"{name}.weight"]) + arrays[f"{name}.bias"]
        x = np.maximum(x, 0)
        x = max_pool(x[:, : x.shape[1] // PAPER_POOL * PAPER_POOL], PAPER_POOL) if is_pooled else x
    x = x.transpose(0, 2, 1).reshape(len(x), -1)
    for name in DENSE_NAMES:
        x = x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]
        x = x if name == DENSE_NAMES[-1] else np.maximum(x, 0)
    return x


def _characters(weight: Floats, char_ids: CharIds) -> Floats:
    """Convolve one-hot characters by adding slices of the weight, float32 [filters, characters, kernel]."""
    _, characters, kernel = weight.shape
    # The last row, which is zero, is the row of blanks.
    rows = np.pad(weight.transpose(2, 1, 0), ((0, 0), (0, 1), (0, 0)))
    char_ids, positions = np.minimum(char_ids, np.uint8(characters)), char_ids.shape[1] - kernel + 1
    return sum_in_order([rows[tap][char_ids[:, tap : tap + positions]] for tap in range(kernel)])
