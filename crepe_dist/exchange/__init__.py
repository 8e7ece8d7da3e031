"""Sums of the gradients of all ranks, and the update of the parameters with them.

Whole numbers, which our own kernels compute on CPUs, are added in memory that the processes of a host share, and the
sums of several hosts through Horovod's all-to-all. Floating-point numbers, which MXNet computes on GPUs, are summed by
Horovod's ``DistributedTrainer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mxnet as mx
from mxnet import gluon

from crepe_dist.distributed.world import World
from crepe_dist.exchange.exchange import Exchange
from crepe_dist.exchange.horovod import HorovodExchange
from crepe_dist.exchange.quanta import Quanta
from crepe_dist.exchange.shared_memory import SharedMemoryExchange
from crepe_dist.exchange.single import SingleExchange


def open_exchange(
    world: World, parameters: Mapping[str, Any], optimizer: mx.optimizer.Optimizer, quanta: Quanta | None = None
) -> Exchange:
    """Open the exchange of a network's gradients; every rank calls it.

    Args:
        world: all ranks.
        parameters: trained Gluon parameters by name.
        optimizer: MXNet's optimizer.
        quanta: quanta of the gradients; ``None``: they are floating-point numbers.
    """
    if quanta is not None:
        return SharedMemoryExchange(world, parameters, optimizer, quanta)
    if world.size > 1:
        return HorovodExchange(world, parameters, optimizer)
    return SingleExchange(gluon.Trainer(parameters, optimizer, kvstore=None))
