"""Engine that uses MXNet's operators in float32. Gluon's or Horovod's trainer updates the parameters."""

from typing import Any

import mxnet as mx
from mxnet import autograd, gluon

from crepe_dist import network_registry
from crepe_dist.data.arrays import Arrays
from crepe_dist.data.batch import Batch, unpack_batch
from crepe_dist.distributed.device import Device
from crepe_dist.distributed.mxnet_internals import structural_parameters
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.engines.engine import Engine, Logits
from crepe_dist.model.weights_io import validate
from crepe_dist.optim.optimizers import OptimizerSpec
from crepe_dist.optim.parameter import Parameter
from crepe_dist.parallel.distributed_optimizer import DistributedOptimizer
from crepe_dist.parallel.horovod_optimizer import HorovodOptimizer
from crepe_dist.settings.options import OptimizerOptions


class GluonEngine(Engine):
    """Engine for networks that are implemented as a Gluon block. The block holds the parameters.

    Attributes:
        network: The Gluon block.
    """

    def _open(self, parameters: dict[str, Parameter]) -> None:
        self._context = mxnet_context(self.device)
        self.network = network_registry.import_network_module(self.config.kind, "gluon").BLOCK(self.config)
        self.network.initialize(mx.init.Zero(), ctx=self._context)
        for name, parameter in structural_parameters(self.network).items():
            parameter.set_data(mx.nd.array(parameters[name].data))
        self.network.hybridize(static_alloc=True, static_shape=True)

    def wait(self) -> None:
        mx.nd.waitall()

    def state_dict(self) -> Arrays:
        return parameter_values(self.network)

    def load_state_dict(self, arrays: Arrays) -> None:
        validate(arrays, self.config)
        # After inference on the CPU, the weights are stored in a oneDNN layout. In this layout, `set_data` fails
        # asynchronously, and the old values remain. A cast restores the plain layout (checked with MXNet 1.9.1).
        self.network.cast("float32")
        for name, parameter in structural_parameters(self.network).items():
            parameter.set_data(mx.nd.array(arrays[name]))
        # Compile the graph again, because the compiled graph refers to the old arrays.
        self.network.hybridize(static_alloc=True, static_shape=True)

    def create_optimizer(
        self, group: ProcessGroup, options: OptimizerOptions, max_shard_size: int
    ) -> DistributedOptimizer:
        names = {parameter.name: name for name, parameter in structural_parameters(self.network).items()}
        return HorovodOptimizer(group, self.network.collect_params(), OptimizerSpec(options), names)

    def logits(self, batch: Batch) -> Logits:
        char_ids = batch.packed[:, : self.config.feature_len]
        logits: Logits = self.network(self._to_device(char_ids)).asnumpy()
        return logits

    def forward_backward(self, batch: Batch, next_batch: Batch | None = None) -> mx.nd.NDArray:
        char_ids, label_probs, weights = unpack_batch(batch, self.config.num_classes, self.loss.max_labels)
        arrays = char_ids, *self.loss.targets(label_probs, weights)
        char_ids, targets, weights = map(self._to_device, arrays)
        # The seed includes the position of the shard, so that the dropout masks of the ranks differ.
        mx.random.seed((batch.seed + batch.first) % 2**31)
        with autograd.record():
            loss = self.loss.gluon_loss(mx.nd, self.network(char_ids), targets, weights)
        loss.backward()
        return loss

    def _to_device(self, array: Any) -> mx.nd.NDArray:
        return mx.nd.array(array, dtype=array.dtype).as_in_context(self._context)


def mxnet_context(device: Device) -> mx.Context:
    """Return the MXNet context of a device."""
    return mx.gpu(device.device_id) if device.device_type == "gpu" else mx.cpu()


def parameter_values(network: gluon.Block) -> Arrays:
    """Return copies of all parameters of a block as float32 arrays, by structural name."""
    return {name: parameter.data().asnumpy() for name, parameter in structural_parameters(network).items()}
