"""Speed of our training and forward passes relative to the fastest matrix product, measured in turns of one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from crepe_dist.benchmarking import ours
from crepe_dist.data.batch import Batch
from crepe_dist.distributed.world import World
from crepe_dist.engines.matrix_products import products
from crepe_dist.networks.paper.shape import PaperShape
from crepe_dist.settings.model_options import Precision
from crepe_dist.timing import in_turns, paired, rate

NAME = "matrix product, "  # start of the names of rates


@dataclass(frozen=True)
class Network:
    """Our network in one precision, and a batch to compute."""

    precision: Precision
    training: ours.Training
    forward: ours.Forward
    batch: Batch


def open_network(shape: PaperShape, device: Any, batch: Batch, precision: Precision) -> Network:
    training = ours.Training(shape, World(), device, precision)
    return Network(precision, training, ours.Forward(shape, device, batch, precision), batch)


def shares(
    networks: list[Network], shape: PaperShape, rates: dict[str, float], device: Any, rounds: int, until: float
) -> dict[str, float]:
    """Measure the shares of the ceiling that a step and a forward pass reach in nominal operations.

    The clock of a shared processor, and of one with AMX, changes within seconds. So each step is compared with a short
    product of this process that follows it, and this product with the fastest one in the rates.

    Args:
        rates: measured rates by name, with those of matrix products in operations/s.
        rounds: number of steps.
        until: time after which no further step begins; see ``in_turns``.

    Returns:
        Medians over the rounds, for example ``train_vs_matmul_ceiling_float32``, and the smallest of all precisions.
    """
    found: dict[str, float] = {}
    for network in networks:
        own = {name: run for name, run in products(0.0, device).items() if name.endswith(network.precision)}
        best = max(own, key=lambda name: rates[NAME + name])
        fastest = max(
            each for name, each in rates.items() if name.startswith(NAME) and name.endswith(network.precision)
        )
        runs: dict[str, Callable[[], float]] = {
            "train": partial(rate, partial(network.training.repeat, network.batch, 1), 0.0),
            "forward": partial(rate, network.forward, 0.0),
            "product": own[best],
        }
        turns = in_turns(runs, rounds, until)
        for kind, operations in (("train", shape.training_operations()), ("forward", shape.forward_operations())):
            share = operations * paired(turns[kind], turns["product"]) * rates[NAME + best] / fastest
            found[f"{kind}_vs_matmul_ceiling_{network.precision}"] = share
    for kind in ("train", "forward"):
        found[f"{kind}_vs_matmul_ceiling"] = min(share for name, share in found.items() if name.startswith(kind))
    return found
