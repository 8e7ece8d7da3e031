"""What is going to be trained on what, in a few lines."""

from __future__ import annotations

import os

from crepe_dist import wording
from crepe_dist.training.loop import Loop


def opening(loop: Loop, given: str | None) -> str:
    """
    Args:
        given: what is said of the parameters that the network starts with, if they are given ones.
    """
    config, dataset, world, engine = loop.config, loop.dataset, loop.world, loop.engine
    shape, device = engine.network.shape, engine.device
    rows = ", ".join(f"{len(part):,} {name}" for name, part in dataset.parts.items())
    where = f"{wording.counted(world.size, 'process', 'processes')}, {device}"
    if loop.exchange.by:
        where += f", gradients summed by {loop.exchange.by}"
    if device.device_type == "cpu":
        where += f", OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}"
    lines = [
        f"data      {dataset.name}: {rows} documents of {dataset.encoding.feature_len} characters, "
        f"{len(dataset.classes)} classes",
        f"network   {shape}; {shape.parameters:,} parameters",
        f"training  {config.training.epochs} epochs, batch {config.data.batch_size}, {config.optimizer.name} "
        f"{config.optimizer.learning_rate:g}; {where}",
        f"computes  in {engine.plan}",
    ]
    if given:
        lines.insert(2, f"start     {given}")
    if config.training.overfit_batches:
        lines[0] += "; only a few batches of it, which are trained again and again and scored as well"
    return "\n".join(lines)
