"""Exchange of gradients in whole numbers in the memory of GPUs.

Behind the gradients is a table with a row of numbers for each rank, which is summed with them: by NCCL from GPU to GPU
or, without NCCL, in the memory of the hosts. Whole numbers add up to the same bits in any order.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Collection, Mapping
from itertools import accumulate

import numpy as np

from crepe_dist.cuda import driver, nccl
from crepe_dist.cuda.gpu import Memory
from crepe_dist.cuda.network import Program, blocks
from crepe_dist.data.arrays import Arrays
from crepe_dist.distributed.world import SAME_MACHINES, World
from crepe_dist.exchange.exchange import LossScale, Row, SavedArrays
from crepe_dist.exchange.optimizer import Optimizer
from crepe_dist.exchange.quanta import Quanta, WholeNumberExchange, mean_scale, row_width
from crepe_dist.exchange.shared_memory import share_on_hosts
from crepe_dist.exchange.table import catch_up

LINE = 64  # numbers to which gradients are aligned


class CudaExchange(WholeNumberExchange):
    """Exchange that sums on GPUs and updates the parameters there.

    Args:
        run: kernels of the network.
        values: parameters on the GPU, by name.
        tables: names of the parameters that ``flush`` rounds.
        loss_scale: factor of the gradients.

    Attributes:
        totals: the sum of each trained parameter's gradients, int32, on the GPU.
    """

    def __init__(
        self,
        world: World,
        optimizer: Optimizer,
        quanta: Quanta,
        run: Program,
        values: Mapping[str, Memory],
        tables: Collection[str],
        loss_scale: LossScale,
    ) -> None:
        super().__init__(quanta)
        self._world = world
        self._optimizer = optimizer
        self._run = run
        self._values = values
        self._tables = tables
        self._loss_scale = loss_scale
        sizes = {name: parameter.value.size for name, parameter in quanta.parameters.items()}
        *starts, end = accumulate((-(-size // LINE) * LINE for size in sizes.values()), initial=0)
        self._rows = np.zeros((world.size, row_width(quanta)))
        self._count = end + 2 * self._rows.size
        self._memory = run.gpu.allocate(4 * self._count)
        self._table = self._memory.view(4 * end, self._rows.nbytes)
        self.totals = {
            name: self._memory.view(4 * start, 4 * size) for start, (name, size) in zip(starts, sizes.items())
        }
        self._moments = {
            name: [run.gpu.allocate(4 * math.prod(shape)) for shape in optimizer.moment_shapes(parameter)]
            for name, parameter in quanta.parameters.items()
        }
        self._communicator: nccl.Communicator | None = None
        if world.size > 1:
            why_not = _without_nccl(world, run.gpu.number)
            self.by = f"{world.carrier} ({why_not})" if why_not else "NCCL"
            if not why_not:
                # NCCL hears of the end of a process of another host only.
                _, memory = share_on_hosts(world, lambda processes: mmap.PAGESIZE)
                name = world.agree("NCCL", lambda: nccl.unique_id() if world.is_root else "")
                place = world.rank, world.size, world.broadcast(name, "NCCL's id")
                world.beat()
                limits = memory.check, world.patience
                self._communicator = world.agree(
                    "NCCL", lambda: nccl.Communicator(run.gpu, *place, *limits), alike=SAME_MACHINES
                )

    def clear(self) -> None:
        """Set all sums to zero."""
        self._memory.clear()

    def _add(self, row: Row) -> list[Row]:
        """Sum the gradients over the ranks, and return the rows of all ranks."""
        if self._world.size == 1:
            return [row]
        self._rows[:] = 0
        self._rows[self._world.rank, : len(row)] = row
        self._table.write(self._rows)
        if self._communicator is not None:
            self._communicator.sum(self._memory, self._count)
            self._communicator.wait()
        else:
            on_host = np.empty(self._count, np.int32)
            self._memory.read(on_host)
            self._memory.write(self._world.sum(on_host, "gradients"))
        self._table.read(self._rows)
        return list(self._rows[:, : len(row)].tolist())

    def update(self, documents: float, learning_rate: float) -> None:
        scale = mean_scale(self._loss_scale.factor * documents, self._optimizer.clip_norm, self._squares)
        self._loss_scale.good()
        self._updates += 1
        optimizer = self._optimizer
        constants = optimizer.weight_decay, *optimizer.decays, optimizer.epsilon
        for name, parameter in self._quanta.parameters.items():
            first, second = (*self._moments[name], None, None)[:2]
            arrays = self._values[name], first, second, self.totals[name]
            rates = optimizer.rate(learning_rate * parameter.rate, self._updates), scale * self._quanta.of(name)
            if parameter.row_moments:
                rows, columns = parameter.shape
                lanes = min(32, 1 << (columns - 1).bit_length())
                grid = blocks(rows * lanes)
                self._run("update_rows", grid, optimizer.number, rows, columns, lanes, *arrays, *rates, *constants)
            else:
                count = parameter.value.size
                self._run("update", blocks(count), optimizer.number, count, *arrays, *rates, *constants)

    def _squares(self) -> float:
        """Return the sum of the squares of all summed gradients, the same on every rank."""
        sums = self._run.buffer("squares", 16 * len(self._quanta.parameters))
        sums.clear()
        for number, (name, parameter) in enumerate(self._quanta.parameters.items()):
            count, total = parameter.value.size, self.totals[name]
            self._run("add_squares", blocks(count), total, count, sums.view(16 * number, 16))
        read = np.empty((len(self._quanta.parameters), 2), np.uint64)
        sums.read(read)
        return sum(
            (int(low) + (int(high) << 32)) * self._quanta.of(name) ** 2
            for (low, high), name in zip(read, self._quanta.parameters)
        )

    def flush(self) -> None:
        for name in self._tables:
            count = self._quanta.parameters[name].value.size
            self._run("round_to_half", blocks(count), self._values[name], count)

    def arrays(self) -> Arrays:
        arrays = super().arrays()
        for name, parameter in self._quanta.parameters.items() if self._updates and self._world.is_root else ():
            for number, shape in enumerate(self._optimizer.moment_shapes(parameter)):
                arrays[f"{name}.{number}"] = np.empty(shape, np.float32)
                self._moments[name][number].read(arrays[f"{name}.{number}"])
        return arrays

    def restore(self, arrays: Arrays) -> None:
        saved = SavedArrays(arrays)
        for name, parameter in self._quanta.parameters.items():
            ages = saved.ages(name, parameter.shape[0] if parameter.row_moments else 0)
            moments = saved.moments(name, self._optimizer.moment_shapes(parameter))
            if moments is not None:
                value, moments = catch_up(parameter.value, moments, ages, self._optimizer)
                self._values[name].write(np.ascontiguousarray(value))
                for memory, moment in zip(self._moments[name], moments):
                    memory.write(np.ascontiguousarray(moment))
        self._quanta.restore(saved.quanta(len(self._quanta.parameters)))
        self._updates = saved.updates


def _without_nccl(world: World, gpu: int) -> str:
    """Return why NCCL cannot sum over the ranks' GPUs, the same on every rank; empty if it can."""
    has_it, places = zip(*world.gather([nccl.available(), driver.place_of(gpu)], "NCCL"))
    if not all(has_it):
        return f"rank {has_it.index(False)} has no NCCL 2.14 or later"
    return "NCCL takes no slices of one GPU" if len(set(places)) < world.size else ""
