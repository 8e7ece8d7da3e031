"""Gradients that MXNet computes: their sums, and the numbers of each rank."""

from __future__ import annotations

from tests.conftest import run
from tests.distributed.test_process_group import script

# Three sums of gradients as a Horovod with NCCL 2.10 makes them, which would average.
AVERAGING = """
import numpy as np
from crepe_dist.distributed.init_process_group import join
with join() as world:
    import horovod.mxnet as hvd, mxnet as mx
    from mxnet import gluon
    from crepe_dist.parallel.horovod_optimizer import GluonExchange
    from crepe_dist.optim.optimizers import Optimizer
    from crepe_dist.settings.options import OptimizerOptions
    hvd.nccl_built = lambda: 21000
    parameters = gluon.ParameterDict()
    for name in "abc":
        parameters.get(name, shape=(3, 5), init="zeros")
    parameters.initialize()
    optimizer = Optimizer(OptimizerOptions(name="sgd", momentum=0.0, weight_decay=0.0))
    exchange = GluonExchange(world, parameters, optimizer, dict(a="a", b="b", c="c"))
    def total(value, *numbers):
        for parameter in parameters.values():
            parameter.grad()[:] = value
            parameter.data()._fresh_grad = True
        return exchange._all_reduce(mx.nd.array([0.1]), numbers)
    for step in range(3):
        rows, _, _ = total(0.1 + world.rank, 2**40 - 1 - step, world.rank)
        assert rows == [[np.float32(0.1), 2**40 - 1 - step, rank] for rank in range(world.size)], rows
        exchange.update(world.size, 1.0)
    mean = 0.1 + (world.size - 1) / 2
    for parameter in parameters.values():
        assert np.allclose(parameter.data().asnumpy(), -3 * mean), parameter.data()
        assert len(set(world.gather(parameter.data().asnumpy().tobytes().hex(), "value"))) == 1
    for bad, culprit in ((np.nan, 0), (np.inf, world.size - 1)):
        assert total(bad if world.rank == culprit else 1, 1, 1)[1] == (culprit,)
    assert total(3e38, 1, 1)[1] == tuple(range(world.size))  # the sum alone overflows
    print("all well on", world.rank)
"""


def test_sums_where_horovod_would_average(tmp_path):
    printed = run(script(3, AVERAGING), tmp_path)
    assert printed.count("all well on") == 3
