"""Texts without a label, one a line."""

from __future__ import annotations

from dataclasses import dataclass

from crepe_dist.preparing.formats.rows import MAX_RECORD, BadRow, Block, Parsed, Row, Share, excerpt, too_long


@dataclass(frozen=True)
class TextLines:
    """Every line is a row, an empty one too. Bytes that are not UTF-8 become "�", which no alphabet has.

    Args:
        kept: the name of the text, if rows are to carry it.
    """

    kept: tuple[str, ...] = ()
    name: str = "lines"
    reads: str = "text: whole lines"

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
