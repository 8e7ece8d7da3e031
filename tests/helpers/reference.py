"""Networks in NumPy and float64, as the reference for the logits, losses and gradients of the native kernels."""

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.batch import Batch, unpack_batch
from crepe_dist.data.char_encoder import CharIds
from crepe_dist.data.counter_rng import GOLDEN, splitmix64_finalize
from crepe_dist.data.targets import MULTILABEL
from crepe_dist.model.loss import DEFAULT_LOSS, Loss
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.native.constants import (
    BRANCH_SUM_SCALE,
    FEATURE_DROPOUT_STREAM,
    NGRAM_ROOT_SCALE,
    NGRAM_SCALE,
    NUM_BUCKET_GROUPS,
    PAPER_POOL,
    POOLED_BLOCKS,
)
from crepe_dist.networks.crepe import config as crepe
from crepe_dist.networks.crepe.config import CrepeConfig
from crepe_dist.networks.ngrams.config import NGramConfig
from crepe_dist.networks.ngrams.hashing import hash_documents
from crepe_dist.networks.paper.config import CONVOLUTION_NAMES, CONVOLUTIONS, DENSE_NAMES, PaperConfig

Floats = npt.NDArray[np.float64]
Back = Callable[[Floats], Floats]  # Maps the gradient of a layer's output to the gradient of its input.
Arrays = Mapping[str, npt.NDArray[Any]]
Masks = Mapping[str, npt.NDArray[np.bool_]]


def logits(shape: NetworkConfig, values: Arrays, char_ids: CharIds) -> Floats:
    """Compute the logits of documents without dropout, [n, classes]."""
    parts = [part for part, _ in _Network(shape, values, char_ids).parts()]
    return BRANCH_SUM_SCALE * (parts[0] + parts[1]) if len(parts) == 2 else parts[0]


def learnt(
    shape: NetworkConfig, values: Arrays, batch: Batch, objective: Loss = DEFAULT_LOSS, seed: int = 0, step: int = 0,
    precision: str = "float32", scale: float = 1.0, active: Masks | None = None,
) -> tuple[float, dict[str, Floats]]:  # fmt: skip
    """Compute the loss of a batch, and its gradients by parameter.

    Args:
        precision: Precision of the convolutional branch. If it has 16 bits, the weights, the activations and their
            gradients are rounded to it.
        scale: Factor of the loss during the computation.
        active: For each hidden layer of the paper's network, the outputs that pass the ReLU and the max pool.
            [documents, positions, channels] or [documents, units]. Without this argument, the values decide.
    """
    char_ids, shares, weights = unpack_batch(batch, shape.num_classes, objective.max_labels)
    seed_of_step = batch.for_step(step + 1, seed).seed
    network = _Network(shape, values, char_ids, seed_of_step, batch.first, ROUNDINGS.get(precision), active)
    parts, total = network.parts(), 0.0
    for part, back in parts:
        loss, gradient = _loss(part, shares.astype(float), weights.astype(float), objective)
        total += loss / len(parts)
        back(scale * gradient / len(parts))
    return total, {name: array / scale for name, array in network.gradients.items() if name not in shape.buffers}


