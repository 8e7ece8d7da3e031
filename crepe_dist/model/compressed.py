"""Compressed parameters: rows left out of tables, and several numbers in a byte (Joulin et al. 2016, arXiv:1612.03651).

A file with compressed parameters has an array ``compressed`` = [2], the version, and for each compressed parameter X:

    X.shape   int64, its shape
    X.kept    uint8, gaps between the rows that are kept (see ``gaps``); absent: all rows
    X.rows    float16 or float32 [kept rows, columns], the kept rows; absent, and no book either: each of them is 1
    X.book    float16 [256, d], the vectors that codes stand for
    X.codes   uint8 [kept rows, ⌈columns / d⌉], the vectors of each row, in order

Rows that are left out are zero. All other arrays are as they are. A small file may name large shapes: compare them with
the network's before ``Packed.unpack``. Checkpoints have the tables of n-grams as ``nonzero`` stores them, without a
loss; ``code`` is lossy. Version 1 had no ``X.rows``.

Exports to ONNX may have tables in eight bits a number, with a scale for each row (``in_eight_bits``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.errors import UserError
from crepe_dist.model.shape import Arrays, Shape

VERSION = 2
MARK = "compressed"
CENTROIDS = 256
SAMPLE = 1 << 15  # vectors from which a book is learned
ROUNDS = 10
CHUNK = 1 << 11  # vectors per vectorised step
LARGEST = 127  # of a number in eight bits
MOST_NUMBERS = 1 << 30  # of one array, and of all of a file
# Dtypes and number of axes of the arrays of a compressed parameter.
KINDS: dict[str, tuple[tuple[type, ...], int]] = {
    "shape": ((np.int64,), 1), "kept": ((np.uint8,), 1), "rows": ((np.float16, np.float32), 2),
    "book": ((np.float16,), 2), "codes": ((np.uint8,), 2),
}  # fmt: skip
Mask = npt.NDArray[np.bool_]


def gaps(kept: Mask) -> npt.NDArray[np.uint8]:
    """List the rows of a mask as bytes: the distance of each from the row before; 255 is a distance without a row."""
    distances = np.diff(np.flatnonzero(kept), prepend=-1)
    steps = distances // 255
    listed = np.full(len(distances) + int(steps.sum()), 255, np.uint8)
    listed[np.cumsum(steps + 1) - 1] = distances % 255
    return listed


def rows_of(bytes_: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the rows that ``gaps`` has listed, ascending."""
    rows: npt.NDArray[np.int64] = (np.cumsum(bytes_, dtype=np.int64) - 1)[bytes_ < 255]
    return rows


def nonzero(name: str, array: npt.NDArray[Any]) -> Arrays:
    """Leave out the rows of zeros, and halve the others where float16 holds all their numbers; both lose nothing."""
    rows = array.reshape(len(array), -1)
    kept = (rows != 0) @ np.ones(rows.shape[1], np.bool_)  # any(axis=1) takes five times as long for few columns
    stored: Arrays = {f"{name}.shape": np.array(array.shape, np.int64), f"{name}.kept": gaps(kept)}
    rows = rows[kept]
    if rows.shape[1] > 1 or (rows != 1).any():
        half = halved(rows)
        stored[f"{name}.rows"] = rows if half is None else half
    return stored


def halved(array: npt.NDArray[Any]) -> npt.NDArray[np.float16] | None:
    """Return an array in float16, or ``None`` if it loses something."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if (half == array).all() else None


def code(
    name: str,
    array: npt.NDArray[np.float32],
    numbers: int,
    kept: Mask | None = None,
    weights: npt.NDArray[np.float64] | None = None,
) -> Arrays:
    """Compress an array, lossily.

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
    groups = rows.shape[1] // numbers
    vectors = rows.reshape(-1, numbers)
    stored[f"{name}.book"] = book = _learned(vectors, None if weights is None else np.repeat(weights, groups))
    stored[f"{name}.codes"] = _nearest(vectors, book.astype(np.float32)).reshape(-1, groups)
    return stored


