"""Summary of a checkpoint for web pages, the HTTP service and its metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from crepe_dist.settings.limits import is_title
from crepe_dist.wording import measure

if TYPE_CHECKING:
    from crepe_dist.predicting.predictor import Predictor


class ModelSummary(NamedTuple):
    """Summary of one checkpoint.

    Args:
        data: name of the data set that it was trained on; empty if unknown.
        kept: numbers of characters at the beginning and at the end of a longer text that it reads.
        is_latin: whether the alphabet consists of Latin letters, digits and signs, not of the data's own characters.
        kernels: implementation of the kernels, and their precision.
        several: whether it gives several labels.
        name: name that its run was given; empty if it was given none.
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
    name: str = ""

    @property
    def measure(self) -> str:
        """Name of ``test_accuracy``."""
        return measure(self.several)


def summarise(predictor: Predictor) -> ModelSummary:
    """Summarise the checkpoint that a predictor has opened."""
    accuracy, data, name = (predictor.about.get(each) for each in ("test_accuracy", "data", "name"))
    source = data.get("name") if isinstance(data, dict) else None
    encoding, plan = predictor.encoding, predictor.engine.plan
    return ModelSummary(
        predictor.path.name,
        source if isinstance(source, str) else "",
        float(accuracy) if isinstance(accuracy, (int, float)) and 0 <= accuracy <= 1 else None,
        predictor.classes,
        encoding.feature_len,
        encoding.kept,
        not encoding.is_custom,
        f"{plan.build}, {plan.precision}",
        predictor.several,
        name if isinstance(name, str) and is_title(name) else "",
    )
