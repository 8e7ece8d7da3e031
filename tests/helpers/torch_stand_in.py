"""Stand-in for the part of PyTorch that ``crepe_torch.py`` uses, computed by NumPy, for tests where PyTorch is missing.

It has no gradients. ``tests/exporting/test_pytorch.py`` runs the module on the real PyTorch, too.
"""

# mypy: disable-error-code="override"

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors import numpy as tensors


class Tensor(np.ndarray):
    device = "cpu"

    def long(self):
        return self.astype(np.int64)

    def float(self):
        return self.astype(np.float32)

    def detach(self):
        return self

    cpu = detach

    def relu(self):
        return np.maximum(self, 0)

    def sqrt(self):
        return np.sqrt(self)

    def sum(self, dim, keepdim=False):
        return wrap(np.sum(np.asarray(self), axis=dim, keepdims=keepdim))

    def amax(self, dim):
        return wrap(np.max(np.asarray(self), axis=dim))

    def max(self, dim=None):
        return np.max(np.asarray(self)) if dim is None else SimpleNamespace(values=self.amax(dim))

    def sort(self, dim):
        return SimpleNamespace(values=wrap(np.sort(np.asarray(self), axis=dim)))

    def cummax(self, dim):
        return SimpleNamespace(values=np.maximum.accumulate(self, axis=dim))

    def cumprod(self, dim):
        return np.cumprod(self, axis=dim)

    def cumsum(self, dim):
        return np.cumsum(self, axis=dim)

    def scatter_add(self, dim, index, values):
        out = self.copy()
        np.add.at(out, (np.arange(len(out))[:, None], index), np.broadcast_to(values, index.shape))
        return out

    def flip(self, dim):
        return np.flip(self, dim)

    def clamp(self, min=None, max=None):
        return np.clip(self, min, max)

    def flatten(self, start=0):
        return self.reshape(*self.shape[:start], -1)

    def unflatten(self, dim, sizes):
        assert dim == 0
        return self.reshape(*sizes, *self.shape[1:])

    def transpose(self, one, other):
        return np.swapaxes(self, one, other)

    def softmax(self, dim):
        powers = np.exp(self - np.max(np.asarray(self), axis=dim, keepdims=True))
        return wrap(powers / np.sum(np.asarray(powers), axis=dim, keepdims=True))


def wrap(array: Any) -> Any:
    return np.asarray(array).view(Tensor)


class Module:
    training = True
    arrays: dict[str, Any]
    forward: Any

    def eval(self):
        self.training = False

    def parameters(self):
        return iter(self.arrays.values())

    def __call__(self, *inputs):
        return self.forward(*inputs)


def pad(x, sizes, value=0):
    return wrap(np.pad(x, ((0, 0), sizes), constant_values=value))


def conv1d(x, weight, bias, padding=0):
    x = np.pad(np.asarray(x), ((0, 0), (0, 0), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2], axis=2)
    return wrap(np.einsum("nctk,fck->nft", windows, np.asarray(weight), optimize=True) + bias[:, None])


def max_pool1d(x, size, ceil_mode=False):
    extra = -x.shape[2] % size
    x = np.pad(np.asarray(x), ((0, 0), (0, 0), (0, extra)), constant_values=-np.inf) if ceil_mode else x
    x = x[:, :, : x.shape[2] // size * size]
    return wrap(np.max(np.asarray(x).reshape(*x.shape[:2], -1, size), axis=3))


def embedding_bag(rows, table, mode, per_sample_weights):
    assert mode == "sum"
    return wrap(np.einsum("nkw,nk->nw", np.asarray(table)[rows], np.asarray(per_sample_weights)))


def dropout(x, share, training):
    assert not training
    return x


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-in in the place of ``torch`` and ``safetensors.torch``."""
    functional = ModuleType("torch.nn.functional")
    for function in (pad, conv1d, max_pool1d, embedding_bag, dropout):
        setattr(functional, function.__name__, function)
    functional.linear = lambda x, weight, bias: wrap(np.asarray(x) @ np.asarray(weight).T + bias)  # type: ignore
    functional.one_hot = lambda codes, size: wrap(np.eye(size, dtype=np.int64)[codes])  # type: ignore
    nn, torch = ModuleType("torch.nn"), ModuleType("torch")
    nn.__dict__.update(Module=Module, ParameterDict=dict, functional=functional)
    nn.Parameter = lambda array, requires_grad: array  # type: ignore
    torch.__dict__.update(nn=nn, uint8=np.uint8, int64=np.int64, Tensor=Tensor, no_grad=nullcontext)
    torch.tensor = lambda values, dtype=None, device="cpu": wrap(np.array(values, dtype))  # type: ignore
    torch.arange = lambda start, end, device: wrap(np.arange(start, end))  # type: ignore
    torch.zeros = lambda *size, dtype, device: wrap(np.zeros(size, dtype))  # type: ignore
    torch.full_like = lambda like, value: wrap(np.full_like(like, value))  # type: ignore
    torch.where = lambda known, one, other: wrap(np.where(known, one, other))  # type: ignore
    torch.stack = lambda arrays, dim: wrap(np.stack(arrays, axis=dim))  # type: ignore
    torch.cat = lambda arrays, dim: wrap(np.concatenate(arrays, axis=dim))  # type: ignore
    files = ModuleType("safetensors.torch")
    files.load = lambda data: {name: wrap(array) for name, array in tensors.load(data).items()}  # type: ignore
    files.save = tensors.save  # type: ignore
    for module in (torch, nn, functional, files):
        monkeypatch.setitem(sys.modules, module.__name__, module)
