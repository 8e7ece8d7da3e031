"""Crepe in NumPy."""

import numpy as np

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.char_encoder import CharIds
from crepe_dist.model.inference import Floats, convolve, max_pool, sum_in_order
from crepe_dist.native.constants import BRANCH_SUM_SCALE, CONV_KERNEL_SIZE, POOLED_BLOCKS
from crepe_dist.networks.crepe.config import CrepeConfig, hash_positions
from crepe_dist.networks.ngrams import numpy as ngrams


def logits(config: CrepeConfig, arrays: Arrays, char_ids: CharIds) -> Floats:
    """Compute logits: uint8 [n, feature_len] → float32 [n, classes]."""
    table = ngrams.logits(config.ngram_config, _strip_prefix(arrays, "ngrams."), char_ids)
    return np.asarray(
        np.float32(BRANCH_SUM_SCALE) * (table + _conv_branch(config, _strip_prefix(arrays, "tower."), char_ids))
    )


def _strip_prefix(arrays: Arrays, prefix: str) -> Arrays:
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def _conv_branch(config: CrepeConfig, arrays: Arrays, char_ids: CharIds) -> Floats:
    buckets, known, is_inside = hash_positions(
        char_ids, config.alphabet_size, config.embedding_maxn, config.embedding_rows, config.stride
    )
    table = arrays["table"]
    x = np.maximum(sum_in_order([table[buckets[:, :, n]] * known[:, :, n, None] for n in range(buckets.shape[2])]), 0)
    inside = is_inside[:, :, None].astype(np.float32)

    def convolve_block(x: Floats, number: int) -> Floats:
        padded = np.pad(x, ((0, 0), (CONV_KERNEL_SIZE // 2, CONV_KERNEL_SIZE // 2), (0, 0)))
        name = f"convolutions.{number}"
        return np.asarray(convolve(padded, arrays[f"{name}.weight"]) + arrays[f"{name}.bias"])

    for block in range(config.blocks):
        hidden = np.maximum(convolve_block(x, 2 * block), 0) * inside
        x = np.maximum(x + convolve_block(hidden, 2 * block + 1), 0) * inside
        # An odd number of positions is padded with 0. This does not change the maxima, because no activation is
        # negative.
        if block < POOLED_BLOCKS:
            x, inside = (max_pool(np.pad(a, ((0, 0), (0, a.shape[1] % 2), (0, 0))), 2) for a in (x, inside))
    mean = x.sum(axis=1) / np.maximum(inside.sum(axis=1), 1)
    features = np.concatenate([x.max(axis=1), mean], axis=1)
    return np.asarray(features @ arrays["out.weight"].T + arrays["out.bias"])
