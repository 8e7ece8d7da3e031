"""Formats with a document per line: plain texts to classify, and fastText's training files."""

from __future__ import annotations

from functools import partial

from crepe_dist.preparing.formats.lines import LineCutter
from crepe_dist.preparing.formats.rows import MAX_RECORD, BadRow, Block, OpenFile, Parsed, Row, excerpt, too_long
from crepe_dist.preparing.labelling import FASTTEXT, fasttext_cell


def open_lines(cutter: LineCutter, *, keep: bool, strict: bool = False) -> OpenFile:
    """Open unlabelled texts. Every line is a row, even an empty one; bytes that are not UTF-8 become "�".

    Args:
        strict: skip empty lines, and keep bytes that are not UTF-8, so that their row is rejected.
    """
    return OpenFile(partial(_parse_lines, keep, strict), cutter, "lines", "text: whole lines", kept=("text",) * keep)


def _parse_lines(keep: bool, strict: bool, block: Block) -> Parsed:
    lines = block.data.decode("utf-8", "surrogateescape" if strict else "replace").removesuffix("\n").split("\n")
    result = Parsed([], [], len(block.data), len(lines))
    for number, line in enumerate(lines, start=block.line):
        text = line.rstrip("\r")
        if strict and not text.strip():
            continue
        if len(text) > MAX_RECORD:
            result.bad.append(BadRow(number, too_long(), excerpt(text)))
        else:
            result.rows.append(Row(number, "", text, (text,) * keep))
    return result


def open_fasttext(cutter: LineCutter, kind: str) -> OpenFile:
    """Open fastText's lines, `__label__a __label__b text`.

    Args:
        kind: labels of a row, one of ``targets.KINDS``.
    """
    reads = "label: words with __label__, text: other words"
    return OpenFile(partial(_parse_fasttext, kind), cutter, "fasttext", reads)


def _parse_fasttext(kind: str, block: Block) -> Parsed:
    lines = block.data.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n")
    result = Parsed([], [], len(block.data), len(lines))
    for number, line in enumerate(lines, start=block.line):
        words = line.split()
        if not words:
            continue
        labels = [word for word in words if word.startswith(FASTTEXT)]
        text = " ".join(word for word in words if not word.startswith(FASTTEXT))
        try:
            if len(line) > MAX_RECORD:
                raise ValueError(too_long())
            result.rows.append(Row(number, fasttext_cell(labels, kind), text))
        except ValueError as error:
            result.bad.append(BadRow(number, str(error), excerpt(line)))
    return result
