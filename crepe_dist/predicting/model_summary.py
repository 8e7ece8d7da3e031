"""Summary of a checkpoint for web pages, the HTTP service and its metrics."""

from __future__ import annotations

from typing import Any, NamedTuple

from crepe_dist.data.alphabet import Encoding
from crepe_dist.model.precision import Plan
from crepe_dist.wording import measure


class ModelSummary(NamedTuple):
    """Summary of one checkpoint.

    Args:
        data: name of the data set that it was trained on; empty if unknown.
        kept: numbers of characters at the beginning and at the end of a longer text that it reads.
        is_latin: whether the alphabet consists of Latin letters, digits and signs, not of the data's own characters.
        kernels: implementation of the kernels, and their precision.
        several: whether it gives several labels.
    """

    checkpoint: str
    data: str
    test_accuracy: float | None
    classes: list[str]
    feature_len: int
    kept: tuple[int, int]
    is_latin: bool
    kernels: str
    several: bool = False

    @property
    def measure(self) -> str:
        """Name of ``test_accuracy``."""
        return measure(self.several)


def summarise(name: str, about: dict[str, Any], classes: list[str], encoding: Encoding, plan: Plan) -> ModelSummary:
    """Summarise a checkpoint."""
    accuracy, data = about.get("test_accuracy"), about.get("data")
    source = data.get("name") if isinstance(data, dict) else None
    return ModelSummary(
        name,
        source if isinstance(source, str) else "",
        float(accuracy) if isinstance(accuracy, (int, float)) and 0 <= accuracy <= 1 else None,
        classes,
        encoding.feature_len,
        encoding.kept,
        not encoding.is_custom,
        f"{plan.build}, {plan.precision}",
        "labels" in about,
    )
