"""Sums of the gradients of all ranks, and updates of the parameters with these sums.

Our own kernels compute gradients on CPUs as whole numbers. The processes of a host sum them in shared memory, and hosts
sum theirs through Horovod's all-to-all. MXNet computes gradients on GPUs in floating point, and Horovod's
``DistributedTrainer`` sums them.
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
        quanta: quanta of the gradients; ``None`` if they are floating-point numbers.
    """
    if quanta is not None:
        return SharedMemoryExchange(world, parameters, optimizer, quanta)
    if world.size > 1:
        return HorovodExchange(world, parameters, optimizer)
    return SingleExchange(gluon.Trainer(parameters, optimizer, kvstore=None))
