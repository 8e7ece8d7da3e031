"""Interface of the engines that compute logits and gradients: our own kernels, or MXNet's operators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Callable

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.batch import Batch, RowIndices
from crepe_dist.data.dataset import Split
from crepe_dist.data.loader import DataLoader
from crepe_dist.distributed.device import CPU, Device
from crepe_dist.distributed.launch import import_mxnet
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.model.backend import Backend
from crepe_dist.model.loss import DEFAULT_LOSS, Loss
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.model.weights_io import validate
from crepe_dist.optim.grad_scaler import GradScaler
from crepe_dist.optim.parameter import Parameter
from crepe_dist.parallel.distributed_optimizer import DistributedOptimizer
from crepe_dist.settings.options import OptimizerOptions

Logits = npt.NDArray[np.float32]

# Rows, labels and logits of a batch: int64 [n], int32 [n], float32 [n, classes] or [n, summands, classes].
LogitsBatch = tuple[RowIndices, npt.NDArray[np.int32], Logits]


class Engine(ABC):
    """Engine that computes a network and trains its parameters.

    Attributes:
        shape: configuration of the network.
        backend: precision and kernels.
        objective: loss function.
        device: device of the network.
        group_size: number of documents that one rank must compute together; the global batch is cut at multiples of it.
        loss_scale: scale of the loss in float16.
        parameters: parameters by name, in the order of the kernels; MXNet keeps its own.
        pretrained_summary: Description of the pretrained weights that training starts from, for the banner of the run.
            It is empty if all weights are initialised randomly.
    """

    parameters: dict[str, Parameter]

    reduction_group = 1
    pretrained_summary = ""

    def __init__(
        self,
        shape: NetworkConfig,
        parameters: Mapping[str, Parameter],
        backend: Backend,
        loss: Loss = DEFAULT_LOSS,
        device: Device = CPU,
    ) -> None:
        self.config = shape
        self.backend = backend
        self.loss = loss
        self.device = device
        self.grad_scaler = GradScaler(backend.precision)
        self._open({name: parameters[name] for name in shape.parameter_shapes()})

    @abstractmethod
    def _open(self, parameters: dict[str, Parameter]) -> None:
        """Open the network with these parameters, in the order of the kernels."""

    def iter_logits(
        self, split: Split, batch_size: int, rank: int, size: int, compute: Callable[[Batch], Logits] | None = None
    ) -> Iterator[LogitsBatch]:
        """Yield rows, labels and logits of a rank's share of each batch of a split, with the current parameters.

        Args:
            compute: ``logits`` or ``parts``; ``None``: ``logits``.
        """
        self.load_weights()
        for batch in DataLoader(split, np.arange(len(split)), batch_size, rank, size):
            yield batch.rows, batch.labels, (compute or self.logits)(batch)[: len(batch.labels)]

    def wait(self) -> None:  # noqa: B027
        """Wait until all computation is done."""

    def load_weights(self) -> None:  # noqa: B027
        """Load the current parameters. Call before ``logits`` if they may have changed."""

    def state_dict(self) -> Arrays:
        """Return all parameters by structural name, to be read before the next step."""
        return {name: parameter.data for name, parameter in self.parameters.items()}

    def load_state_dict(self, arrays: Arrays) -> None:
        """Set all parameters by structural name.

        Raises:
            UserError: A name or shape differs from the network's, or a value is not finite.
        """
        validate(arrays, self.config)
        for name, parameter in self.parameters.items():
            parameter.data[:] = arrays[name]

    @abstractmethod
    def create_optimizer(
        self, group: ProcessGroup, options: OptimizerOptions, max_shard_size: int
    ) -> DistributedOptimizer:
        """Open the exchange of the gradients, which updates the parameters; every rank calls it.

        Args:
            documents: upper bound of the documents of any rank's share of a batch, the same on every rank. It bounds
                the memory of tables.
        """

    @abstractmethod
    def logits(self, batch: Batch) -> Logits:
        """Compute logits without dropout, float32 [B, classes], with the parameters of the last ``refresh``."""

    def branch_logits(self, batch: Batch) -> Logits:
        """Compute the logits of the network's summands as ``logits`` does, float32 [B, summands, classes]."""
        return self.logits(batch)[:, None]

    @abstractmethod
    def forward_backward(self, batch: Batch) -> Any:
        """Compute the gradients of the sum of the weighted losses of this rank's share of a batch, for the exchange.

        Returns:
            The sum of the losses: a number from our own kernels for CPUs; else what the engine's exchange expects.
        """


def create_engine(
    shape: NetworkConfig,
    parameters: Mapping[str, Parameter],
    backend: Backend,
    loss: Loss = DEFAULT_LOSS,
    device: Device = CPU,
) -> Engine:
    """Open the engine that ``backend`` selects for a network with these parameters; see ``Engine`` for the arguments.

    Raises:
        UserError: MXNet is needed, and not installed.
    """
    given = shape, parameters, backend, loss, device
    if backend.on_cuda:
        from crepe_dist.engines.cuda_engine import CudaEngine

        return CudaEngine(*given)
    if backend.library is not None:
        from crepe_dist.engines.cpu_engine import CpuEngine

        return CpuEngine(*given)
    import_mxnet()
    from crepe_dist.engines.gluon_engine import GluonEngine

    return GluonEngine(*given)
