"""Predictions as tensors, the same for every server of the Open Inference Protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from crepe_dist.predicting.prediction import Prediction

INPUT, BYTES, FLOATS = "text", "BYTES", "FP32"


def outputs(several: bool) -> dict[str, str]:
    """Return the types of the outputs by name. Each has one value for a text, and ``probabilities`` one for a class."""
    labels = {"labels": BYTES} if several else {}
    return {"label": BYTES, **labels, "probabilities": FLOATS, "problem": BYTES}


def values(predictions: Sequence[Prediction], classes: Sequence[str]) -> dict[str, list[Any]]:
    """Collect the values of the outputs, text by text; ``labels`` are JSON lists.

    A text with a problem has no label, and zeros for probabilities.
    """
    nothing = dict.fromkeys(classes, 0.0)
    shares = [nothing if each.problem else dict(each.ranking) for each in predictions]
    return {
        "label": ["" if each.problem or each.rejected else each.label for each in predictions],
        "labels": [json.dumps([] if each.problem else each.labels, ensure_ascii=False) for each in predictions],
        "probabilities": [share[name] for share in shares for name in classes],
        "problem": [each.problem for each in predictions],
    }
