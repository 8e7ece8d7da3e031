"""Forgetting of the classes of the run that another one extends (``training.extend``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from crepe_dist.errors import UserError
from crepe_dist.reports.score_tables import LABEL_CELLS
from crepe_dist.reports.uncertainty import standard_error
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_record import open_run
from crepe_dist.wording import clean, counted, cut, excerpt, listed, percent

if TYPE_CHECKING:
    from crepe_dist.runs.checkpoint import AnyScores
    from crepe_dist.runs.run_record import RunRecord

SHOWN_CLASSES = 3


@dataclass(frozen=True)
class Forgetting:
    """Accuracy on the test documents of an extended run, before and after.

    Attributes:
        run: name of the extended run.
        documents: number of its test documents.
        error: standard error of the difference.
        lost: classes whose recall fell, with both values, the one that fell most first.
    """

    run: str
    documents: int
    before: float
    after: float
    error: float
    lost: list[tuple[str, float, float]]

    @property
    def is_significant(self) -> bool:
        return self.before - self.after > self.error

    def __str__(self) -> str:
        return (
            f"Of the {counted(self.documents, 'test text')} of {self.run}, which it extends, it classifies "
            f"{percent(self.after)} correctly; that run classified {percent(self.before)}."
            + (f" The recall fell most for {self.fallen}." if self.lost else "")
        )

    @property
    def fallen(self) -> str:
        return listed(
            [f"{name} ({percent(before)} to {percent(after)})" for name, before, after in self.lost[:SHOWN_CLASSES]]
        )


@dataclass(frozen=True)
class Unmeasured:
    """Extended run whose test documents were gone.

    Attributes:
        run: name of the extended run.
        documents: number of its test documents.
        before: accuracy of the extended run on them.
    """

    run: str
    documents: int
    before: float

    def __str__(self) -> str:
        return (
            f"It extends {self.run}, whose data were gone, and learnt its classes from the answers of its network. "
            f"{self.run} classified {percent(self.before)} of {counted(self.documents, 'test text')} correctly; how "
            "many this model does is unknown."
        )


def forgetting(record: RunRecord) -> Forgetting | Unmeasured | None:
    """Compare a run with the one that it extends; ``None`` if that is gone or has no scores for each test document."""
    run = record.settings.get("training.extend")
    if not isinstance(run, str):
        return None
    try:
        path = checkpoint.find(run).absolute()
        old = open_run(path.parent.parent, path)
    except UserError:
        return None
    before, after = _test_scores(old), _test_scores(record)
    if before is None or after is None or before.right is None or after.right is None:
        return None
    count = len(old.classes)
    if old.classes != record.classes[:count]:
        return None
    if (after.class_documents[:count] < before.class_documents).any():
        return Unmeasured(excerpt(old.name), before.documents, float(before.right.mean()))
    right = before.right, after.right[: before.documents]  # the documents of the old data come first
    only_before, only_after = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    fall = before.recall - after.recall[:count]
    names = clean(old.classes)
    lost = [
        (cut(names[index], LABEL_CELLS), float(before.recall[index]), float(after.recall[index]))
        for index in np.argsort(-fall, kind="stable").tolist()
        if fall[index] > 0
    ]
    error = standard_error(only_before, only_after, before.documents)
    return Forgetting(excerpt(old.name), before.documents, float(right[0].mean()), float(right[1].mean()), error, lost)


def _test_scores(record: RunRecord) -> AnyScores | None:
    scores: dict[str, AnyScores] = {**record.scores, **record.label_scores}
    return scores.get("test")
