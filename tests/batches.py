"""Batches for a table of n-grams; imported by processes that tests start, so without pytest."""

from __future__ import annotations

from typing import Any

import numpy as np

from crepe_dist.data.batch import Batch, pack
from crepe_dist.networks.ngrams.shape import NGramShape

SHAPE = NGramShape(69, 40, 3, 3, 1 << 12)


def some_batch(shape: NGramShape, number: int, rows: int = 6) -> Batch:
    """Make a batch with characters of its own, so that most rows are not touched for many steps."""
    generator = np.random.default_rng(number)
    codes = generator.integers(number % 23 * 3, number % 23 * 3 + 4, (rows, shape.feature_len)).astype(np.uint8)
    return pack(codes, generator.integers(0, shape.classes, rows).astype(np.int32), rows, rows)


def loss_value(loss: Any) -> float:
    """Read the result of ``Engine.gradients``."""
    return float(loss) if isinstance(loss, float) else float(loss.asscalar())
