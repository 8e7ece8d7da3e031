"""Layers of the convolutional networks; they compute in float32, bfloat16 or float16, with float32 parameters."""

from __future__ import annotations

from typing import Any

from mxnet.gluon import nn

from crepe_dist.mxnet_internals import BFLOAT16

# oneDNN's blocked CPU kernels need input channels in multiples of 16; other counts fall back to slow kernels.
CHANNEL_BLOCK = 16
DTYPES: dict[str, Any] = {"float16": "float16", "bfloat16": BFLOAT16}


class Casting:
    """Mixin for layers that compute in ``dtype`` while their parameters and gradients stay float32."""

    dtype = "float32"

    def cast_all(self, F: Any, *arrays: Any) -> tuple[Any, ...]:
        return (
            arrays
            if self.dtype == "float32"
            else tuple(F.amp_cast(array, dtype=DTYPES[self.dtype]) for array in arrays)
        )


class Conv1D(Casting, nn.Conv1D):
    """Convolution in ``dtype``."""

    def hybrid_forward(self, F: Any, x: Any, weight: Any, bias: Any) -> Any:
        return super().hybrid_forward(F, x, *self.cast_all(F, weight, bias))


class MaxPool1D(nn.MaxPool1D):
    """Max pool.

    Attributes:
        two_dimensional: pool over [B, channels, 1, positions]. cuDNN has no one-dimensional pool, and the backward pass
            of MXNet's own uses atomic additions (checked with MXNet 1.9.1: ``CuDNNPoolingOp::Supports``). On a CPU the
            reshaping takes a convolution's output out of oneDNN's layout and 40 % more time.
    """

    two_dimensional = False

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        if not self.two_dimensional:
            return super().hybrid_forward(F, x)
        size = self._kwargs["kernel"]
        return F.Pooling(x.expand_dims(2), kernel=(1, *size), stride=(1, *size), pool_type="max").squeeze(2)


class Dense(Casting, nn.Dense):
    """Dense layer in ``dtype``."""

    def hybrid_forward(self, F: Any, x: Any, weight: Any, bias: Any) -> Any:
        return super().hybrid_forward(F, x, *self.cast_all(F, weight, bias))


class Dropout(Casting, nn.Dropout):
    """Dropout of the units that a mask names; without a mask, of random ones.

    It computes in float32, because MXNet has no dropout in bfloat16. Random units come from MXNet's generator, not
    from cuDNN's, which ignores ``mx.random.seed`` (checked with MXNet 1.9.1: ``Resource::get_cudnn_dropout_desc``).
    """

    def hybrid_forward(self, F: Any, x: Any, kept: Any = None) -> Any:
        if not self._rate:
            return F.identity(x)
        whole = x if self.dtype == "float32" else F.amp_cast(x, dtype="float32")
        if kept is None:
            out = F.Dropout(whole, p=self._rate, cudnn_off=True)
        else:
            out = whole * (F.cast(kept, dtype="float32") * (1 / (1 - self._rate)))
        (out,) = self.cast_all(F, out)
        return out


class Logits(Dense):
    """Output layer; its logits are float32 in any precision, as losses and probabilities need."""

    def hybrid_forward(self, F: Any, x: Any, weight: Any, bias: Any) -> Any:
        out = super().hybrid_forward(F, x, weight, bias)
        return out if self.dtype == "float32" else F.amp_cast(out, dtype="float32")


class OneHotConv1D(Casting, nn.HybridBlock):
    """First layer: uint8 codes [B, L] → one-hot on the device → convolution and ReLU [B, filters, L - 6].

    The weight is [filters, alphabet_size, kernel]; the forward pass pads it with zero channels to a multiple of 16, for
    speed. MXNet's ``one_hot`` turns codes from the padded depth on, such as 255, into all-zero columns: the paper's
    representation of blank and unknown characters.
    """

    def __init__(self, alphabet_size: int, filters: int, kernel: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._alphabet_size = alphabet_size
        self._filters = filters
        self._kernel = kernel
        self._depth = -(-alphabet_size // CHANNEL_BLOCK) * CHANNEL_BLOCK
        with self.name_scope():
            self.weight = self.params.get("weight", shape=(filters, alphabet_size, kernel))
            self.bias = self.params.get("bias", shape=(filters,), init="zeros")

    def hybrid_forward(self, F: Any, codes: Any, weight: Any, bias: Any) -> Any:
        # Directly in float16, which saves a cast of a large array. MXNet 1.9.1 crashes if it transposes bfloat16.
        dtype = "float16" if self.dtype == "float16" else "float32"
        one_hot = F.transpose(F.one_hot(codes, depth=self._depth, dtype=dtype), axes=(0, 2, 1))
        if self._depth > self._alphabet_size:
            extra = F.zeros(shape=(self._filters, self._depth - self._alphabet_size, self._kernel))
            weight = F.concat(weight, extra, dim=1)
        if dtype != self.dtype:
            (one_hot,) = self.cast_all(F, one_hot)
        weight, bias = self.cast_all(F, weight, bias)
        out = F.Convolution(one_hot, weight, bias, kernel=(self._kernel,), num_filter=self._filters)
        # F.relu does not use oneDNN and took a tenth of a training step.
        return F.Activation(out, act_type="relu")
