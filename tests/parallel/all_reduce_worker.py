"""Program of ``test_shared_memory_optimizer.py``: four all-reduces of whole numbers that each rank draws.

With the argument ``unshared``, rank 0 fails to open the shared memory, as in a container with its own ``/dev/shm``.
"""

from __future__ import annotations

import sys

import numpy as np

from crepe_dist.distributed.init_process_group import init_process_group
from crepe_dist.optim.fixed_point import INITIAL_EXPONENT, FixedPointScales, Parameter
from crepe_dist.optim.optimizers import OptimizerSpec
from crepe_dist.parallel import host_shared_memory
from crepe_dist.parallel.shared_memory_optimizer import SharedMemoryOptimizer
from crepe_dist.settings.options import OptimizerOptions


def main() -> None:
    with init_process_group() as world:
        if sys.argv[1:] == ["unshared"] and world.rank == 0:
            host_shared_memory._open_segments = lambda names, size: ([], [])
        shapes = {"a": (3, 5), "b": (1,), "c": (40, 33)}
        parameters = {name: Parameter(np.zeros(shape, np.float32)) for name, shape in shapes.items()}
        quanta = FixedPointScales(parameters)
        quanta.load_state_dict(np.full(3, INITIAL_EXPONENT, np.int32))
        exchange = SharedMemoryOptimizer(world, OptimizerSpec(OptimizerOptions(name="sgd")), quanta)
        print("summed by", exchange.reduce_backend)
        generators = [np.random.default_rng(rank) for rank in range(world.size)]
        for step in range(4):
            quanta.sum_bounds[:] = 0, 1, 2**16
            terms = {name: [g.integers(-(2**27), 2**27, shape) for g in generators] for name, shape in shapes.items()}
            loss = compute(exchange, quanta, {name: terms[name][world.rank] for name in shapes}, 0.1 * world.rank)
            rows, not_finite, _ = exchange._all_reduce(loss, (2**40 - 1, step, world.rank))
            assert rows == [[0.1 * rank, 2**40 - 1, step, rank] for rank in range(world.size)], rows
            assert not_finite == ()
            for name, parameter in parameters.items():
                assert np.all(parameter.grad == sum(terms[name])), name
        for culprit in (0, world.size - 1):
            quanta.sum_bounds[0] = np.nan if world.rank == culprit else 1
            loss = compute(exchange, quanta, {name: terms[name][world.rank] for name in shapes}, 0.0)
            assert exchange._all_reduce(loss, ())[1] == (culprit,)
        print("all well on", world.rank)


def compute(exchange, quanta, gradients, loss):
    """Stand for the engine: write the gradients of this rank, and return the loss."""
    exchange.wait_for_update()
    quanta.start_step(1)
    for name, gradient in gradients.items():
        quanta.parameters[name].grad[...] = gradient
    return loss


if __name__ == "__main__":
    main()
