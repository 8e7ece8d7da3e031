"""Distributed optimizer on GPUs: all-reduce of fixed-point gradients by NCCL, and updates on the GPU.

In memory, a matrix with one row of statistics per rank follows the gradients, and is summed with them. NCCL sums
directly between GPUs. If NCCL is not available, the gradients are copied to the host and summed there. Integer sums do
not depend on the order of the additions, so the two methods give bit-identical sums. The host waits for the GPU once
per step, when it reads the statistics.
"""

import math
import mmap
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

import numpy as np

from crepe_dist.cuda import driver, nccl
from crepe_dist.cuda.branch import GradAccumulator, GradAccumulators, KernelProgram, blocks
from crepe_dist.cuda.gpu import DeviceBuffer
from crepe_dist.data.arrays import Arrays
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.optim.fixed_point import FixedPointScales
from crepe_dist.optim.grad_scaler import GradScaler
from crepe_dist.optim.optimizer_state import OptimizerState
from crepe_dist.optim.optimizers import OptimizerSpec, batch_factor
from crepe_dist.optim.parameter import Parameter
from crepe_dist.parallel.distributed_optimizer import StepStats
from crepe_dist.parallel.fixed_point_optimizer import FixedPointOptimizer, num_step_stats
from crepe_dist.parallel.sharded_embedding import apply_lazy_updates
from crepe_dist.parallel.shared_memory_optimizer import open_host_memory

ALIGNMENT = 64  # Alignment of each gradient, in int32 numbers.
MAX_BLOCKS_PER_PARAMETER = 1 << 10  # Maximum number of thread blocks that process one parameter.


