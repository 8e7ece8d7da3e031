"""HTML page of the findings about a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crepe_dist.data.origins import Origin
from crepe_dist.reports.page import render
from crepe_dist.version import __version__
from crepe_dist.wording import clean, counted, excerpt, percent

MOST = 100  # rows of a table
MOST_CHARACTERS = 400  # of a text


def page(findings: Mapping[str, Any], name: str, classes: list[str]) -> str:
    """Render the findings as a self-contained page; long lists are cut, since the CSV files have all of them."""
    texts, scored = findings["texts"]
    groups = len({row["group"] for row in findings["duplicates"]})
    return render(
        "inspection.html",
        name=excerpt(name),
        version=__version__,
        folds=findings["folds"],
        tiles=[
            ("texts", f"{texts:,}", [counted(len(classes), "class", "classes"), f"{scored:,} judged"]),
            (
                "probably wrong labels",
                f"{len(findings['errors']):,}",
                [f"{percent(len(findings['errors']), scored)} of the texts"],
            ),
            ("contradicting duplicates", f"{groups:,}", [f"{counted(len(findings['duplicates']), 'text')} in all"]),
            ("out-of-fold accuracy", percent(findings["accuracy"]), ["on the labels as they are"]),
        ],
        counts={"errors": len(findings["errors"]), "duplicates": groups, "label_next": len(findings["label_next"])},
        errors=_shown(findings["errors"]),
        duplicates=_shown(findings["duplicates"]),
        pairs=_shown(findings["pairs"]),
        label_next=_shown(findings["label_next"]),
    )


def _shown(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: excerpt(value, MOST_CHARACTERS) if key == "text" else clean(value) for key, value in _placed(row).items()}
        for row in rows[:MOST]
    ]


def _placed(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add where a text is from, if it is one of the data set."""
    return {**row, "place": str(Origin(row["file"], row["line"], row["id"], row["hash"]))} if "hash" in row else row
