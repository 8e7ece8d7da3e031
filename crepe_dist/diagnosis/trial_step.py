"""Training step of a trial, run by ``crepe_dist.diagnosis.trial_worker``."""

from __future__ import annotations

import hashlib
from typing import Any

import mxnet as mx
import numpy as np

from crepe_dist.data.batch import pack
from crepe_dist.distributed.world import World
from crepe_dist.engines.block import build, trained, values
from crepe_dist.engines.engine import open_engine
from crepe_dist.exchange import open_exchange
from crepe_dist.exchange.optimizers import make_optimizer
from crepe_dist.model.precision import plan
from crepe_dist.mxnet_internals import structural_parameters
from crepe_dist.networks.paper.shape import PaperShape
from crepe_dist.settings.data_options import SHORTEST
from crepe_dist.settings.model_options import ModelOptions
from crepe_dist.training.step import TrainingStep

MAX_TRIES = 30  # float16 skips steps until the loss scale is low enough
ROWS = 8


def step(world: World, device: str) -> dict[str, Any]:
    """Make one training step like ``train``; report digests of the weights before and after it."""
    # Not `pick`: two processes may have to share the only GPU.
    place = mx.gpu(world.local_rank % mx.context.num_gpus()) if device == "gpu" else mx.cpu()
    shape = PaperShape(alphabet_size=69, feature_len=SHORTEST, classes=4, filters=32, units=64)
    network = build(shape, ModelOptions(), place, seed=world.rank)
    engine = open_engine(network, plan(ModelOptions(), place), place)
    world.broadcast_parameters(structural_parameters(network))
    optimizer = make_optimizer("sgd", {"learning_rate": 0.1})
    exchange = open_exchange(world, trained(network), optimizer, engine.quanta(ROWS))
    train = TrainingStep(engine, exchange)
    before = values(network)
    generator = np.random.default_rng(world.rank)
    codes = generator.integers(0, shape.alphabet_size, [ROWS, shape.feature_len], dtype=np.uint8)
    labels = generator.integers(0, shape.classes, ROWS, dtype=np.int32)
    batch = pack(codes, labels, ROWS, ROWS * world.size, ROWS * world.rank)
    for number in range(1, MAX_TRIES + 1):
        if train(batch, number, 0.1).finite:
            break
    after = values(network)
    return {
        "computed": str(engine.plan),
        "summed by": exchange.by,
        "before": _digest(before),
        "after": _digest(after),
        "finite": all(bool(np.isfinite(array).all()) for array in after.values()),
    }


def _digest(arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()
