"""``model_card.md``: documentation for users of a model, after Mitchell et al. 2019 (arXiv:1810.03993)."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from crepe_dist.files import sha256
from crepe_dist.model.parameters import shape_class
from crepe_dist.reports import findings, score_tables
from crepe_dist.reports.page import render
from crepe_dist.version import __version__
from crepe_dist.wording import clean, excerpt

if TYPE_CHECKING:
    from crepe_dist.runs.run_record import RunRecord
    from crepe_dist.runs.scores import AnyScores

MAX_CLASSES = 300
MAX_CHARS = 4000
# The first group has a meaning in every Markdown dialect and is escaped by a backslash; the second only has one in some
# dialects, which may not support the backslash.
SPECIAL = re.compile(r"([\\`*_\[\]{}#!])|([<>&|~$@]|:(?=/)|(?<=www)\.)", re.IGNORECASE)


def escaped(text: str) -> Markup:
    """Escape text for Markdown, so that it is shown literally anywhere outside a code block."""
    return Markup(
        SPECIAL.sub(lambda sign: f"\\{sign[1]}" if sign[1] else f"&#{ord(sign[2])};", excerpt(text, MAX_CHARS))
    )


def card(record: RunRecord, flaws: list[str]) -> str:
    """Render the model card of a run's reported checkpoint as Markdown; ``flaws`` are those of its data."""
    classes = clean(record.classes)
    limits = [*findings.limits(record, classes), *(f"Its data: {flaw}." for flaw in flaws)]
    scores = record.scores.get("test") or record.label_scores.get("test")
    length = int(record.description["encoding"]["feature_len"])
    provenance = record.provenance
    return render(
        "model_card.md",
        name=escaped(record.name),
        version=__version__,
        result=escaped(findings.result(record, classes)),
        choice=findings.choice(record),
        network=escaped(findings.network(record)),
        kind=shape_class(record.description["network"]).kind,
        data={"name": escaped(record.description["data"]["name"]), "fingerprint": escaped(record.fingerprint)},
        splits=[(escaped(name), count) for name, count in findings.split_sizes(record).items()],
        classes=[escaped(name) for name in record.classes[:MAX_CLASSES]],
        count=len(classes),
        rows=_rows(scores, classes) if scores else [],
        macro_f1=scores.macro_f1 if scores else 0.0,
        several="labels" in record.description,
        limits=[escaped(sentence) for sentence in limits],
        encoding=record.description["encoding"],
        feature_len=length,
        checkpoint=_code(shlex.quote(record.checkpoint.name)),
        literal=_code(repr(record.checkpoint.name)),
        environment=[
            (escaped(str(name)), escaped(str(value))) for name, value in provenance.get("environment", {}).items()
        ],
        command=_code(findings.command(record)),
        digest=sha256(record.checkpoint),
        reproducible=findings.reproducible(record),
    )


def _rows(scores: AnyScores, classes: list[str]) -> list[dict[str, Any]]:
    rows = score_tables.table(scores, classes)[:MAX_CLASSES]
    return [{**row, "name": escaped(row["name"]), "taken": escaped(row.get("taken", ""))} for row in rows]


def _code(text: str) -> Markup:
    """Make one line for a code block; it cannot end the block and needs no escaping."""
    return Markup(excerpt(text, MAX_CHARS))
