"""Output of ``evaluate`` for models that give several labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.dataset import Dataset, Split
from crepe_dist.data.typos import with_typos
from crepe_dist.distributed.collectives import Collectives
from crepe_dist.errors import visible
from crepe_dist.evaluating.typo_table import typo_table
from crepe_dist.files import write_json, write_text
from crepe_dist.reports.label_page import label_score_page
from crepe_dist.runs.label_scores import LabelScores
from crepe_dist.wording import percent


def score_labels(
    scoring: Callable[[Split], LabelScores], split: Split, dataset: Dataset, given: Any, world: Collectives, path: Path
) -> npt.NDArray[np.bool_] | None:
    """Score a split, also with typing errors; every rank calls this, and rank 0 writes the output.

    Args:
        scoring: scores a split with the model's thresholds.
        given: flags of ``evaluate``.
        path: the checkpoint.

    Returns:
        The documents with all labels right, bool [documents], if they are known.
    """
    scores, encoding = scoring(split), dataset.encoding
    noisy = {rate: scoring(with_typos(split, rate, encoding=encoding)) if rate else scores for rate in given.typos}
    if not world.is_root:
        return scores.right
    print(text(scores, dataset.classes))
    if noisy:
        print(f"\n{typo_table(noisy, several=True)}")
    if given.json is not None:
        numbers = {**scores.summary(), "classes": dataset.classes, **_by_class(scores, dataset.classes)}
        numbers["typos"] = [{"rate": rate, **each.summary()} for rate, each in noisy.items()]
        write_json(given.json, numbers)
    if given.html is not None:
        about = {"checkpoint": path.name, "data": str(dataset.folder), "part": given.split}
        write_text(given.html, label_score_page(scores, dataset.classes, about))
    return scores.right


def text(scores: LabelScores, classes: list[str]) -> str:
    """Format the scores for the terminal."""
    precision, recall = scores.micro
    lines = [
        f"micro F1 {percent(scores.accuracy)} (precision {percent(precision)}, recall {percent(recall)})   "
        f"macro F1 {scores.macro_f1:.3f}   mean average precision {scores.mean_average_precision:.3f}   "
        f"loss {scores.loss:.4f}",
        "   ".join(f"precision at {k}: {percent(value)}" for k, value in scores.precision_at.items())
        + ("" if scores.exact is None else f"   all labels right: {percent(scores.exact)}"),
    ]
    table = scores.per_class([visible(name) for name in classes])
    shares = dict.fromkeys(("precision", "recall", "threshold"), percent)
    formats = {**shares, "f1": "{:.3f}".format, "average_precision": "{:.3f}".format}
    shown = table.assign(**{name: table[name].map(form) for name, form in formats.items()})
    shown.loc[scores.labels == 0, ["recall", "f1", "average_precision"]] = "–"
    shown.loc[scores.decisions[:, :2].sum(axis=1) == 0, "precision"] = "–"
    return "\n".join([*lines, "", shown.rename(columns={"average_precision": "AP"}).to_string()])


def _by_class(scores: LabelScores, classes: list[str]) -> dict[str, Any]:
    return {"per_class": scores.per_class(classes).to_dict(orient="index"), "reliability": scores.reliability.tolist()}
