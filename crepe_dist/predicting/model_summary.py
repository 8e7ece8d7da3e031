"""Summary of a checkpoint, in the words and numbers that a page, the HTTP service and its metrics show."""

from __future__ import annotations

from typing import Any, NamedTuple

from crepe_dist.data.alphabet import Encoding
from crepe_dist.model.precision import Plan


class ModelSummary(NamedTuple):
    """Summary of one checkpoint.

    Args:
        checkpoint: name of its file.
        data: name of the data that it was trained on; empty where nothing says so.
        test_accuracy: a fraction, if known.
        classes: names in the order of the outputs.
        feature_len: characters that the network reads.
        reads_end: whether these are a text's last; else its first.
        is_latin: whether it knows Latin letters, digits and signs; else an alphabet of its own.
        kernels: what computes it, and in which precision.
    """

    checkpoint: str
    data: str
    test_accuracy: float | None
    classes: list[str]
    feature_len: int
    reads_end: bool
    is_latin: bool
    kernels: str


def summarise(name: str, about: dict[str, Any], classes: list[str], encoding: Encoding, plan: Plan) -> ModelSummary:
    """Summarise a checkpoint.

    Args:
        name: of the checkpoint's file.
        about: what ``checkpoint.describe`` says of it; of foreign parameters nothing.
    """
    accuracy, data = about.get("test_accuracy"), about.get("data")
    source = data.get("name") if isinstance(data, dict) else None
    return ModelSummary(
        name,
        source if isinstance(source, str) else "",
        float(accuracy) if isinstance(accuracy, (int, float)) and 0 <= accuracy <= 1 else None,
        classes,
        encoding.feature_len,
        encoding.mode != "notebook",
        not encoding.is_custom,
        f"{'own' if plan.library else 'mxnet'}, {plan.precision}",
    )
