"""Worker of ``test_shared_memory_optimizer.py``: four all-reduces of random integers.

With the argument ``unshared``, rank 0 fails to open the shared memory, as in a container with its own ``/dev/shm``.
"""

import sys

import numpy as np

from crepe_dist.distributed.init_process_group import init_process_group
from crepe_dist.optim.fixed_point import INITIAL_EXPONENT, FixedPointScales, Parameter
from crepe_dist.optim.optimizers import OptimizerSpec
from crepe_dist.parallel import host_shared_memory
from crepe_dist.parallel.shared_memory_optimizer import SharedMemoryOptimizer
from crepe_dist.settings.options import OptimizerOptions


def main() -> None:
    with init_process_group() as group:
        if sys.argv[1:] == ["unshared"] and group.rank == 0:
            host_shared_memory._open_segments = lambda names, size: ([], [])
        shapes = {"a": (3, 5), "b": (1,), "c": (40, 33)}
        parameters = {name: Parameter(np.zeros(shape, np.float32)) for name, shape in shapes.items()}
        scales = FixedPointScales(parameters)
        scales.load_state_dict(np.full(3, INITIAL_EXPONENT, np.int32))
        optimizer = SharedMemoryOptimizer(group, OptimizerSpec(OptimizerOptions(name="sgd")), scales)
        print("summed by", optimizer.reduce_backend)
        generators = [np.random.default_rng(rank) for rank in range(group.size)]
        for step in range(4):
            scales.sum_bounds[:] = 0, 1, 2**16
            terms = {name: [g.integers(-(2**27), 2**27, shape) for g in generators] for name, shape in shapes.items()}
            loss = forward_backward(
                optimizer, scales, {name: terms[name][group.rank] for name in shapes}, 0.1 * group.rank
            )
            stats, nonfinite_ranks, _ = optimizer._all_reduce(loss, (2**40 - 1, step, group.rank))
            assert stats == [[0.1 * rank, 2**40 - 1, step, rank] for rank in range(group.size)], stats
            assert nonfinite_ranks == ()
            optimizer.wait_for_update()  # If there are several hosts, this call completes the sums.
            for name, parameter in parameters.items():
                assert np.all(parameter.grad == sum(terms[name])), name
        for culprit in (0, group.size - 1):
            scales.sum_bounds[0] = np.nan if group.rank == culprit else 1
            loss = forward_backward(optimizer, scales, {name: terms[name][group.rank] for name in shapes}, 0.0)
            assert optimizer._all_reduce(loss, ())[1] == (culprit,)
        print("all well on", group.rank)


def forward_backward(optimizer, scales, gradients, loss):
    """Write the gradients of this rank and return the loss, as an engine does."""
    optimizer.wait_for_update()
    scales.start_step(1)
    for name, gradient in gradients.items():
        scales.parameters[name].grad[...] = gradient
    return loss


if __name__ == "__main__":
    main()
