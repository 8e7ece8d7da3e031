"""Compression of parameters: omitted rows, and product quantization (Joulin et al. 2016, arXiv:1612.03651).

A file with compressed parameters contains an array ``compressed`` = [2], whose element is the version of the format.
For each compressed parameter X, the file contains:

    X.shape   int64, shape of X
    X.kept    uint8, distances between the stored rows, see ``delta_encode``; absent if all rows are stored
    X.rows    float16 or float32 [stored rows, columns]; absent if there is a codebook, or if every stored value is 1
    X.book    float16 [256, d], the codebook: one vector per code
    X.codes   uint8 [stored rows, ⌈columns / d⌉], the codes of each row, from left to right

Rows that are not stored are zero. Other arrays are stored unchanged. A small file may declare huge shapes. Callers must
therefore compare the shapes with the network before they call ``CompressedArray.validate``, which allocates memory.

Checkpoints store embedding tables with ``drop_zero_rows``, which is lossless. ``product_quantize`` is lossy.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import Arrays
from crepe_dist.native import library

VERSION = 2  # Version of the format.
MARK = "compressed"  # Name of the array that holds the version.
CENTROIDS = 256  # Number of vectors in a codebook.
SAMPLE = 1 << 15  # Number of vectors in the sample that a codebook is learned from.
ROUNDS = 10  # Number of iterations of k-means.
CHUNK = 1 << 11  # Number of vectors per vectorised step.
MAX_NUMBERS = 1 << 30  # Maximum number of elements of an array, and of a network whose parameters are unpacked.
WORD = 64  # Number of rows per word of a bit set; see native/row_set.h.
PARTS = ("kept", "rows", "book", "codes")
Mask = npt.NDArray[np.bool_]


def delta_encode(kept: Mask) -> npt.NDArray[np.uint8]:
    """Encode the selected rows of a mask as bytes. Each byte is the distance from the preceding selected row.

    The byte 255 is special: it does not represent a row, but adds 255 to the next distance.
    """
    distances = np.diff(np.flatnonzero(kept), prepend=-1)
    far = np.flatnonzero(distances >= 255)
    steps, distances[far] = np.divmod(distances[far], 255)
    return np.insert(distances.astype(np.uint8), np.repeat(far, steps), 255)


def delta_decode(bytes_: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Decode bytes from ``delta_encode`` to row numbers in ascending order."""
    rows: npt.NDArray[np.int64] = (np.cumsum(bytes_, dtype=np.int64) - 1)[bytes_ < 255]
    return rows


def drop_zero_rows(name: str, array: npt.NDArray[np.float32]) -> Arrays:
    """Compress an array without loss: omit rows of zeros, and store the other rows as float16 if that is exact."""
    rows, kept = array.reshape(len(array), -1), np.empty(len(array), np.bool_)
    half = to_float16_if_exact(rows, kept)
    stored: Arrays = {f"{name}.shape": np.array(array.shape, np.int64), f"{name}.kept": delta_encode(kept)}
    if half is None or rows.shape[1] > 1 or (half != 1).any():
        stored[f"{name}.rows"] = rows[kept] if half is None else half
    return stored


def to_float16_if_exact(rows: npt.NDArray[np.float32], kept: Mask | None = None) -> npt.NDArray[np.float16] | None:
    """Convert rows to float16. Return ``None`` if the conversion is not exact.

    Args:
        rows: float32 [n, columns].
        kept: Output mask, bool [n]. This function sets the mask to True for rows that are not zero, and returns only
            these rows. If it is ``None``, all rows are returned.
    """
    native, _ = library.find()
    if native is None:
        if kept is not None:
            kept[:] = rows.any(axis=1)
            rows = rows[kept]
        with np.errstate(over="ignore"):
            half = rows.astype(np.float16)
        return half if (half == rows).all() else None
    rows, half = np.ascontiguousarray(rows), np.empty(rows.shape, np.float16)
    addresses = rows.ctypes.data, *rows.shape, None if kept is None else kept.ctypes.data, half.ctypes.data
    count = native.functions.crepe_to_half(*addresses)
    return None if count < 0 else half[:count]


def product_quantize(
    name: str,
    array: npt.NDArray[np.float32],
    numbers: int,
    kept: Mask | None = None,
    weights: npt.NDArray[np.float64] | None = None,
) -> Arrays:
    """Compress an array by product quantization, which is lossy.

    Args:
        numbers: Number of elements of a row that one code represents.
        kept: Mask of the rows to store, bool [rows]. If it is ``None``, all rows are stored.
        weights: Weight of each row when the codebook is learned. If it is ``None``, all rows have the same weight.
    """
    stored: Arrays = {f"{name}.shape": np.array(array.shape, np.int64)}
    rows = array.reshape(len(array), -1)
    if kept is not None:
        stored[f"{name}.kept"], rows = delta_encode(kept), rows[kept]
        weights = None if weights is None else weights[kept]
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % numbers)))
    groups = rows.shape[1] // numbers
    vectors = rows.reshape(-1, numbers)
    stored[f"{name}.book"] = book = _learn_codebook(vectors, None if weights is None else np.repeat(weights, groups))
    stored[f"{name}.codes"] = _nearest_vectors(vectors, book.astype(np.float32)).reshape(-1, groups)
    return stored


