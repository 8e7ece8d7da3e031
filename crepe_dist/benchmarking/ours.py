"""What crepe_dist does, in the units of the benchmark: documents a second."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import mxnet as mx
import numpy as np

from crepe_dist.data.alphabet import Codes, Encoding
from crepe_dist.data.dataset import Part
from crepe_dist.data.loader import Batch, batches, epoch_order, pack
from crepe_dist.distributed.world import World
from crepe_dist.model.crepe import CrepeShape
from crepe_dist.model.engine import Engine, open_engine
from crepe_dist.model.parameters import build, trained
from crepe_dist.model.precision import plan
from crepe_dist.preparing.building import MAX_CHUNK
from crepe_dist.settings.model_options import ModelOptions, Precision
from crepe_dist.training.step import TrainingStep

SETTINGS = {"learning_rate": 0.01, "wd": 0.00001, "momentum": 0.9}


class Encoder:
    """Texts → codes, in the pieces in which data are prepared."""

    def __init__(self, texts: Sequence[str], encoding: Encoding) -> None:
        self._texts = texts
        self._encoding = encoding

    def __call__(self) -> int:
        for start in range(0, len(self._texts), MAX_CHUNK):
            self._encoding.encode(self._texts[start : start + MAX_CHUNK])
        return len(self._texts)


class Loading:
    """A part → batches, as the trainer gets them, without training."""

    def __init__(self, part: Part, batch_size: int) -> None:
        self._part = part
        self._batch_size = batch_size

    def __call__(self) -> int:
        order = epoch_order(len(self._part), 0, 0)
        return sum(batch.documents for batch in batches(self._part, order, self._batch_size, 0, 1))


class Training:
    """Steps on a batch that is ready in memory, or on those of a part."""

    def __init__(self, shape: CrepeShape, world: World, device: Any, precision: Precision = "auto") -> None:
        self.engine = _engine(shape, device, precision)
        trainer = world.trainer(trained(self.engine.network), "sgd", SETTINGS)
        self._step = TrainingStep(self.engine, trainer, world.size, 0, None)
        self._steps = 0

    def on_again(self, batch: Batch, times: int) -> int:
        """Trains on one batch so many times."""
        return self.on(batch for _ in range(times))

    def on_texts(self, texts: Sequence[str], labels: Sequence[int], encoding: Encoding, batch_size: int) -> int:
        """Encodes and trains on all texts in batches."""

        def encoded() -> Iterator[Batch]:
            numbers = np.asarray(labels, dtype=np.int32)
            for start in range(0, len(texts), batch_size):
                codes = encoding.encode(texts[start : start + batch_size])
                yield pack(codes, numbers[start : start + batch_size], batch_size, len(codes))

        return self.on(encoded())

    def on(self, source: Iterator[Batch]) -> int:
        """Trains on all batches; returns the number of documents."""
        documents = 0
        for batch in source:
            self._steps += 1
            self._step(batch, self._steps, 0.01)
            documents += batch.documents
        mx.nd.waitall()
        return documents


class Forward:
    """Logits of a batch of codes, brought back to the host."""

    def __init__(self, shape: CrepeShape, device: Any, batch: Batch, precision: Precision = "auto") -> None:
        self._engine = _engine(shape, device, precision)
        self._engine.refresh()
        self._batch = batch

    def __call__(self) -> int:
        self._engine.logits(self._batch).asnumpy()
        return self._batch.documents


def precisions(device: Any) -> list[Precision]:
    """Those that the device computes well, the fastest last."""
    best = plan(ModelOptions(), device).precision
    return ["float32"] if best == "float32" else ["float32", cast("Precision", best)]


def waiting(part: Part, batch_size: int, step: float) -> float:
    """The share of the time of an epoch that steps of so many seconds wait for their data, 0 to 1."""
    order = epoch_order(len(part), 0, 0)
    source = batches(part, order, batch_size, 0, 1)
    next(source)  # starts the thread that reads ahead
    start, waited = time.perf_counter(), 0.0
    while True:
        asked = time.perf_counter()
        batch = next(source, None)
        waited += time.perf_counter() - asked
        if batch is None:
            break
        time.sleep(step)
        del batch  # to free it is not waiting
    return waited / (time.perf_counter() - start)


def _engine(shape: CrepeShape, device: Any, precision: Precision) -> Engine:
    options = ModelOptions(precision=precision)
    return open_engine(build(shape, options, device, seed=0), plan(options, device), device)


def ready_batch(codes: Codes, classes: int) -> Batch:
    """A batch out of uint8 codes [B, L], with labels in turns."""
    return pack(codes, np.arange(len(codes), dtype=np.int32) % classes, len(codes), len(codes))