def to_bfloat16(x: Floats) -> Floats:
    """Round to the nearest bfloat16 number, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)


ROUNDINGS = {"float16": lambda x: x.astype(np.float16).astype(np.float64), "bfloat16": to_bfloat16}


def kept(probability: float, seed: int, first: int, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Draw the units that dropout keeps as in native/engine.h, which uses 16 bits of a hash per unit.

    Args:
        first: Position of the first document in the global batch.
        shape: Number of documents, and the shape of the mask of a document.
    """
    start, count = first * math.prod(shape[1:]), math.prod(shape)
    numbers = np.arange(start // 4 + 1, (start + count - 1) // 4 + 2, dtype=np.uint64)
    bits = splitmix64_finalize(np.uint64(seed) + numbers * GOLDEN).astype("<u8").view("<u2")[start % 4 :][:count]
    return (bits >= math.ceil(probability * 2**16)).reshape(shape)


def _loss(logits: Floats, shares: Floats, weights: Floats, objective: Loss) -> tuple[float, Floats]:
    """Return the sum of the losses, and its gradient with respect to the logits."""
    classes, smoothing = logits.shape[1], objective.smoothing
    of_classes = objective.class_weights(classes).astype(float)
    if objective.label_type == MULTILABEL:
        wanted, weights = (1 - smoothing) * shares + smoothing / 2, weights * of_classes
        losses, gradient = np.logaddexp(0, logits) - wanted * logits, 1 / (1 + np.exp(-logits)) - wanted
    else:
        wanted, weights = (1 - smoothing) * shares + smoothing / classes, weights * (shares @ of_classes)[:, None]
        shifted = logits - logits.max(axis=1, keepdims=True)
        logarithms = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        losses = -wanted * logarithms
        gradient = wanted.sum(axis=1, keepdims=True) * np.exp(logarithms) - wanted
    return float((weights * losses).sum()), weights * gradient


class _Network:
    """Network applied to documents. A seed enables dropout. The backward pass adds to ``gradients``."""

    def __init__(
        self, shape: Any, values: Arrays, char_ids: CharIds, seed: int | None = None, first: int = 0,
        rounding: Callable[[Floats], Floats] | None = None, active: Masks | None = None,
    ) -> None:  # fmt: skip
        self.active = active or {}
        self.shape, self.char_ids, self.seed, self.first = shape, char_ids, seed, first
        self.rounding = rounding or (lambda x: x)
        self.values = {name: array.astype(np.float64) for name, array in values.items()}
        is_paper = isinstance(shape, PaperConfig)
        for name in self.values:  # The first layer of the paper's network adds weights, and multiplies none.
            if name.endswith("weight") and (name != "0.weight" if is_paper else name.startswith("tower.convolutions.")):
                self.values[name] = self.rounding(self.values[name])
        self.gradients = {name: np.zeros(array.shape) for name, array in values.items()}

    def parts(self) -> list[tuple[Floats, Back]]:
        """Return the logits of each branch, and the function that propagates their gradients back."""
        if isinstance(self.shape, PaperConfig):
            return [self.paper()]
        if isinstance(self.shape, NGramConfig):
            return [self.table(self.shape, "")]
        assert isinstance(self.shape, CrepeConfig)
        return [self.table(self.shape.ngram_config, "ngrams."), self.tower()]

    def table(self, shape: NGramConfig, prefix: str) -> tuple[Floats, Back]:
        weight, significant = self.values[f"{prefix}weight"], self.values[f"{prefix}significant"]
        logits, found = np.tile(self.values[f"{prefix}bias"], (len(self.char_ids), 1)), []
        for row, buckets, number in zip(logits, *hash_documents(self.char_ids, shape)):
            rows = buckets[:number]
            groups, factors = significant[rows] + 2 * (rows >= shape.buckets - shape.word_buckets), np.zeros(number)
            for group in (groups == number for number in range(NUM_BUCKET_GROUPS)):
                size = max(group.sum(), 1)
                factors += group * min(NGRAM_ROOT_SCALE * size**0.5, NGRAM_SCALE) / size
            row += factors @ weight[rows]
            found.append((rows, factors))

        def back(gradient: Floats) -> Floats:
            self.gradients[f"{prefix}bias"] += gradient.sum(axis=0)
            for of_row, (rows, factors) in zip(gradient, found):
                self.gradients[f"{prefix}weight"][rows] += np.outer(factors, of_row)
            return gradient

        return logits, back

    def tower(self) -> tuple[Floats, Back]:
        shape, name = self.shape, "tower.table"
        buckets, known, exists = crepe.hash_positions(
            self.char_ids, shape.alphabet_size, shape.embedding_maxn, shape.embedding_rows, shape.stride
        )
        x = (self.values[name][buckets] * known[..., None]).sum(axis=2)

        def into_table(gradient: Floats) -> Floats:
            documents, positions, places = np.nonzero(known)
            np.add.at(self.gradients[name], buckets[documents, positions, places], gradient[documents, positions])
            return gradient

        inside = exists[..., None].astype(float)
        backs: list[Back] = [into_table]

        def then(step: tuple[Floats, Back]) -> Floats:
            out, back = step
            backs.append(back)
            return out

        x = then(self.dropped(x, shape.dropout, 0))
        x = then(self.stored(then(relu(x))))
        for block in range(shape.blocks):
            x = then(self.stored(then(self.block(x, inside, block))))
            if block < POOLED_BLOCKS:
                x = then(pooled(x, 2))
                inside, _ = pooled(inside, 2)
        positions = np.maximum(inside.sum(axis=1), 1)
        features = then(maximum_and_mean(x, positions))
        features = then(self.dropped(features, shape.FEATURE_DROPOUT, FEATURE_DROPOUT_STREAM))
        logits = then(self.dense(features, "tower.out"))
        return logits, lambda gradient: reduce(lambda each, back: back(each), reversed(backs), gradient)

    def block(self, x: Floats, inside: Floats, number: int) -> tuple[Floats, Back]:
        hidden, back_first = self.convolved(x, f"tower.convolutions.{2 * number}", padding=2)
        hidden, back_hidden = relu(hidden * inside)
        hidden = self.rounding(hidden)
        other, back_second = self.convolved(hidden, f"tower.convolutions.{2 * number + 1}", padding=2)
        out, back_out = relu((x + other) * inside)

        def back(gradient: Floats) -> Floats:
            gradient = back_out(gradient)
            return gradient + back_first(back_hidden(self.rounding(back_second(gradient))))

        return out, back

    def stored(self, x: Floats) -> tuple[Floats, Back]:
        """Round activations in the forward pass, and gradients in the backward pass."""
        return self.rounding(x), self.rounding

    def paper(self) -> tuple[Floats, Back]:
        shape = self.shape
        backs: list[Back] = []

        def then(step: tuple[Floats, Back]) -> Floats:
            out, back = step
            backs.append(back)
            return out

        x = (self.char_ids[..., None] == np.arange(shape.alphabet_size)).astype(float)
        for number, (name, (_, pools)) in enumerate(zip(CONVOLUTION_NAMES, CONVOLUTIONS)):
            x = then((then(self.convolved(x, name)), self.rounding))
            x = then(relu(x, self.active.get(name)))
            if number:
                x = self.rounding(x)
            if pools:
                x = self.rounding(then(pooled(x, PAPER_POOL, cuts=True)))
        x = then(flattened(x))
        for number, name in enumerate(DENSE_NAMES):
            x = then((then(self.dense(x, name)), self.rounding))
            if number < 2:
                x = then(relu(x, self.active.get(name)))
                x = self.rounding(then(self.dropped(x, shape.dropout, 0, number, 2)))
        return x, lambda gradient: reduce(lambda each, back: back(each), reversed(backs), gradient)

    def convolved(self, x: Floats, name: str, padding: int = 0) -> tuple[Floats, Back]:
        """Convolve [n, positions, channels] with a weight [filters, channels, taps]."""
        weight = self.values[f"{name}.weight"]
        x = np.pad(x, ((0, 0), (padding, padding), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2], axis=1)
        out = np.tensordot(windows, weight, ((2, 3), (1, 2))) + self.values[f"{name}.bias"]

        def back(gradient: Floats) -> Floats:
            self.gradients[f"{name}.weight"] += np.tensordot(gradient, windows, ((0, 1), (0, 1)))
            self.gradients[f"{name}.bias"] += gradient.sum(axis=(0, 1))
            of_x = np.zeros_like(x)
            for tap in range(weight.shape[2]):
                of_x[:, tap : tap + out.shape[1]] += gradient @ weight[:, :, tap]
            return of_x[:, padding : x.shape[1] - padding]

        return out, back

    def dense(self, x: Floats, name: str) -> tuple[Floats, Back]:
        weight = self.values[f"{name}.weight"]

        def back(gradient: Floats) -> Floats:
            self.gradients[f"{name}.weight"] += gradient.T @ x
            self.gradients[f"{name}.bias"] += gradient.sum(axis=0)
            return gradient @ weight

        return x @ weight.T + self.values[f"{name}.bias"], back

    def dropped(
        self, x: Floats, probability: float, stream: int, layer: int = 0, layers: int = 1
    ) -> tuple[Floats, Back]:
        """Drop units of a layer. The masks of all ``layers`` layers of a document are drawn consecutively."""
        if self.seed is None:
            return x, lambda gradient: gradient
        shape = len(x), layers, math.prod(x.shape[1:])
        mask = kept(probability, self.seed ^ stream, self.first, shape)[:, layer].reshape(x.shape) / (1 - probability)
        return x * mask, lambda gradient: gradient * mask


def relu(x: Floats, active: npt.NDArray[np.bool_] | None = None) -> tuple[Floats, Back]:
    mask = (x > 0 if active is None else active).astype(float)
    # A number near 0 may have another sign here than in the engine that says which numbers are active.
    return np.abs(x) * mask, lambda gradient: gradient * mask


def flattened(x: Floats) -> tuple[Floats, Back]:
    """Flatten positions and channels, channels first."""
    n, positions, channels = x.shape
    return x.swapaxes(1, 2).reshape(n, -1), lambda gradient: gradient.reshape(n, channels, positions).swapaxes(1, 2)


def pooled(x: Floats, size: int, *, cuts: bool = False) -> tuple[Floats, Back]:
    """Return the maxima of groups of neighbouring positions. The first of equal maxima gets the gradient.

    Args:
        cuts: Whether to omit the positions of an incomplete group.
    """
    positions = x.shape[1] // size * size if cuts else x.shape[1]
    whole = np.pad(x[:, :positions], ((0, 0), (0, -positions % size), (0, 0)))
    groups = whole.reshape(len(x), -1, size, x.shape[2])
    best = groups.argmax(axis=2)[:, :, None]

    def back(gradient: Floats) -> Floats:
        of_groups, of_x = np.zeros_like(groups), np.zeros_like(x)
        np.put_along_axis(of_groups, best, gradient[:, :, None], axis=2)
        of_x[:, :positions] = of_groups.reshape(whole.shape)[:, :positions]
        return of_x

    return groups.max(axis=2), back


def maximum_and_mean(x: Floats, positions: Floats) -> tuple[Floats, Back]:
    """Return the maximum and the mean of each channel, [n, 2 × channels].

    Args:
        positions: Number of positions of each document, [n, 1].
    """
    best = x.argmax(axis=1)[:, None]

    def back(gradient: Floats) -> Floats:
        of_maximum, of_mean = np.split(gradient, 2, axis=1)
        of_x = np.repeat((of_mean / positions)[:, None], x.shape[1], axis=1)
        np.put_along_axis(of_x, best, np.take_along_axis(of_x, best, axis=1) + of_maximum[:, None], axis=1)
        return of_x

    return np.concatenate([x.max(axis=1), x.sum(axis=1) / positions], axis=1), back
