"""The paper's network in NumPy."""

from __future__ import annotations

import numpy as np

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.char_encoder import CharIds
from crepe_dist.model.inference import Floats, convolved, pooled, total
from crepe_dist.native.constants import PAPER_POOL
from crepe_dist.networks.paper.config import CONVOLUTION_NAMES, CONVOLUTIONS, DENSE_NAMES, PaperConfig


def logits(shape: PaperConfig, arrays: Arrays, codes: CharIds) -> Floats:
    """Compute logits: uint8 [n, feature_len] → float32 [n, classes]."""
    x: Floats = _characters(arrays["0.weight"], codes) + arrays["0.bias"]
    for name, (_, is_pooled) in zip(CONVOLUTION_NAMES, CONVOLUTIONS):
        if name != CONVOLUTION_NAMES[0]:
            x = convolved(x, arrays[f"{name}.weight"]) + arrays[f"{name}.bias"]
        x = np.maximum(x, 0)
        x = pooled(x[:, : x.shape[1] // PAPER_POOL * PAPER_POOL], PAPER_POOL) if is_pooled else x
    x = x.transpose(0, 2, 1).reshape(len(x), -1)
    for name in DENSE_NAMES:
        x = x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]
        x = x if name == DENSE_NAMES[-1] else np.maximum(x, 0)
    return x


def _characters(weight: Floats, codes: CharIds) -> Floats:
    """Convolve one-hot characters: a sum of rows of the weight, float32 [filters, characters, kernel]."""
    _, characters, kernel = weight.shape
    # The last row, of zeros, stands for blanks.
    rows = np.pad(weight.transpose(2, 1, 0), ((0, 0), (0, 1), (0, 0)))
    codes, positions = np.minimum(codes, np.uint8(characters)), codes.shape[1] - kernel + 1
    return total([rows[tap][codes[:, tap : tap + positions]] for tap in range(kernel)])