@dataclass(frozen=True)
class Packed:
    """A compressed array as it is stored.

    Attributes:
        shape: shape of the array that ``unpack`` restores.
        kept, rows, book, codes: as in the file, or ``None``.
    """

    shape: tuple[int, ...]
    kept: npt.NDArray[np.uint8] | None
    rows: npt.NDArray[Any] | None
    book: npt.NDArray[np.float16] | None
    codes: npt.NDArray[np.uint8] | None

    def unpack(self) -> npt.NDArray[np.float32]:
        """Restore the array. Rows that are left out take no memory until they are read."""
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        selected: Any = slice(None)
        count = rows
        if self.kept is not None:
            selected = rows_of(self.kept)
            count = len(selected)
            if count and not (selected[0] >= 0 and (np.diff(selected) > 0).all() and selected[-1] < rows):
                raise ValueError("a row is out of range, or occurs twice")
        values: Any = 1
        if self.rows is not None:
            if self.rows.shape != (count, columns):
                raise ValueError(f"it has rows of shape {list(self.rows.shape)} instead of {[count, columns]}")
            values = self.rows
        elif self.book is not None and self.codes is not None:
            groups = -(-columns // max(self.book.shape[-1], 1))
            if self.book.shape[:-1] != (CENTROIDS,) or self.codes.shape != (count, groups):
                shapes = f"codes of shape {list(self.codes.shape)} with a book of shape {list(self.book.shape)}"
                raise ValueError(shapes)
            values = self.book.astype(np.float32)[self.codes].reshape(count, -1)[:, :columns]
        elif self.kept is None or columns != 1:
            raise ValueError("it has no codes")
        whole = np.zeros((rows, columns), np.float32)
        whole[selected] = values
        return whole.reshape(self.shape)


def opened(stored: Arrays) -> dict[str, Any]:
    """Return the arrays of a compressed file, ``Packed`` if they are compressed; those of another file as they are.

    Raises:
        ValueError: The file has another version, or is damaged.
    """
    if MARK not in stored:
        return stored
    version = stored[MARK].reshape(-1)[:1].tolist()
    if version not in ([1], [VERSION]):
        raise ValueError(f"its compression has version {version}; this version reads versions 1 and {VERSION}")
    arrays: dict[str, Any] = {name: array for name, array in stored.items() if name != MARK}
    for name in [name[: -len(".shape")] for name in arrays if name.endswith(".shape")]:
        parts = [arrays.pop(f"{name}.{part}", None) for part in KINDS]
        for part, (kinds, axes) in zip(parts, KINDS.values()):
            if part is not None and not (part.dtype in kinds and part.ndim == axes):
                raise ValueError(f"its compressed array {name[:80]!r} is damaged: it holds arrays of other types")
        shape, *parts = parts
        sizes = shape.tolist()
        if not 1 <= len(sizes) <= 3 or min(sizes) < 1 or math.prod(sizes) > MOST_NUMBERS:
            raise ValueError(f"its compressed array {name[:80]!r} is damaged: it has the shape {sizes[:4]}")
        arrays[name] = Packed(tuple(sizes), *parts)
    return arrays


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
    nearest, half = np.empty(len(vectors), np.uint8), np.square(book).sum(axis=1) / 2
    for start in range(0, len(vectors), CHUNK):
        nearest[start : start + CHUNK] = (vectors[start : start + CHUNK] @ book.T - half).argmax(axis=1)
    return nearest


def in_eight_bits(table: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Round a table to products of an int8 and a float16, which float32 holds exactly.

    Rounding the products again gives the same numbers.

    Args:
        table: [rows][columns].

    Returns:
        Codes [rows][columns] and scales [rows][1].
    """
    largest = np.abs(table).max(axis=1, keepdims=True)
    scales = (largest / LARGEST).astype(np.float16)
    # Below 6e-5 float16 is coarse. A row's largest code is 127 all the same, or other scales would be found again.
    is_too_large = largest <= (LARGEST - 0.5) * scales.astype(np.float32)
    scales = np.where(is_too_large, np.nextafter(scales, np.float16(0)), scales)
    steps = scales.astype(np.float32)
    codes = np.divide(table, steps, out=np.zeros_like(table), where=steps > 0)
    return np.clip(np.rint(codes), -LARGEST, LARGEST).astype(np.int8), scales


def rounded(shape: Shape, arrays: Arrays) -> Arrays:
    """Return parameters with rounded tables.

    Raises:
        UserError: the network has no tables.
    """
    tables = {name: in_eight_bits(arrays[name]) for name in shape.tables}
    if not tables:
        raise UserError(f"the network {shape.kind} has no tables to quantize", remedy="leave --quantize out")
    return {**arrays, **{name: codes * scales.astype(np.float32) for name, (codes, scales) in tables.items()}}
