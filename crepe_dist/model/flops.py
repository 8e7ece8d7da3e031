"""Floating-point operations and parameters of the network, by its shape."""

from __future__ import annotations

from crepe_dist.model.network import CONVOLUTIONS, Shape, lengths


def forward(shape: Shape) -> int:
    """Nominal operations (a multiplication and an addition are two) of one document's forward pass, with the first
    layer taken as a dense convolution of the one-hot matrix."""
    return first_layer(shape) + _others(shape)


def training(shape: Shape) -> int:
    """Of a training step: forward, gradients of weights, gradients of inputs; the first layer needs none of these."""
    return 3 * forward(shape) - first_layer(shape)


def first_layer(shape: Shape) -> int:
    kernel, _ = CONVOLUTIONS[0]
    return 2 * kernel * shape.alphabet_size * shape.filters * (shape.feature_len - kernel + 1)


def _others(shape: Shape) -> int:
    total, length = 0, shape.feature_len
    for index, (kernel, pooled) in enumerate(CONVOLUTIONS):
        length -= kernel - 1
        if index > 0:
            total += 2 * kernel * shape.filters**2 * length
        length = length // 3 if pooled else length
    width = lengths(shape.feature_len)[-1] * shape.filters
    return total + 2 * (width * shape.units + shape.units**2 + shape.units * shape.classes)


def parameters(shape: Shape) -> int:
    """Numbers in the network's parameters, and so in its gradient: weights and biases."""
    return sum(layer_parameters(shape))


def layer_parameters(shape: Shape) -> list[int]:
    """Those of each convolution, and of each dense layer."""
    channels, counts = shape.alphabet_size, []
    for kernel, _ in CONVOLUTIONS:
        counts.append((kernel * channels + 1) * shape.filters)
        channels = shape.filters
    width = lengths(shape.feature_len)[-1] * shape.filters
    for units in (shape.units, shape.units, shape.classes):
        counts.append((width + 1) * units)
        width = units
    return counts
