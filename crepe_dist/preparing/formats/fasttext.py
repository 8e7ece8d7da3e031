"""fastText's training files: `__label__a __label__b text`, one document per line."""

from __future__ import annotations

from dataclasses import dataclass

from crepe_dist.preparing.formats.rows import MAX_RECORD, BadRow, Block, Parsed, Row, Share, excerpt, too_long
from crepe_dist.preparing.labelling import FASTTEXT, fasttext_cell


@dataclass(frozen=True)
class FastText:
    """Parser of fastText's lines: words that start with ``__label__`` are labels, the others are the text.

    Args:
        kind: labels of a row, one of ``targets.KINDS``.
        name: name of the format.
        reads: description of what is read, for the report.
        kept, texts: none.
    """

    kind: str
    name: str = "fasttext"
    reads: str = "label: words with __label__, text: other words"
    kept: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def parse(self, block: Block, share: Share) -> Parsed:
        lines = block.data.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n")
        result = Parsed([], [], len(block.data), len(lines))
        for number, line in enumerate(lines, start=block.line):
            words = line.split()
            if not words or not share.owns(number):
                continue
            labels = [word for word in words if word.startswith(FASTTEXT)]
            text = " ".join(word for word in words if not word.startswith(FASTTEXT))
            try:
                if len(line) > MAX_RECORD:
                    raise ValueError(too_long())
                result.rows.append(Row(number, fasttext_cell(labels, self.kind), text))
            except ValueError as error:
                result.bad.append(BadRow(number, str(error), excerpt(line)))
        return result
