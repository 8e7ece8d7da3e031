"""Texts of findings as they are in the source file; a data set keeps no texts of its training split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from crepe_dist.data.composition import Composition
from crepe_dist.data.origins import hashes, spelled
from crepe_dist.inspecting.inspection import Record
from crepe_dist.predicting.inputs import Input


def add_texts(records: Sequence[Record], groups: Iterable[Sequence[Input]], composition: Composition) -> int:
    """Replace the texts of records by those in a source file, by their hash; return the number of those not in it.

    Args:
        records: rows with a ``hash`` and a ``text``.
        groups: rows of the source file.
        composition: that of the data set.
    """
    wanted = {record["hash"] for record in records}
    texts: dict[str, str] = {}
    for group in groups:
        found = [composition.text(row.text) for row in group if not row.problem]
        digests = map(spelled, hashes(text.encode() for text in found).tolist())
        texts |= {digest: text for digest, text in zip(digests, found) if digest in wanted}
    for record in records:
        record["text"] = texts.get(record["hash"], record["text"])
    return sum(record["hash"] not in texts for record in records)
