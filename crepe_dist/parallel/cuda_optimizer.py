"""Exchange of gradients in whole numbers in the memory of GPUs.

Behind the gradients is a table with a row of numbers for each rank, which is summed with them: by NCCL from GPU to GPU
or, without NCCL, in the memory of the hosts. Whole numbers add up to the same bits in any order. The host waits once in
a step: it reads this table, and sums of the gradients' squares behind it.
"""

from __future__ import annotations

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
from crepe_dist.optim.fixed_point import FixedPointScales, mean_and_clip_factor
from crepe_dist.optim.grad_scaler import GradScaler
from crepe_dist.optim.optimizer_state import OptimizerState
from crepe_dist.optim.optimizers import OptimizerSpec
from crepe_dist.optim.parameter import Parameter
from crepe_dist.parallel.distributed_optimizer import StepStats
from crepe_dist.parallel.fixed_point_optimizer import FixedPointOptimizer, num_step_stats
from crepe_dist.parallel.sharded_embedding import apply_lazy_updates
from crepe_dist.parallel.shared_memory_optimizer import open_host_memory

ALIGNMENT = 64  # numbers to which gradients are aligned
MAX_BLOCKS_PER_PARAMETER = 1 << 10  # that share out a parameter


class CudaOptimizer(FixedPointOptimizer):
    """Exchange that sums on GPUs and updates the parameters there.

    Args:
        run: kernels of the network.
        values: parameters on the GPU, by name.
        tables: names of the parameters that ``flush`` rounds.
        loss_scale: factor of the gradients.

    Attributes:
        totals: the sum of each trained parameter's gradients, int32, on the GPU; a convolution's are [taps, in, out].
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
        *starts, end = accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes.values()), initial=0)
        rows, squares = 8 * group.size * num_step_stats(scales), 16 * len(sizes)
        self._count = end + rows // 4
        self._memory = program.gpu.allocate(4 * end + rows + squares)
        self._is_zero = True
        self._stats_buffer = self._memory.view(4 * end, rows + squares)
        self._squares = self._memory.view(4 * self._count, squares)
        self._read = program.gpu.pinned(rows + squares)
        self._rows = self._read[:rows].view(np.float64).reshape(group.size, -1)
        self.grad_sums = {
            name: self._memory.view(4 * start, 4 * size) for start, (name, size) in zip(starts, sizes.items())
        }
        self._moments = {
            name: [program.gpu.allocate(4 * math.prod(shape)) for shape in optimizer.state_shapes(parameter)]
            for name, parameter in scales.parameters.items()
        }
        trained = np.array([self._trained(name, parameter) for name, parameter in scales.parameters.items()], np.int64)
        of = [min(blocks(size), MAX_BLOCKS_PER_PARAMETER) for size in sizes.values()]
        pieces = np.array([(n, piece, of[n]) for n in range(len(of)) for piece in range(of[n])], np.int32)
        self._parameters, self._pieces = (program.gpu.copy(trained), program.gpu.copy(pieces)), len(pieces)
        self._rates = program.gpu.allocate(8 * len(sizes))
        self._communicator: nccl.Communicator | None = None
        if group.size > 1:
            why_not = _nccl_unavailable_reason(group, program.gpu.number)
            self.reduce_backend = f"{group.backend} ({why_not})" if why_not else "NCCL"
            if not why_not:
                # NCCL hears of the end of a process of another host only.
                _, memory = open_host_memory(group, lambda processes: mmap.PAGESIZE)
                name = group.broadcast_object(nccl.unique_id() if group.is_root else None, "NCCL's id")
                group.heartbeat()
                limits = memory.check_peers_alive, group.timeout
                self._communicator = nccl.Communicator(program.gpu, group.rank, group.size, name, *limits)

    def _trained(self, name: str, parameter: Parameter) -> list[int]:
        """Return ``TrainedParameter`` of kernels/optimizer.cuh."""
        arrays = self._buffers[name], self.grad_sums[name], *self._moments[name]
        columns = parameter.shape[1] if parameter.rowwise_second_moment else 0
        addresses = [*(memory.address for memory in arrays), 0, 0][:4]
        channels = parameter.shape[1] if len(parameter.shape) == 3 else 0
        return [parameter.data.size, *addresses, columns, min(32, 1 << (columns - 1).bit_length()), channels]

    def zero_grad(self, documents: int) -> GradAccumulators:
        """Return sums that are zero, for the gradients of ``documents`` of this rank."""
        if not self._is_zero:  # another attempt, or the last step was not finite
            self._memory.clear()
        self._is_zero = False
        self._documents, each = documents, 4 * documents
        self._largest = self._program.buffer("largest terms", each * len(self.grad_sums))
        return {
            name: GradAccumulator(total, 1 / self._scales.scale_of(name), self._largest.view(each * number, each))
            for number, (name, total) in enumerate(self.grad_sums.items())
        }

    def _sum_gradients(self, loss: DeviceBuffer, step_info: Sequence[int]) -> list[StepStats]:
        """Add up the gradients; ``loss``: float32 [summands, documents]."""
        world, run, of_largest = self._group, self._program, (self._largest, self._documents, self._scales.bound_unit)
        place, summands = (world.rank, world.size, self._stats_buffer), loss.size // (4 * self._documents)
        run("write_step_stats", len(self.grad_sums) + 1, *of_largest, loss, summands, *step_info, *place)
        if self._communicator is not None:
            self._communicator.all_reduce(self._memory, self._count)
        elif world.size > 1:
            on_host = np.empty(self._count, np.int32)
            self._memory.read(on_host)
            self._memory.write(world.all_reduce(on_host, "gradients"))
        if self._optimizer.clip_norm is not None:
            run("add_squared_norms", self._pieces, *self._parameters, self._squares)
        self._stats_buffer.read_async(self._read)
        (self._communicator or run.gpu).wait()
        return list(self._rows.tolist())

    def step(self, global_batch_size: float, learning_rate: float) -> None:
        optimizer, quanta = self._optimizer, self._scales
        scale = mean_and_clip_factor(
            self._grad_scaler.grad_factor * global_batch_size, optimizer.clip_norm, self._sum_of_squares
        )
        self._grad_scaler.record_finite_step()
        self._num_updates += 1
        rates = [
            (
                optimizer.bias_corrected_lr(learning_rate * parameter.lr_mult, self._num_updates),
                scale * quanta.scale_of(name),
            )
            for name, parameter in quanta.parameters.items()
        ]
        self._rates.write(np.array(rates, np.float32))
        constants = optimizer.weight_decay, *optimizer.betas, optimizer.epsilon
        self._program(
            "update_parameters", self._pieces, *self._parameters, self._rates, optimizer.kernel_id, *constants
        )
        self._is_zero = True

    def _sum_of_squares(self) -> float:
        """Return the sum of the squares of all summed gradients, the same on every rank."""
        read = self._read[self._rows.nbytes :].view(np.uint64).reshape(-1, 2)
        return sum(
            (int(low) + (int(high) << 32)) * self._scales.scale_of(name) ** 2
            for (low, high), name in zip(read, self._scales.parameters)
        )

    def synchronize(self) -> None:
        for name in self._sparse_names:
            count = self._scales.parameters[name].data.size
            self._program("round_to_float16", blocks(count), self._buffers[name], count)

    def state_dict(self) -> Arrays:
        arrays = super().state_dict()
        for name, parameter in self._scales.parameters.items() if self._num_updates and self._group.is_root else ():
            for number, shape in enumerate(self._optimizer.state_shapes(parameter)):
                arrays[f"{name}.{number}"] = np.empty(shape, np.float32)
                self._moments[name][number].read(arrays[f"{name}.{number}"])
        return arrays

    def load_state_dict(self, arrays: Arrays) -> None:
        saved = OptimizerState(arrays)
        for name, parameter in self._scales.parameters.items():
            ages = saved.lazy_state(name, parameter.shape[0] if parameter.rowwise_second_moment else 0)
            moments = saved.moments(name, self._optimizer.state_shapes(parameter))
            if moments is not None:
                value, moments = apply_lazy_updates(parameter.data, moments, ages, self._optimizer)
                self._buffers[name].write(np.ascontiguousarray(value))
                for memory, moment in zip(self._moments[name], moments):
                    memory.write(np.ascontiguousarray(moment))
        self._scales.load_state_dict(saved.exponents(len(self._scales.parameters)))
        self._num_updates = saved.num_updates


def _nccl_unavailable_reason(group: ProcessGroup, gpu: int) -> str:
    """Return why NCCL cannot sum over the ranks' GPUs, the same on every rank; empty if it can."""
    versions, places = zip(*group.all_gather_object([nccl.version(), driver.gpu_location(gpu)], "NCCL"))
    if not all(versions):
        return f"rank {versions.index(0)} has no NCCL 2.14 or later"
    if len(set(versions)) > 1:
        return f"the ranks have versions {min(versions)} and {max(versions)} of NCCL"
    return "NCCL takes no slices of one GPU" if len(set(places)) < group.size else ""
