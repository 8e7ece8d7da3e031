"""Unlabelled texts, one per line."""

from __future__ import annotations

from dataclasses import dataclass

from crepe_dist.preparing.formats.rows import MAX_RECORD, BadRow, Block, Parsed, Row, Share, excerpt, too_long


@dataclass(frozen=True)
class TextLines:
    """Parser of text lines. Every line is a row, even an empty one; bytes that are not UTF-8 become "�".

    Args:
        kept: name of the text column, if the text goes into ``Row.cells``.
        name: name of the format.
        reads: description of the columns read, for the report.
        texts: none.
    """

    kept: tuple[str, ...] = ()
    name: str = "lines"
    reads: str = "text: whole lines"
    texts: tuple[str, ...] = ()

    def parse(self, block: Block, share: Share) -> Parsed:
        lines = block.data.decode("utf-8", "replace").removesuffix("\n").split("\n")
        result = Parsed([], [], len(block.data), len(lines))
        for number, line in enumerate(lines, start=block.line):
            text = line.rstrip("\r")
            if not share.owns(number):
                continue
            if len(text) > MAX_RECORD:
                result.bad.append(BadRow(number, too_long(), excerpt(text)))
            else:
                result.rows.append(Row(number, "", text, (text,) if self.kept else ()))
        return result
