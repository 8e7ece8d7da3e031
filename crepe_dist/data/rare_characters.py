"""Rare characters of an encoding as single numbers, for what happens to characters: each has two codes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import BLANK, Codes, Encoding

FIRST = 256  # number of the first rare character; smaller ones are codes
Characters = npt.NDArray[np.uint16]


def merged(codes: Codes, encoding: Encoding) -> Characters:
    """Replace each pair of codes, uint8 [n, L], by ``FIRST`` + its number in ``Encoding.paired``.

    Returns:
        uint16 [n, L], with more ``BLANK`` at the end.
    """
    numbers = codes.astype(np.uint16)
    is_pair, found = encoding.pairs_in(codes)
    numbers[:, :-1][is_pair] = FIRST + found[is_pair]
    is_kept = np.pad(~is_pair, ((0, 0), (1, 0)), constant_values=True)
    return _gathered(numbers, is_kept)


def parted(characters: Characters, encoding: Encoding) -> Codes:
    """Reverse ``merged``: uint16 [n, L] → uint8 [n, L], without the codes for which there is no room."""
    own, side = len(encoding.alphabet), encoding.side
    is_rare = characters >= FIRST
    number = np.where(is_rare, characters, FIRST).astype(np.int64) - FIRST
    pair = [own + number // side, own + side + number % side]
    one, two = pair if encoding.mode == "notebook" else pair[::-1]
    codes = np.stack([np.where(is_rare, one, characters), two], axis=2).reshape(len(characters), -1)
    is_kept = np.stack([np.ones_like(is_rare), is_rare], axis=2).reshape(len(characters), -1)
    return _gathered(codes, is_kept)[:, : characters.shape[1]].astype(np.uint8)


def _gathered(rows: npt.NDArray[np.int_] | Characters, is_kept: npt.NDArray[np.bool_]) -> Characters:
    """Move the chosen numbers of each row, [n, L], to its start, and fill it up with ``BLANK``."""
    found = np.full(rows.shape, BLANK, np.uint16)
    for row, chosen, out in zip(rows, is_kept, found):
        kept = row[chosen]
        out[: len(kept)] = kept
    return found
