"""Networks that the doctor tries: the default one, and one that our own kernels compute on CPUs only."""

from __future__ import annotations

from typing import Any

from crepe_dist import registry
from crepe_dist.model.shape import Shape
from crepe_dist.settings.data_options import SHORTEST
from crepe_dist.settings.model_options import ModelOptions

DEFAULT, PAPER = NETWORKS = ("crepe", "paper")
SIZES: dict[str, dict[str, Any]] = {
    DEFAULT: {"buckets": 1 << 14, "embeddings": 1 << 14},
    PAPER: {"filters": 32, "units": 64},
}
CHARACTERS, CLASSES, ROWS = 69, 4, 1000


def small_shape(kind: str) -> Shape:
    """Return the shape of a network whose training step takes well under a second, of the default width."""
    options = ModelOptions(network=kind, **SIZES[kind])
    shape: Shape = registry.shape(kind).for_data(options, CHARACTERS, SHORTEST, CLASSES, ROWS)
    return shape
