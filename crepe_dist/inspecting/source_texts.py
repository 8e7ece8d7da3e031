"""Texts of findings as they are in the source file; a data set keeps no texts of its training split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from crepe_dist.data.origins import hashes, spelled
from crepe_dist.inspecting.inspection import Record
from crepe_dist.predicting.inputs import Input


def add_texts(records: Sequence[Record], groups: Iterable[Sequence[Input]]) -> int:
    """Replace the texts of records by those in a source file, by their hash; return the number of those not in it.

    Args:
        records: rows with a ``hash`` and a ``text``.
        groups: rows of the source file.
    """
    wanted = {record["hash"] for record in records}
    texts: dict[str, str] = {}
    for group in groups:
        rows = [row for row in group if not row.problem]
        for digest, row in zip(hashes(row.text.encode() for row in rows).tolist(), rows):
            if spelled(digest) in wanted:
                texts[spelled(digest)] = row.text
    for record in records:
        record["text"] = texts.get(record["hash"], record["text"])
    return sum(record["hash"] not in texts for record in records)
