"""Process of a trial, started by ``diagnosis.trial``: ``python -m crepe_dist.diagnosis.trial_worker cpu|gpu FOLDER``.

It writes the result of each stage to ``rank_<rank>.json`` in the folder at once, in case a later stage does not end.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crepe_dist import command
from crepe_dist.diagnosis.networks import DEFAULT, NETWORKS
from crepe_dist.distributed.join import join
from crepe_dist.errors import UserError
from crepe_dist.files import write_json

if TYPE_CHECKING:
    from crepe_dist.distributed.world import World

NUMBERS = 1 << 18  # exceeds the buffer of a socket
MAX_TRIES = 30  # float16 skips steps until the loss scale is low enough
ROWS = 8


def main() -> None:
    device, folder = sys.argv[1:]
    results: dict[str, Any] = {}
    with join() as world:
        path = Path(folder) / f"rank_{world.rank}.json"
        stages = {
            "sum": partial(sum_of_known, world),
            **{kind: partial(step, world, device, kind) for kind in NETWORKS},
        }
        for stage, run in stages.items():
            results[stage] = run()
            write_json(path, results)


def sum_of_known(world: World) -> dict[str, int]:
    """All-reduce known numbers, scaled by rank + 1; they are whole, so that float32 adds them without rounding."""
    numbers = (np.arange(NUMBERS) % 1009).astype(np.float32)
    total = world.sum((world.rank + 1) * numbers, "doctor.sum")
    return {"numbers": NUMBERS, "wrong": int(np.count_nonzero(total != numbers * (world.size * (world.size + 1) // 2)))}


def step(world: World, device: str, kind: str) -> dict[str, Any]:
    """Make one training step of a network like ``train``; report digests of the weights before and after it.

    Returns:
        An empty report if nothing can compute the network, which is not the default one, on this GPU.
    """
    from crepe_dist import registry
    from crepe_dist.cuda import driver
    from crepe_dist.data.batch import pack
    from crepe_dist.diagnosis.networks import small_shape
    from crepe_dist.distributed.device import CPU, Device
    from crepe_dist.engines.engine import open_engine
    from crepe_dist.model.precision import plan
    from crepe_dist.settings.model_options import ModelOptions
    from crepe_dist.settings.training_options import OptimizerOptions
    from crepe_dist.training.replicas import digest
    from crepe_dist.training.step import TrainingStep

    # Not `pick`: two processes may have to share the only GPU.
    place = Device("gpu", world.local_rank % max(1, driver.count())) if device == "gpu" else CPU
    options, shape = ModelOptions(), small_shape(kind)
    try:
        planned = plan(options, place, shape)
        if not planned.on_cuda:
            world.check_device(place.device_type)
    except UserError:
        if kind == DEFAULT:
            raise
        return {}
    made = registry.part(kind, "initial").parameters(shape, options, seed=world.rank)
    world.broadcast_arrays({name: parameter.value for name, parameter in made.items()})
    engine = open_engine(shape, made, planned, device=place)
    exchange = engine.open_exchange(world, OptimizerOptions(name="sgd"), ROWS)
    train = TrainingStep(engine, exchange)
    before = digest(engine.values())
    generator = np.random.default_rng(world.rank)
    codes = generator.integers(0, shape.alphabet_size, [ROWS, shape.feature_len], dtype=np.uint8)
    labels = generator.integers(0, shape.classes, ROWS, dtype=np.int32)
    batch = pack(codes, labels, ROWS, ROWS * world.size, ROWS * world.rank)
    for number in range(1, MAX_TRIES + 1):
        if train(batch, number, 0.1).finite:
            break
    exchange.flush()
    return {
        "computed": str(engine.plan),
        "summed by": exchange.by,
        "before": before,
        "after": digest(engine.values()),
        "finite": all(bool(np.isfinite(array).all()) for array in engine.values().values()),
    }


if __name__ == "__main__":
    command.run(main)