@dataclass(frozen=True)
class CompressedArray:
    """Compressed array as stored in a file, which may be damaged. Parts that the file lacks are ``None``."""

    shape: tuple[int, ...]
    kept: Any
    rows: Any
    book: Any
    codes: Any

    def validate(self) -> "RowReadableArray":
        """Check the parts and convert them to a ``RowReadableArray``.

        Raises:
            ValueError: The parts do not match each other.
        """
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        kept = np.ones(rows, np.uint8) if self.kept is None else _part(self.kept, self.kept.shape[:1], np.uint8)
        listed = delta_decode(kept)
        if (np.diff(listed, prepend=-1, append=rows) < 1).any():
            raise ValueError("its rows are not ascending")
        values = codes = None
        if self.rows is not None:
            values = _part(self.rows, (len(listed), columns), np.float16, np.float32)
        elif self.book is not None:
            numbers = max(1, self.book.size // CENTROIDS)
            values = _part(self.book, (CENTROIDS, numbers), np.float16).astype(np.float32)
            codes = _part(self.codes, (len(listed), -(-columns // numbers)), np.uint8)
        elif columns != 1:
            raise ValueError("it has no codes")
        mask = np.zeros(-(-rows // WORD) * WORD, np.bool_)
        mask[listed] = True
        before = np.searchsorted(listed, np.arange(0, len(mask) + 1, WORD)).astype(np.uint32)
        return RowReadableArray(self.shape, np.packbits(mask, bitorder="little").view(np.uint64), before, values, codes)


def _part(array: Any, shape: tuple[int, ...], *kinds: type) -> Any:
    if array is None or array.shape != shape or array.dtype not in kinds:
        raise ValueError(f"a part lacks the shape {list(shape)} or the type {kinds[0].__name__}")
    return np.ascontiguousarray(array)


@dataclass(frozen=True)
class RowReadableArray:
    """Compressed array whose rows the native kernels can read individually.

    Attributes:
        shape: Shape of the array that ``unpack`` restores.
        words: Bit set of the stored rows, uint64 [⌈rows / 64⌉].
        before: Number of stored rows before each word of the bit set, uint32 [⌈rows / 64⌉ + 1].
        values: Stored rows, float16 or float32 [stored rows, columns]. If there are codes, the codebook in float32.
            ``None`` if every stored value is 1.
        codes: Codes as in the file. ``None`` if there is no codebook.
    """

    shape: tuple[int, ...]
    words: npt.NDArray[np.uint64]
    before: npt.NDArray[np.uint32]
    values: Any
    codes: Any

    def unpack(self) -> npt.NDArray[np.float32]:
        """Restore the array. Rows that are not stored take no memory until they are read."""
        dense = np.zeros((self.shape[0], math.prod(self.shape[1:])), np.float32)
        values: Any = 1 if self.values is None else self.values
        if self.codes is not None:
            values = values[self.codes].reshape(len(self.codes), -1)[:, : dense.shape[1]]
        dense[np.unpackbits(self.words.view(np.uint8), count=len(dense), bitorder="little").view(np.bool_)] = values
        return dense.reshape(self.shape)


def decompress(array: RowReadableArray | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Unpack an array if it is compressed. Return other arrays unchanged."""
    return array.unpack() if isinstance(array, RowReadableArray) else array


def group_compressed(stored: Arrays) -> dict[str, Any]:
    """Combine the parts of each compressed array in a file into a ``CompressedArray``. Return all arrays by name.

    The arrays of an uncompressed file are returned unchanged.

    Raises:
        ValueError: The file has another version, or is damaged.
    """
    if MARK not in stored:
        return stored
    if (version := stored[MARK].tolist()) != [VERSION]:
        raise ValueError(f"its compression has version {str(version)[:40]}; this version reads version {VERSION}")
    arrays: dict[str, Any] = {name: array for name, array in stored.items() if name != MARK}
    for name in [name.removesuffix(".shape") for name in arrays if name.endswith(".shape")]:
        shape = arrays.pop(f"{name}.shape")
        sizes = shape.tolist() if shape.dtype == np.int64 and shape.ndim == 1 else [0]
        if not 1 <= len(sizes) <= 3 or min(sizes) < 1 or math.prod(sizes) > MAX_NUMBERS:
            raise ValueError(f"its compressed array {name[:80]!r} is damaged: it has the shape {sizes[:4]}")
        arrays[name] = CompressedArray(tuple(sizes), *(arrays.pop(f"{name}.{part}", None) for part in PARTS))
    return arrays


def _learn_codebook(
    vectors: npt.NDArray[np.float32], weights: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float16]:
    """Learn a codebook by k-means on a sample of the vectors. The result is deterministic.

    The probability that a vector is drawn is proportional to its weight.
    """
    generator = np.random.default_rng(0)
    if not len(vectors):
        return np.zeros((CENTROIDS, vectors.shape[1]), np.float16)
    if weights is not None and weights.sum() > 0:
        vectors = vectors[generator.choice(len(vectors), SAMPLE, p=weights / weights.sum())]
    elif len(vectors) > SAMPLE:
        vectors = vectors[generator.choice(len(vectors), SAMPLE, replace=False)]
    book = vectors[generator.choice(len(vectors), CENTROIDS)].copy()
    for _ in range(ROUNDS):
        nearest = _nearest_vectors(vectors, book)
        count = np.bincount(nearest, minlength=CENTROIDS)
        for column in range(vectors.shape[1]):
            total = np.bincount(nearest, vectors[:, column], CENTROIDS)
            book[:, column] = np.where(count, total / np.maximum(count, 1), book[:, column])
        unused = np.flatnonzero(count == 0)
        book[unused] = vectors[generator.choice(len(vectors), len(unused))]
    learned: npt.NDArray[np.float16] = book.astype(np.float16)
    return learned


def _nearest_vectors(vectors: npt.NDArray[np.float32], book: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    nearest, half = np.empty(len(vectors), np.uint8), np.square(book).sum(axis=1) / 2
    for start in range(0, len(vectors), CHUNK):
        nearest[start : start + CHUNK] = (vectors[start : start + CHUNK] @ book.T - half).argmax(axis=1)
    return nearest
