"""What a run would do, tried: shapes, memory and time, and one step on every process. Nothing is written."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from crepe_dist import wording
from crepe_dist.distributed.control import Control
from crepe_dist.distributed.watchdog import Watchdog
from crepe_dist.distributed.world import World
from crepe_dist.model.shape import Shape
from crepe_dist.preparing.sources import SAMPLE, folder_of
from crepe_dist.settings.config import Config
from crepe_dist.training import out_of_memory, state
from crepe_dist.training.banner import opening
from crepe_dist.training.display import ConsoleDisplay, Display
from crepe_dist.training.estimate import estimate
from crepe_dist.training.evaluation import evaluate
from crepe_dist.training.grace import check_grace
from crepe_dist.training.loop import Loop
from crepe_dist.training.metrics import Metrics
from crepe_dist.training.replicas import check_replicas
from crepe_dist.training.run_folder import RunFolder
from crepe_dist.training.setup import set_up


def dry_run(config: Config, world: World, control: Control) -> None:
    """Sets up a run as ``train`` does, trains one batch and scores one, in memory only; every rank calls it.

    Raises:
        UserError: as ``train`` would.
    """
    with Watchdog(control, config.safety.watchdog_s, world.rank) as watchdog, _sample_folder(world) as sample:
        world.beat, world.trust = watchdog.beat, watchdog.trust
        display = ConsoleDisplay() if world.is_root else Display()
        dataset, engine, given = set_up(config, world, display, sample)
        world.broadcast_parameters(engine.network._collect_params_with_prefix())
        nowhere = RunFolder(Path(os.devnull))  # only what the loop writes itself would go there, and it is not run
        loop = Loop(config, dataset, world, nowhere, engine, Metrics(), display, control, watchdog)
        display.say(opening(loop, given))
        display.say(f"\n{layers(engine.network.shape)}\n")
        batch = next(loop.batches())
        with out_of_memory.watched("data.batch_size", config.data.batch_size, world.size):
            loss = loop.train(batch).loss / batch.documents
        check_replicas(engine.network, world)
        with out_of_memory.watched("evaluation.batch_size", config.evaluation.batch_size, world.size):
            part = dataset.parts["test"]
            some = part.some(np.arange(min(len(part), config.evaluation.batch_size)))
            evaluate(engine, some, config.evaluation.batch_size, world, sharded=config.evaluation.sharded)
        same = ", the same parameters in all" if world.size > 1 else ""
        display.say(f"step      {_step(world, loop)}, loss {loss:.4f}{same}")
        display.say(f"memory    {_memory(world, loop)}")
        estimated = estimate(loop)
        display.say(f"time      {estimated}")
        check_grace(loop, estimated.step)
        display.say("nothing was written; without --dry-run this is trained")


@contextmanager
def _sample_folder(world: World) -> Iterator[Path]:
    """Where the sample is, or a folder that does not stay."""
    there = folder_of(SAMPLE)
    if world.broadcast(there.exists(), "sample there"):
        yield there
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(world.broadcast(folder, "sample folder")) / SAMPLE
        world.gather(0, "sample used")


def layers(shape: Shape) -> str:
    """A table: each layer, what comes out of it for one document, and its parameters."""
    rows = [
        (each.name, each.output, wording.number(each.parameters) if each.parameters else "") for each in shape.layers()
    ]
    lines = [("layer", "output", "parameters"), *rows, ("", "", wording.number(shape.parameters))]
    return "\n".join(f"  {name:<22}{output:>14}{count:>14}".rstrip() for name, output, count in lines)


def _step(world: World, loop: Loop) -> str:
    config = loop.config.data
    shares = f"{-(-config.batch_size // world.size)} a process" if world.size > 1 else "in one process"
    if config.micro_batch_size is not None:
        shares += f", computed by {config.micro_batch_size} at a time"
    return f"{wording.counted(config.batch_size, 'document')}, {shares}"


def _memory(world: World, loop: Loop) -> str:
    count = loop.network.shape.parameters
    held = sum(array.nbytes for array in state.optimizer_arrays(loop.trainer).values())
    peak = max(world.gather(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "memory"))
    text = (
        f"{wording.size(4 * count)} parameters, as much for gradients, {wording.size(held)} optimiser state; "
        f"a process took {wording.size(peak)} at most"
    )
    if loop.engine.device.device_type == "gpu":
        import mxnet as mx

        free, total = mx.context.gpu_memory_info(loop.engine.device.device_id)
        text += f"; {wording.size(total - free)} of {wording.size(total)} of the GPU are in use"
    return text