class CudaOptimizer(FixedPointOptimizer):
    """Optimizer that sums the gradients on GPUs and updates the parameters there.

    Args:
        group: Process group.
        optimizer: Hyperparameters of the optimizer.
        scales: The trained parameters, and the fixed-point scales of their gradients.
        program: Kernels of the network.
        buffers: Parameters on the GPU, by name.
        sparse_names: Names of the embedding parameters, which ``synchronize`` rounds to float16.
        grad_scaler: Loss scaler. ``step`` divides the gradients by its factor.

    Attributes:
        grad_sums: Sums of the gradients on the GPU, by the name of the trained parameter, int32. The gradient of a
            convolution has the layout [taps, in, out].
    """

    def __init__(
        self,
        group: ProcessGroup,
        optimizer: OptimizerSpec,
        scales: FixedPointScales,
        program: KernelProgram,
        buffers: Mapping[str, DeviceBuffer],
        sparse_names: Collection[str],
        grad_scaler: GradScaler,
    ) -> None:
        super().__init__(scales)
        self._group = group
        self._optimizer = optimizer
        self._program = program
        self._buffers = buffers
        self._sparse_names = sparse_names
        self._grad_scaler = grad_scaler
        sizes = {name: parameter.data.size for name, parameter in scales.parameters.items()}
        # Layout of the memory: gradients, statistics of all ranks. The all-reduce sums both.
        *starts, end = accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes.values()), initial=0)
        stats_bytes = 8 * group.size * num_step_stats(scales)
        self._num_reduced = end + stats_bytes // 4
        self._memory = program.gpu.allocate(4 * end + stats_bytes)
        self._is_zero = True
        self._gpu_stats = self._memory.view(4 * end, stats_bytes)
        self._stats = program.gpu.pinned(stats_bytes).view(np.float64).reshape(group.size, -1)
        self.grad_sums = {
            name: self._memory.view(4 * start, 4 * size) for start, (name, size) in zip(starts, sizes.items())
        }
        self._moments = {
            name: [program.gpu.allocate(4 * math.prod(shape)) for shape in optimizer.state_shapes(parameter)]
            for name, parameter in scales.parameters.items()
        }
        trained = np.array(
            [self._trained_parameter(name, parameter) for name, parameter in scales.parameters.items()], np.int64
        )
        num_blocks = [min(blocks(size), MAX_BLOCKS_PER_PARAMETER) for size in sizes.values()]
        slices = np.array(
            [(index, block, count) for index, count in enumerate(num_blocks) for block in range(count)], np.int32
        )
        self._parameters_and_slices = program.gpu.copy(trained), program.gpu.copy(slices)
        self._num_slices = len(slices)
        self._rates = program.gpu.allocate(8 * len(sizes))
        self._communicator: nccl.Communicator | None = None
        if group.size > 1:
            reason = _nccl_unavailable_reason(group, program.gpu.number)
            self.reduce_backend = f"{group.backend} ({reason})" if reason else "NCCL"
            if not reason:
                # NCCL does not detect that another process on the same host has ended. The file locks of the shared
                # memory reveal this.
                consequence = "the others notice the end of one of them later"
                _, memory = open_host_memory(group, lambda num_processes: mmap.PAGESIZE, consequence)
                unique_id = group.broadcast_json(nccl.unique_id() if group.is_root else None, "NCCL's id")
                group.heartbeat()
                self._communicator = nccl.Communicator(
                    program.gpu, group.rank, group.size, unique_id, memory.check_peers_alive, group.timeout
                )

    def _trained_parameter(self, name: str, parameter: Parameter) -> list[int]:
        """Return the fields of the struct ``TrainedParameter`` in kernels/optimizer.cuh."""
        arrays = self._buffers[name], self.grad_sums[name], *self._moments[name]
        addresses = [*(buffer.address for buffer in arrays), 0, 0][:4]
        columns = parameter.shape[1] if parameter.rowwise_second_moment else 0
        lanes = min(32, 1 << (columns - 1).bit_length())
        inputs, taps = parameter.shape[1:] if len(parameter.shape) == 3 else (0, 0)
        return [parameter.data.size, *addresses, columns, lanes, inputs, taps]

    def zero_grad(self, num_documents: int) -> GradAccumulators:
        """Return zeroed accumulators for the gradients of this rank's ``num_documents`` documents."""
        # The update kernel sets the gradients to zero. Clear them here if the last step had no update. This happens if
        # a step is recomputed, or if its gradients were not finite.
        if not self._is_zero:
            self._memory.clear()
        self._is_zero = False
        self._num_documents, size = num_documents, 4 * num_documents
        self._largest_terms = self._program.buffer("largest terms", size * len(self.grad_sums))
        return {
            name: GradAccumulator(
                grad_sum, 1 / self._scales.scale_of(name), self._largest_terms.view(size * index, size)
            )
            for index, (name, grad_sum) in enumerate(self.grad_sums.items())
        }

    def _sum_gradients(self, loss: DeviceBuffer, step_info: Sequence[int]) -> list[StepStats]:
        """Sum the gradients over the ranks. ``loss`` is float32 [branches, documents]."""
        group, program = self._group, self._program
        terms = self._largest_terms, self._num_documents, self._scales.bound_unit
        num_branches = loss.size // (4 * self._num_documents)
        program(
            "write_step_stats", len(self.grad_sums) + 1,
            *terms, loss, num_branches, *step_info, group.rank, group.size, self._gpu_stats,
        )  # fmt: skip
        if self._communicator is not None:
            self._communicator.all_reduce(self._memory, self._num_reduced)
        elif group.size > 1:
            on_host = np.empty(self._num_reduced, np.int32)
            self._memory.read(on_host)
            self._memory.write(group.all_reduce(on_host, "gradients"))
        self._gpu_stats.read_async(self._stats)
        (self._communicator or program.gpu).wait()
        return list(self._stats.tolist())

    def step(self, global_batch_size: float, learning_rate: float) -> None:
        optimizer, scales = self._optimizer, self._scales
        factor = batch_factor(global_batch_size)
        grad_factor = factor * float(np.float32(1 / (self._grad_scaler.grad_factor * global_batch_size)))
        self._grad_scaler.record_finite_step()
        self._num_updates += 1
        rates = [
            (
                optimizer.bias_corrected_lr(factor * learning_rate * parameter.lr_mult, self._num_updates),
                grad_factor * scales.scale_of(name),
            )
            for name, parameter in scales.parameters.items()
        ]
        self._rates.write(np.array(rates, np.float32))
        self._program(
            "update_parameters", self._num_slices,
            *self._parameters_and_slices, self._rates, optimizer.is_adam,
            optimizer.weight_decay, *optimizer.betas, optimizer.epsilon,
        )  # fmt: skip
        self._is_zero = True

    def synchronize(self) -> None:
        for name in self._sparse_names:
            count = self._scales.parameters[name].data.size
            self._program("round_to_float16", blocks(count), self._buffers[name], count)

    def state_dict(self) -> Arrays:
        arrays = super().state_dict()
        for name, parameter in self._scales.parameters.items() if self._num_updates and self._group.is_root else ():
            for index, shape in enumerate(self._optimizer.state_shapes(parameter)):
                arrays[f"{name}.{index}"] = np.empty(shape, np.float32)
                self._moments[name][index].read(arrays[f"{name}.{index}"])
        return arrays

    def load_state_dict(self, arrays: Arrays) -> None:
        state = OptimizerState(arrays)
        for name, parameter in self._scales.parameters.items():
            lazy_state = state.lazy_state(name, parameter.shape[0] if parameter.rowwise_second_moment else 0)
            moments = state.moments(name, self._optimizer.state_shapes(parameter))
            if moments is not None:
                values, moments = apply_lazy_updates(parameter.data, moments, lazy_state, self._optimizer)
                self._buffers[name].write(np.ascontiguousarray(values))
                for buffer, moment in zip(self._moments[name], moments):
                    buffer.write(np.ascontiguousarray(moment))
        self._scales.load_state_dict(state.exponents(len(self._scales.parameters)))
        self._num_updates = state.num_updates


def _nccl_unavailable_reason(group: ProcessGroup, gpu: int) -> str:
    """Return why NCCL cannot sum over the GPUs of the ranks, or an empty text if it can.

    Every rank must call this function, and every rank gets the same result.
    """
    versions, locations = zip(*group.all_gather_json([nccl.version(), driver.gpu_location(gpu)], "NCCL"))
    if not all(versions):
        return f"rank {versions.index(0)} has no NCCL 2.14 or later"
    if len(set(versions)) > 1:
        return f"the ranks have versions {min(versions)} and {max(versions)} of NCCL"
    return "NCCL cannot use several MIG slices of one GPU" if len(set(locations)) < group.size else ""
