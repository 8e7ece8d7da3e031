"""Floating-point operations of the network, and what the machine can do of them."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from crepe_dist.measuring.timing import rate
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
    channels, total = shape.alphabet_size, 0
    for kernel, _ in CONVOLUTIONS:
        total += (kernel * channels + 1) * shape.filters
        channels = shape.filters
    width = lengths(shape.feature_len)[-1] * shape.filters
    return total + (width + 1) * shape.units + (shape.units + 1) * shape.units + (shape.units + 1) * shape.classes


def gemms(seconds: float) -> dict[str, Callable[[], float]]:
    """Float32 matrix products by the libraries at hand, each a call that returns operations a second."""
    import mxnet as mx

    size = 1536
    left, right = (np.random.default_rng(seed).standard_normal((size, size), dtype=np.float32) for seed in (0, 1))
    mx_left, mx_right = mx.nd.array(left), mx.nd.array(right)

    def dense() -> Any:
        return mx.nd.FullyConnected(mx_left, mx_right, num_hidden=size, no_bias=True)

    def product(multiply: Callable[[], Any]) -> Callable[[], float]:
        def work() -> int:
            result = multiply()
            if isinstance(result, mx.nd.NDArray):
                result.wait_to_read()
            return 2 * size**3

        return lambda: rate(work, seconds)

    return {"numpy": product(lambda: left @ right), "mxnet": product(dense)}
