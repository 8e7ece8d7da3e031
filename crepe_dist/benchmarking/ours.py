"""Workloads of crepe_dist for the benchmark. A call does one unit of work and returns the number of documents."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import mxnet as mx
import numpy as np

from crepe_dist.data.alphabet import Codes, Encoding
from crepe_dist.data.batch import Batch, pack
from crepe_dist.data.dataset import Split
from crepe_dist.data.loader import batches
from crepe_dist.data.order import epoch_order
from crepe_dist.distributed.world import World
from crepe_dist.engines.block import build, trained
from crepe_dist.engines.engine import Engine, open_engine
from crepe_dist.model.precision import plan
from crepe_dist.networks.paper.shape import PaperShape
from crepe_dist.preparing.shards import MAX_CHUNK
from crepe_dist.settings.model_options import ModelOptions, Precision
from crepe_dist.training.step import TrainingStep

SETTINGS = {"learning_rate": 0.01, "wd": 0.00001, "momentum": 0.9}


class Encoder:
    """Encoding of texts, in the chunks that ``prepare`` uses."""

    def __init__(self, texts: Sequence[str], encoding: Encoding) -> None:
        self._texts = texts
        self._encoding = encoding

    def __call__(self) -> int:
        for start in range(0, len(self._texts), MAX_CHUNK):
            self._encoding.encode(self._texts[start : start + MAX_CHUNK])
        return len(self._texts)


class Loading:
    """Loading of the batches of one epoch, without training."""

    def __init__(self, split: Split, batch_size: int) -> None:
        self._split = split
        self._batch_size = batch_size

    def __call__(self) -> int:
        order = epoch_order(len(self._split), 0, 0)
        return sum(batch.documents for batch in batches(self._split, order, self._batch_size, 0, 1))


class Training:
    """Training steps."""

    def __init__(self, shape: PaperShape, world: World, device: Any, precision: Precision = "auto") -> None:
        self.engine = _engine(shape, device, precision)
        optimizer = self.engine.optimizer("sgd", SETTINGS)
        trainer = world.trainer(trained(self.engine.network), optimizer, self.engine.whole_sums(0))
        self._step = TrainingStep(self.engine, trainer, world.size, 0, None)
        self._steps = 0

    def repeat(self, batch: Batch, times: int) -> int:
        """Train on the same batch several times; return the number of documents."""
        return self.on(batch for _ in range(times))

    def on_texts(self, texts: Sequence[str], labels: Sequence[int], encoding: Encoding, batch_size: int) -> int:
        """Encode all texts and train on them in batches; return the number of documents."""

        def encoded() -> Iterator[Batch]:
            numbers = np.asarray(labels, dtype=np.int32)
            for start in range(0, len(texts), batch_size):
                codes = encoding.encode(texts[start : start + batch_size])
                yield pack(codes, numbers[start : start + batch_size], batch_size, len(codes))

        return self.on(encoded())

    def on(self, source: Iterator[Batch]) -> int:
        """Train on all batches; return the number of documents."""
        documents = 0
        for batch in source:
            self._steps += 1
            self._step(batch, self._steps, 0.01)
            documents += batch.documents
        mx.nd.waitall()
        return documents


class Forward:
    """Forward pass of a batch, including the copy of the logits to the host."""

    def __init__(self, shape: PaperShape, device: Any, batch: Batch, precision: Precision = "auto") -> None:
        self._engine = _engine(shape, device, precision)
        self._engine.refresh()
        self._batch = batch

    def __call__(self) -> int:
        self._engine.logits(self._batch).asnumpy()
        return self._batch.documents


def precisions(device: Any) -> list[Precision]:
    """List the precisions that the device supports well, the fastest last."""
    best = plan(ModelOptions(), device).precision
    return ["float32"] if best == "float32" else ["float32", cast("Precision", best)]


def waiting(split: Split, batch_size: int, step: float) -> float:
    """Measure the share of an epoch, 0 to 1, that steps of ``step`` seconds spend waiting for data."""
    order = epoch_order(len(split), 0, 0)
    source = batches(split, order, batch_size, 0, 1)
    next(source)  # starts the prefetching thread
    start, waited = time.perf_counter(), 0.0
    while True:
        requested = time.perf_counter()
        batch = next(source, None)
        waited += time.perf_counter() - requested
        if batch is None:
            break
        time.sleep(step)
        del batch  # freeing it does not count as waiting
    return waited / (time.perf_counter() - start)


def _engine(shape: PaperShape, device: Any, precision: Precision) -> Engine:
    options = ModelOptions(precision=precision)
    return open_engine(build(shape, options, device, seed=0), plan(options, device), device)


def ready_batch(codes: Codes, classes: int) -> Batch:
    """Make a batch of uint8 codes [B, L] with labels 0, 1, 2, …"""
    return pack(codes, np.arange(len(codes), dtype=np.int32) % classes, len(codes), len(codes))
