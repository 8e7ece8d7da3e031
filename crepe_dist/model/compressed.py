"""Compressed parameters: rows left out of tables, and several numbers in a byte (Joulin et al. 2016, arXiv:1612.03651).

A compressed file is safetensors with an array ``compressed`` = [1], the version, and for each compressed parameter X:

    X.shape   int64, its shape
    X.kept    uint8, gaps between the rows that are kept (see ``gaps``); absent: all rows
    X.book    float16 [256, d], the vectors that codes stand for; absent: each kept row is 1, as in a list of flags
    X.codes   uint8 [kept rows, ⌈columns / d⌉], the vectors of each row, in order

Rows that are left out are zero. All other arrays are as they are. ``unpack`` restores arrays of the original shapes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

VERSION = 1
MARK = "compressed"
CENTROIDS = 256
SAMPLE = 1 << 15  # vectors from which a book is learned
ROUNDS = 10
CHUNK = 1 << 11  # vectors per vectorised step
MOST_NUMBERS = 1 << 30  # of one array
Arrays = dict[str, np.ndarray[Any, Any]]
Mask = npt.NDArray[np.bool_]


def gaps(kept: Mask) -> npt.NDArray[np.uint8]:
    """List the rows of a mask as bytes: the distance of each from the row before; 255 is a distance without a row."""
    distances = np.diff(np.flatnonzero(kept), prepend=-1)
    steps = distances // 255
    found = np.full(len(distances) + int(steps.sum()), 255, np.uint8)
    found[np.cumsum(steps + 1) - 1] = distances % 255
    return found


def rows_of(bytes_: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the rows that ``gaps`` has listed, ascending."""
    rows: npt.NDArray[np.int64] = (np.cumsum(bytes_, dtype=np.int64) - 1)[bytes_ < 255]
    return rows


def flags(name: str, array: npt.NDArray[Any]) -> Arrays:
    """Compress an array of zeros and ones, losslessly."""
    return {f"{name}.shape": np.array(array.shape, np.int64), f"{name}.kept": gaps(array.reshape(-1) > 0)}


def code(
    name: str,
    array: npt.NDArray[np.float32],
    numbers: int,
    kept: Mask | None = None,
    weights: npt.NDArray[np.float64] | None = None,
) -> Arrays:
    """Compress an array.

    Args:
        numbers: numbers in a byte.
        kept: rows to keep, bool [rows]; ``None``: all.
        weights: of the rows, when the book is learned; ``None``: equal.
    """
    stored: Arrays = {f"{name}.shape": np.array(array.shape, np.int64)}
    rows = array.reshape(len(array), -1)
    if kept is not None:
        stored[f"{name}.kept"], rows = gaps(kept), rows[kept]
        weights = None if weights is None else weights[kept]
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % numbers)))
    each = rows.shape[1] // numbers
    vectors = rows.reshape(-1, numbers)
    stored[f"{name}.book"] = book = _learned(vectors, None if weights is None else np.repeat(weights, each))
    stored[f"{name}.codes"] = _nearest(vectors, book.astype(np.float32)).reshape(-1, each)
    return stored


def unpack(stored: Arrays) -> Arrays:
    """Restore the arrays of a compressed file, float32; arrays of another file are returned as they are.

    Raises:
        ValueError: The file has another version, or is damaged.
    """
    if MARK not in stored:
        return stored
    version = stored[MARK].reshape(-1)[:1].tolist()
    if version != [VERSION]:
        raise ValueError(f"its compression has version {version}; this version reads version {VERSION}")
    parts = {name: array for name, array in stored.items() if name != MARK}
    found: Arrays = {}
    for name in [name[: -len(".shape")] for name in parts if name.endswith(".shape")]:
        kept, book, codes = (parts.pop(f"{name}.{part}", None) for part in ("kept", "book", "codes"))
        try:
            found[name] = _unpacked(parts.pop(f"{name}.shape"), kept, book, codes)
        except (ValueError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"its compressed array {name[:80]!r} is damaged: {error}") from error
    return {**parts, **found}


def _unpacked(
    shape: npt.NDArray[Any],
    kept: npt.NDArray[Any] | None,
    book: npt.NDArray[Any] | None,
    codes: npt.NDArray[Any] | None,
) -> npt.NDArray[np.float32]:
    sizes = [int(size) for size in shape.reshape(-1)]
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1 or math.prod(sizes) > MOST_NUMBERS:
        raise ValueError(f"it has the shape {sizes[:4]}")
    rows, columns = sizes[0], math.prod(sizes[1:])
    places = np.arange(rows) if kept is None else rows_of(kept.astype(np.uint8).reshape(-1))
    if len(places) and not 0 <= places[0] <= places[-1] < rows:
        raise ValueError("a row is out of range")
    values: npt.NDArray[Any] = np.ones((len(places), columns), np.float32)
    if book is not None and codes is not None:
        each = -(-columns // max(book.shape[1], 1))
        if book.ndim != 2 or len(book) != CENTROIDS or codes.shape != (len(places), each) or codes.dtype != np.uint8:
            raise ValueError(f"codes of shape {list(codes.shape)} with a book of shape {list(book.shape)}")
        values = book.astype(np.float32)[codes].reshape(len(places), -1)[:, :columns]
    if len(places) == rows:
        return np.ascontiguousarray(values).reshape(sizes)
    whole = np.zeros((rows, columns), np.float32)
    whole[places] = values
    return whole.reshape(sizes)


def _learned(vectors: npt.NDArray[np.float32], weights: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float16]:
    """Learn a book by k-means on a sample, drawn by the weights; the same input gives the same book."""
    generator = np.random.default_rng(0)
    if not len(vectors):
        return np.zeros((CENTROIDS, vectors.shape[1]), np.float16)
    if weights is not None and weights.sum() > 0:
        vectors = vectors[generator.choice(len(vectors), SAMPLE, p=weights / weights.sum())]
    elif len(vectors) > SAMPLE:
        vectors = vectors[generator.choice(len(vectors), SAMPLE, replace=False)]
    book = vectors[generator.choice(len(vectors), CENTROIDS)].copy()
    for _ in range(ROUNDS):
        nearest = _nearest(vectors, book)
        count = np.bincount(nearest, minlength=CENTROIDS)
        for column in range(vectors.shape[1]):
            total = np.bincount(nearest, vectors[:, column], CENTROIDS)
            book[:, column] = np.where(count, total / np.maximum(count, 1), book[:, column])
        unused = np.flatnonzero(count == 0)
        book[unused] = vectors[generator.choice(len(vectors), len(unused))]
    learned: npt.NDArray[np.float16] = book.astype(np.float16)
    return learned


def _nearest(vectors: npt.NDArray[np.float32], book: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    found, half = np.empty(len(vectors), np.uint8), np.square(book).sum(axis=1) / 2
    for start in range(0, len(vectors), CHUNK):
        found[start : start + CHUNK] = (vectors[start : start + CHUNK] @ book.T - half).argmax(axis=1)
    return found
