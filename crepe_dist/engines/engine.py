"""Interface of the engines, which compute a network's logits and gradients with the native kernels or with MXNet."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.batch import Batch, RowIndices
from crepe_dist.data.batch_schedule import equal_batches
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

# Row indices, int64 [n], labels, int32 [n], and logits, float32 [n, classes] or [n, branches, classes], of a batch.
LogitsBatch = tuple[RowIndices, npt.NDArray[np.int32], Logits]


class Engine(ABC):
    """Base class of the engines. An engine computes the logits and gradients of a network. It is not thread-safe.

    Attributes:
        config: Configuration of the network.
        backend: Precision and kernels.
        loss: Loss function.
        device: Device that computes the network.
        reduction_group: Number of documents whose gradients are added in floating point before the sum is rounded to
            fixed point. One rank must process all documents of such a group. The global batch is therefore divided
            among the ranks at multiples of this number.
        grad_scaler: Loss scaler for float16.
        parameters: Parameters by name, in the order that the kernels expect. ``GluonEngine`` does not have this
            attribute, because the Gluon block holds its parameters.
        pretrained_summary: Description of the pretrained weights that initialise the network, for the banner of the
            run. It is empty if all weights are initialised randomly.
    """

    parameters: dict[str, Parameter]

    reduction_group = 1
    pretrained_summary = ""

    def __init__(
        self,
        config: NetworkConfig,
        parameters: Mapping[str, Parameter],
        backend: Backend,
        loss: Loss = DEFAULT_LOSS,
        device: Device = CPU,
    ) -> None:
        self.config = config
        self.backend = backend
        self.loss = loss
        self.device = device
        self.grad_scaler = GradScaler(backend.precision)
        self._open({name: parameters[name] for name in config.parameter_shapes()})

    @abstractmethod
    def _open(self, parameters: dict[str, Parameter]) -> None:
        """Create the network with these parameters, which are in the order that the kernels expect."""

    def iter_logits(
        self, split: Split, batch_size: int, rank: int, size: int, compute: Callable[[Batch], Logits] | None = None
    ) -> Iterator[LogitsBatch]:
        """Yield the row indices, labels and logits of a rank's shard of each batch, with the current parameters.

        Args:
            split: Split of the data.
            batch_size: Number of documents in a global batch.
            rank: Rank whose shards are computed.
            size: Number of ranks.
            compute: ``logits`` or ``branch_logits``. If it is ``None``, ``logits`` is used.
        """
        self.load_weights()
        for batch in DataLoader(split, np.arange(len(split)), equal_batches(len(split), batch_size), rank, size):
            yield batch.rows, batch.labels, (compute or self.logits)(batch)[: len(batch.labels)]

    def wait(self) -> None:  # noqa: B027
        """Wait until all pending computations have finished."""

    def load_weights(self) -> None:  # noqa: B027
        """Make the kernels use the current parameters. Call it before ``logits`` if parameters may have changed."""

    def state_dict(self) -> Arrays:
        """Return all parameters by structural name. The next step may modify the arrays."""
        return {name: parameter.data for name, parameter in self.parameters.items()}

    def load_state_dict(self, arrays: Arrays) -> None:
        """Set all parameters by structural name.

        Raises:
            UserError: A name or a shape does not match the parameters of the network, or a value is not finite.
        """
        validate(arrays, self.config)
        for name, parameter in self.parameters.items():
            parameter.data[:] = arrays[name]

    @abstractmethod
    def create_optimizer(
        self, group: ProcessGroup, options: OptimizerOptions, max_shard_size: int
    ) -> DistributedOptimizer:
        """Create the distributed optimizer for the parameters of this engine. Every rank must call this method.

        Args:
            group: Process group.
            options: Hyperparameters of the optimizer.
            max_shard_size: Number of documents in the largest shard of a batch. This number determines how much memory
                is allocated for the gradients of embeddings.
        """

    @abstractmethod
    def logits(self, batch: Batch) -> Logits:
        """Compute logits without dropout, float32 [B, classes], with the parameters at the last ``load_weights``."""

    def branch_logits(self, batch: Batch) -> Logits:
        """Compute the logits of each branch of the network, float32 [B, branches, classes]; see ``logits``."""
        return self.logits(batch)[:, None]

    @abstractmethod
    def forward_backward(self, batch: Batch, next_batch: Batch | None = None) -> Any:
        """Compute the gradients of the summed, weighted losses of a batch, which is this rank's shard.

        Args:
            next_batch: Batch of the next call, if it is already known. If there are several hosts, the CPU engine lists
                its rows now, so that they are requested together with the gradients of this batch. Every rank must
                pass a batch, or no rank.

        Returns:
            With the native CPU kernels, the sum of the losses. Otherwise, an array or buffer of losses on the device.
            Pass this value to ``all_reduce`` of the engine's optimizer.
        """


def create_engine(
    config: NetworkConfig,
    parameters: Mapping[str, Parameter],
    backend: Backend,
    loss: Loss = DEFAULT_LOSS,
    device: Device = CPU,
) -> Engine:
    """Create the engine that ``backend`` selects. ``Engine`` describes the arguments as attributes.

    Raises:
        UserError: The backend needs MXNet, and MXNet is not installed.
    """
    arguments = config, parameters, backend, loss, device
    if backend.on_cuda:
        from crepe_dist.engines.cuda_engine import CudaEngine

        return CudaEngine(*arguments)
    if backend.library is not None:
        from crepe_dist.engines.cpu_engine import CpuEngine

        return CpuEngine(*arguments)
    import_mxnet()
    from crepe_dist.engines.gluon_engine import GluonEngine

    return GluonEngine(*arguments)
