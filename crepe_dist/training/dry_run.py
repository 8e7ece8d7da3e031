"""Dry run: shows shapes, memory and time, and tries one step on every process, without writing anything."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from crepe_dist import wording
from crepe_dist.data.dataset import SAMPLE, folder_of
from crepe_dist.data.order import largest_share
from crepe_dist.distributed.control import Control
from crepe_dist.distributed.world import World
from crepe_dist.engines.engine import Engine
from crepe_dist.exchange.exchange import Exchange
from crepe_dist.model.shape import Shape
from crepe_dist.runs.metrics import Metrics
from crepe_dist.runs.run_folder import RunFolder
from crepe_dist.scratch import scratch
from crepe_dist.settings.config import Config
from crepe_dist.training import teaching
from crepe_dist.training.display import Display
from crepe_dist.training.engine_setup import build_engine
from crepe_dist.training.estimate import check_grace, estimate
from crepe_dist.training.evaluation import evaluate_splits
from crepe_dist.training.guards import watched
from crepe_dist.training.notes import banner, notes
from crepe_dist.training.out_of_memory import explained
from crepe_dist.training.replicas import check_replicas
from crepe_dist.training.run import Run
from crepe_dist.training.schedule import learning_rates
from crepe_dist.training.training_data import few_batches, open_training_data, uses_unlabelled, with_epochs


def dry_run(config: Config, world: World, control: Control) -> None:
    """Set up a run as ``train`` does, then train on one batch and score one, in memory only; every rank calls it."""
    in_memory = explained("data.batch_size", config.data.batch_size, world.size)
    with watched(config, world, control), _sample_folder(world) as sample, in_memory:
        display = Display(world.is_root)
        data = open_training_data(config, world, display, sample=sample)
        config, is_taught = with_epochs(config, data), uses_unlabelled(config, data)
        labelled = len(data.splits["train"])
        if is_taught:
            data = teaching.untaught(data)
        engine, start = build_engine(config, data, world)
        if config.training.overfit_batches:
            data = few_batches(data, config)
        metrics = Metrics(Path(), display.say, is_root=False)
        run = Run.opened(config, world, data, engine, RunFolder(Path()), display, metrics)
        display.say(banner(run, start))
        display.say(f"\n{layers(engine.shape)}\n")
        batch, evaluation = next(run.epoch_batches()), config.evaluation
        rate = learning_rates(config, len(data.splits["train"]))(run.progress)
        loss = run.step(batch, 1, rate).loss / batch.documents
        run.step.exchange.flush()
        check_replicas(engine.values(), world)
        with explained("evaluation.batch_size", evaluation.batch_size, world.size):
            test = data.splits["test"]
            some = test.some(np.arange(min(len(test), evaluation.batch_size)))
            evaluate_splits(engine, replace(data, splits={"test": some}), evaluation, world, lambda: False)
        same = ", identical parameters on all ranks" if world.size > 1 else ""
        display.say(f"step      {_shares(config, engine, world)}, loss {loss:.4f}{same}")
        display.say(f"memory    {_memory(world, engine, run.step.exchange)}")
        estimated = estimate(run)
        display.say(f"time      {estimated.text}")
        if is_taught:
            display.say(f"          before that, a first network is trained on the {labelled:,} labelled texts")
        check_grace(config.safety.grace_s, estimated.step, None, world)
        display.say_lines(notes(run) or ["notes     none: steps, batch, classes, memory and cores fit"])
        display.say("nothing was written; run without --dry-run to train")


@contextmanager
def _sample_folder(world: World) -> Iterator[Path]:
    """Yield the sample's folder, or a temporary one if the sample has not been prepared."""
    prepared = folder_of(SAMPLE)
    if world.broadcast(prepared.exists(), "sample there"):
        yield prepared
        return
    with scratch() as folder:
        yield Path(world.broadcast(str(folder), "sample folder")) / SAMPLE
        world.gather(0, "sample used")


def layers(shape: Shape) -> str:
    """Format a table of the layers, their output shapes for one document, and their numbers of parameters."""
    rows = [
        (each.name, each.output, wording.number(each.parameters) if each.parameters else "") for each in shape.layers()
    ]
    lines = [("layer", "output", "parameters"), *rows, ("", "", wording.number(shape.parameters))]
    width = max(len(name) for name, _, _ in lines)
    return "\n".join(f"  {name:<{width}}{output:>14}{count:>14}".rstrip() for name, output, count in lines)


def _shares(config: Config, engine: Engine, world: World) -> str:
    batch_size, pieces = config.data.batch_size, config.data.micro_batch_size
    most = largest_share(batch_size, world.size, engine.group_size)
    shares = f"{most} per process" if world.size > 1 else "in one process"
    if pieces is not None:
        shares += f", {pieces} at a time"
    return f"{wording.counted(batch_size, 'document')}, {shares}"


def _memory(world: World, engine: Engine, exchange: Exchange) -> str:
    sizes = {"parameters": 4 * engine.shape.parameters, **exchange.bytes}
    rows = sizes.pop("tables", 0)
    peak = max(world.gather(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "memory"))
    text = ", ".join(f"{wording.size(size)} {name}" for name, size in sizes.items())
    if rows:
        text += f", {wording.size(rows)} in each process for what is trained row by row"
    text += f"; peak of a process {wording.size(peak)}"
    if memory := engine.gpu_memory():
        free, total = memory
        text += f"; {wording.size(total - free)} of {wording.size(total)} of the GPU in use"
    return text
