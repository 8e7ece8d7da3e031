"""Program of ``test_horovod_optimizer.py``: three sums of gradients.

Horovod claims to be built with NCCL 2.10, with which it would average."""

from __future__ import annotations

import numpy as np

from crepe_dist.distributed.init_process_group import init_process_group
from crepe_dist.optim.optimizers import OptimizerSpec
from crepe_dist.settings.options import OptimizerOptions


def main() -> None:
    with init_process_group() as world:
        # MXNet and Horovod must not be imported before the process group has prepared the import.
        import horovod.mxnet as hvd
        import mxnet as mx
        from mxnet import gluon

        from crepe_dist.parallel.horovod_optimizer import HorovodOptimizer

        hvd.nccl_built = lambda: 21000
        parameters = gluon.ParameterDict()
        for name in "abc":
            parameters.get(name, shape=(3, 5), init="zeros")
        parameters.initialize()
        optimizer = OptimizerSpec(OptimizerOptions(name="sgd", momentum=0.0, weight_decay=0.0))
        exchange = HorovodOptimizer(world, parameters, optimizer, {name: name for name in "abc"})

        def total(value, *numbers):
            for parameter in parameters.values():
                parameter.grad()[:] = value
                parameter.data()._fresh_grad = True
            return exchange._all_reduce(mx.nd.array([0.1]), numbers)

        for step in range(3):
            rows, _, _ = total(0.1 + world.rank, 2**40 - 1 - step, world.rank)
            assert rows == [[np.float32(0.1), 2**40 - 1 - step, rank] for rank in range(world.size)], rows
            exchange.step(world.size, 1.0)
        mean = 0.1 + (world.size - 1) / 2
        for parameter in parameters.values():
            assert np.allclose(parameter.data().asnumpy(), -3 * mean), parameter.data()
            assert len(set(world.all_gather_object(parameter.data().asnumpy().tobytes().hex(), "value"))) == 1
        for bad, culprit in ((np.nan, 0), (np.inf, world.size - 1)):
            assert total(bad if world.rank == culprit else 1, 1, 1)[1] == (culprit,)
        assert total(3e38, 1, 1)[1] == tuple(range(world.size))  # each term is finite, but the sum overflows
        print("all well on", world.rank)


if __name__ == "__main__":
    main()
