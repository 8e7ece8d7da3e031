"""Forward passes of the networks in NumPy: uint8 codes [n, feature_len] → float32 logits [n, classes].

Activations are [n, positions, channels], so that a convolution is a sum of matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import Codes
from crepe_dist.model import ngrams, tower
from crepe_dist.model.crepe import SUM_SCALE, CrepeShape
from crepe_dist.model.ngrams import ROOT_SCALE, SCALE, NGramShape
from crepe_dist.model.paper import CONVOLUTION_NAMES, CONVOLUTIONS, DENSE_NAMES, POOL, PaperShape
from crepe_dist.model.parameters import Arrays
from crepe_dist.model.shape import Shape
from crepe_dist.model.tower import POOLED_BLOCKS, TAPS

Floats = npt.NDArray[np.float32]
Forward = Callable[[Codes], Floats]


def network(shape: Shape, arrays: Arrays) -> Forward:
    """Return the forward pass of a network with these float32 parameters."""
    if isinstance(shape, PaperShape):
        return partial(_paper, shape, arrays)
    if isinstance(shape, NGramShape):
        return partial(_ngrams, shape, arrays)
    assert isinstance(shape, CrepeShape)
    return partial(_crepe, shape, _part(arrays, "ngrams."), _part(arrays, "tower."))


def activations(shape: Shape) -> int:
    """Return the number of activations of one document in the layer that has the most."""
    if isinstance(shape, PaperShape):
        return shape.feature_len * shape.filters
    if isinstance(shape, NGramShape):
        return shape.max_ngrams
    assert isinstance(shape, CrepeShape)
    return shape.positions * max(shape.width, shape.stride * shape.reach)


def _part(arrays: Arrays, prefix: str) -> Arrays:
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def _paper(shape: PaperShape, arrays: Arrays, codes: Codes) -> Floats:
    x: Floats = _characters(arrays["0.weight"], codes) + arrays["0.bias"]
    for name, (_, is_pooled) in zip(CONVOLUTION_NAMES, CONVOLUTIONS):
        if name != CONVOLUTION_NAMES[0]:
            x = _convolved(x, arrays[f"{name}.weight"]) + arrays[f"{name}.bias"]
        x = np.maximum(x, 0)
        x = _pooled(x[:, : x.shape[1] // POOL * POOL], POOL) if is_pooled else x
    x = x.transpose(0, 2, 1).reshape(len(x), -1)
    for name in DENSE_NAMES:
        x = x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]
        x = x if name == DENSE_NAMES[-1] else np.maximum(x, 0)
    return x


def _characters(weight: Floats, codes: Codes) -> Floats:
    """Convolve one-hot characters: a sum of rows of the weight, float32 [filters, characters, kernel]."""
    _, characters, kernel = weight.shape
    # The last row, of zeros, stands for blanks.
    rows = np.pad(weight.transpose(2, 1, 0), ((0, 0), (0, 1), (0, 0)))
    codes, positions = np.minimum(codes, np.uint8(characters)), codes.shape[1] - kernel + 1
    return _sum([rows[tap][codes[:, tap : tap + positions]] for tap in range(kernel)])


def _convolved(x: Floats, weight: Floats) -> Floats:
    """Convolve [n, positions, channels] with a weight [filters, channels, kernel], without padding and bias."""
    kernel = weight.shape[2]
    positions = x.shape[1] - kernel + 1
    return _sum([x[:, tap : tap + positions] @ weight[:, :, tap].T for tap in range(kernel)])


def _sum(terms: list[Floats]) -> Floats:
    total = terms[0]
    for term in terms[1:]:
        np.add(total, term, out=total)
    return total


def _pooled(x: Floats, size: int) -> Floats:
    """Return the maxima of ``size`` neighbouring positions each, which divides their number."""
    return np.asarray(x.reshape(len(x), x.shape[1] // size, size, *x.shape[2:]).max(axis=2))


def _ngrams(shape: NGramShape, arrays: Arrays, codes: Codes) -> Floats:
    logits = np.tile(arrays["bias"], (len(codes), 1))
    for row, (found, number) in zip(logits, zip(*ngrams.look_up(codes, shape))):
        own = found[:number]
        telling = arrays["significant"][own]
        factors = np.zeros(number, np.float32)
        for group in (telling, 1 - telling):
            size = max(float(group.sum()), 1)
            scale = min(ROOT_SCALE * size**0.5, SCALE) if shape.edges else SCALE
            factors += group * np.float32(scale / size)
        row += factors @ arrays["weight"][own]
    return logits


def _crepe(shape: CrepeShape, table: Arrays, convolutions: Arrays, codes: Codes) -> Floats:
    both = _ngrams(shape.table, table, codes) + _tower(shape, convolutions, codes)
    return np.asarray(np.float32(SUM_SCALE) * both)


def _tower(shape: CrepeShape, arrays: Arrays, codes: Codes) -> Floats:
    places, known, is_inside = tower.look_up(codes, shape.alphabet_size, shape.reach, shape.rows, shape.stride)
    table = arrays["table"]
    x = np.maximum(_sum([table[places[:, :, n]] * known[:, :, n, None] for n in range(places.shape[2])]), 0)
    inside = is_inside[:, :, None].astype(np.float32)

    def convolved(x: Floats, number: int) -> Floats:
        padded = np.pad(x, ((0, 0), (TAPS // 2, TAPS // 2), (0, 0)))
        name = f"convolutions.{number}"
        return np.asarray(_convolved(padded, arrays[f"{name}.weight"]) + arrays[f"{name}.bias"])

    for block in range(shape.blocks):
        hidden = np.maximum(convolved(x, 2 * block), 0) * inside
        x = np.maximum(x + convolved(hidden, 2 * block + 1), 0) * inside
        if block < POOLED_BLOCKS:  # all numbers are at least 0, which an odd position may therefore be padded with
            x, inside = (_pooled(np.pad(each, ((0, 0), (0, each.shape[1] % 2), (0, 0))), 2) for each in (x, inside))
    mean = x.sum(axis=1) / np.maximum(inside.sum(axis=1), 1)
    features = np.concatenate([x.max(axis=1), mean], axis=1)
    return np.asarray(features @ arrays["out.weight"].T + arrays["out.bias"])
