"""``model_card.md``: what those should know who get the model, after Mitchell et al. 2019 (arXiv:1810.03993)."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from crepe_dist.reports import data_sentences, run_findings
from crepe_dist.reports import score_tables as score_view
from crepe_dist.reports.page import render
from crepe_dist.version import __version__
from crepe_dist.wording import clean, visible

if TYPE_CHECKING:
    from crepe_dist.runs.run_record import RunRecord

MOST_CLASSES = 300
LONGEST = 4000  # characters
# What Markdown takes for something else than itself, wherever it stands: a backslash before it helps. Second, what only
# some dialects do, which need not know that.
SPECIAL = re.compile(r"([\\`*_\[\]{}#!])|([<>&|~$@]|:(?=/)|(?<=www)\.)", re.IGNORECASE)


def escaped(text: str) -> Markup:
    """Text for any place in Markdown but blocks of code: it makes no link, picture, table or tag, and looks so."""
    return Markup(
        SPECIAL.sub(lambda found: f"\\{found[1]}" if found[1] else f"&#{ord(found[2])};", visible(text, LONGEST))
    )


def card(record: RunRecord, data: dict[str, Any] | None) -> str:
    """The card of a run's reported checkpoint, in Markdown.

    Args:
        data: the numbers of the data's own report, if it is there.
    """
    classes = clean(record.classes)
    scores = record.scores.get("test")
    length = int(record.about["encoding"]["feature_len"])
    seen = _seen(data)
    made = record.made
    return render(
        "model_card.md",
        name=escaped(record.name),
        version=__version__,
        result=escaped(run_findings.result(record, classes)),
        choice=run_findings.choice(record),
        network=escaped(run_findings.network(record)),
        of_ngrams=run_findings.is_of_ngrams(record),
        data={"name": escaped(record.about["data"]["name"]), "fingerprint": escaped(record.fingerprint)},
        parts=[(escaped(name), count) for name, count in run_findings.part_sizes(record)],
        classes=[escaped(name) for name in record.classes[:MOST_CLASSES]],
        count=len(classes),
        rows=_rows(scores, classes) if scores is not None else [],
        macro_f1=scores.macro_f1 if scores is not None else 0.0,
        limits=[escaped(each) for each in [*run_findings.limits(record, classes), *seen]],
        encoding=record.about["encoding"],
        feature_len=length,
        checkpoint=_code(shlex.quote(record.checkpoint.name)),
        literal=_code(repr(record.checkpoint.name)),
        environment=[(escaped(str(name)), escaped(str(value))) for name, value in made.get("environment", {}).items()],
        command=_code(run_findings.command(record)),
    )


def _rows(scores: Any, classes: list[str]) -> list[dict[str, Any]]:
    rows = score_view.table(scores, classes)[:MOST_CLASSES]
    return [{**row, "name": escaped(row["name"]), "taken": escaped(row["taken"])} for row in rows]


def _code(text: str) -> Markup:
    """One line for a block of code, in which nothing is escaped and which only a line of backticks ends."""
    return Markup(visible(text, LONGEST))


def _seen(data: dict[str, Any] | None) -> list[str]:
    """What of the texts it was trained on the network did not see."""
    try:
        return [f"Its data: {data_sentences.characters(data)} {data_sentences.cutting(data)}"] if data else []
    except (KeyError, TypeError, ValueError, AttributeError):
        return []  # of another version
