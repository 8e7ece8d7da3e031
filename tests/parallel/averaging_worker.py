"""Worker of ``test_horovod_optimizer.py``: all-reduces of gradients by Horovod.

Horovod reports that it was built with NCCL 2.10. In such a build, it averages gradients instead of summing them.
"""

import numpy as np

from crepe_dist.distributed.init_process_group import init_process_group
from crepe_dist.optim.optimizers import OptimizerSpec
from crepe_dist.settings.options import OptimizerOptions


def main() -> None:
    with init_process_group() as group:
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
        spec = OptimizerSpec(OptimizerOptions(name="sgd", momentum=0.0, weight_decay=0.0))
        optimizer = HorovodOptimizer(group, parameters, spec, {name: name for name in "abc"})

        def all_reduce(value, *step_info):
            for parameter in parameters.values():
                parameter.grad()[:] = value
                parameter.data()._fresh_grad = True
            return optimizer._all_reduce(mx.nd.array([0.1]), step_info)

        for step in range(3):
            stats, _, _ = all_reduce(0.1 + group.rank, 2**40 - 1 - step, group.rank)
            assert stats == [[np.float32(0.1), 2**40 - 1 - step, rank] for rank in range(group.size)], stats
            optimizer.step(group.size, 1.0)
        mean = 0.1 + (group.size - 1) / 2
        for parameter in parameters.values():
            assert np.allclose(parameter.data().asnumpy(), -3 * mean), parameter.data()
            assert len(set(group.all_gather_json(parameter.data().asnumpy().tobytes().hex(), "value"))) == 1
        for bad, culprit in ((np.nan, 0), (np.inf, group.size - 1)):
            assert all_reduce(bad if group.rank == culprit else 1, 1, 1)[1] == (culprit,)
        assert all_reduce(3e38, 1, 1)[1] == tuple(range(group.size))  # Each term is finite, and the sum overflows.
        print("all well on", group.rank)


if __name__ == "__main__":
    main()
