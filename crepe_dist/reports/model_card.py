"""Model card of a run, and escaping of untrusted names of classes and data sets in Markdown."""

import re
import shlex
from typing import Any

from markupsafe import Markup

from crepe_dist.files.safe_read import sha256
from crepe_dist.formatting import escape_nested, excerpt
from crepe_dist.model.weights_io import config_class
from crepe_dist.reports import findings
from crepe_dist.reports.page import render
from crepe_dist.reports.score_page import table
from crepe_dist.runs.record import RunRecord
from crepe_dist.runs.scores import AnyScores
from crepe_dist.version import __version__

CARD = "model_card.md"
MAX_COMMAND_CHARS = 4000
MAX_CARD_CLASSES = 300
# Characters that Markdown interprets. The first group is special in every dialect, and is escaped with a backslash. The
# second group is special only in some dialects, which may not support the backslash. This group is escaped with an HTML
# entity.
SPECIAL = re.compile(r"([\\`*_\[\]{}#!])|([<>&|~$@]|:(?=/)|(?<=www)\.)", re.IGNORECASE)


def escaped(text: str) -> Markup:
    """Escape text for Markdown, so that it is displayed literally outside code blocks."""
    return Markup(
        SPECIAL.sub(lambda sign: f"\\{sign[1]}" if sign[1] else f"&#{ord(sign[2])};", excerpt(text, MAX_COMMAND_CHARS))
    )


def render_model_card(record: RunRecord, data_facts: list[str]) -> str:
    """Render the model card (Mitchell et al. 2019, arXiv:1810.03993) of a run's selected checkpoint as Markdown.

    Args:
        record: Record of the run.
        data_facts: Statements and warnings about the data set.
    """
    classes = escape_nested(record.classes)
    limits = [*findings.describe_limits(record, classes), *(f"The data: {fact}." for fact in data_facts)]
    scores = record.test_scores
    provenance = record.provenance
    return render(
        "model_card.md",
        name=escaped(record.name),
        version=__version__,
        result=escaped(findings.describe_result(record, classes)),
        choice=findings.describe_selection(record),
        network=escaped(findings.network(record)),
        kind=config_class(record.metadata["network"]).kind,
        data={"name": escaped(record.metadata["data"]["name"]), "fingerprint": escaped(record.fingerprint)},
        splits=[(escaped(name), count) for name, count in findings.split_sizes(record).items()],
        classes=[escaped(name) for name in record.classes[:MAX_CARD_CLASSES]],
        count=len(classes),
        rows=_class_rows(scores, classes) if scores else [],
        macro_f1=scores.macro_f1 if scores else 0.0,
        is_multilabel="labels" in record.metadata,
        limits=[escaped(sentence) for sentence in limits],
        encoding=record.metadata["encoding"],
        checkpoint=_code(shlex.quote(record.checkpoint.name)),
        literal=_code(repr(record.checkpoint.name)),
        environment=[
            (escaped(str(name)), escaped(str(value))) for name, value in provenance.get("environment", {}).items()
        ],
        command=_code(findings.command(record)),
        digest=sha256(record.checkpoint),
        reproducible=findings.reproducible(record),
    )


def _class_rows(scores: AnyScores, classes: list[str]) -> list[dict[str, Any]]:
    rows = table(scores, classes)[:MAX_CARD_CLASSES]
    return [
        {**row, "name": escaped(row["name"]), "confused_with": escaped(row.get("confused_with", ""))} for row in rows
    ]


def _code(text: str) -> Markup:
    """Return a text as one line for a code block. One line cannot end the block, so Markdown need not be escaped."""
    return Markup(excerpt(text, MAX_COMMAND_CHARS))
