"""Lines of the source file that findings come from, found by the codes of their texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

from crepe_dist.data.alphabet import Codes
from crepe_dist.inspecting.corpus import Corpus
from crepe_dist.inspecting.inspection import Record
from crepe_dist.predicting.inputs import Input


def add_lines(records: Iterable[Record], corpus: Corpus, groups: Iterable[Sequence[Input]]) -> int:
    """Add to records the ``line`` of their text in a source file, and the text as it is there.

    Several rows of the source may look the same to the network; their lines are joined by spaces.

    Args:
        records: rows with a ``split`` and a ``row``.
        groups: rows of the source file.

    Returns:
        Number of records whose text is not in the file; their line is empty.
    """
    records = list(records)
    numbers = np.array([corpus.number(record["split"], record["row"]) for record in records], np.int64)
    keys = [key for _, codes in corpus.batches(numbers) for key in _digests(codes)]
    wanted: dict[bytes, list[Input]] = {key: [] for key in keys}
    for group in groups:
        rows = [row for row in group if not row.problem]
        for key, row in zip(_digests(corpus.dataset.encoding.encode([row.text for row in rows])), rows):
            if key in wanted:
                wanted[key].append(row)
    for record, key in zip(records, keys):
        found = wanted[key]
        record["line"] = " ".join(str(row.line) for row in found)
        record["text"] = found[0].text if found else record["text"]
    return sum(not record["line"] for record in records)


def _digests(codes: Codes) -> list[bytes]:
    return [blake2b(row.tobytes(), digest_size=16).digest() for row in codes]
