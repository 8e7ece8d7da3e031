"""The paper's network as a hybridizable Gluon block."""

from __future__ import annotations

from functools import partial
from typing import Any

import mxnet as mx
from mxnet.gluon import nn

from crepe_dist.data.batch import Batch
from crepe_dist.errors import UserError
from crepe_dist.model.paper import CONVOLUTIONS, POOL, PaperShape, lengths
from crepe_dist.mxnet_internals import drop_compiled_graph, structural_parameters
from crepe_dist.networks.dropout import Kept
from crepe_dist.networks.layers import Casting, Conv1D, Dense, Dropout, Logits, MaxPool1D, OneHotConv1D
from crepe_dist.networks.stages import Stages
from crepe_dist.settings.model_options import Initialisation, ModelOptions

DROPOUTS = 2
LARGE_FILTERS = 1024


class Paper(nn.HybridSequential):
    """Six convolutions, three pools, three dense layers: uint8 codes [B, L] → float32 logits [B, classes].

    Children have the same indices as in the notebook's ``HybridSequential`` (convolutions 0, 2, 4, 5, 6, 7; dense
    layers 10, 12, 14), so both can load each other's ``save_parameters`` files. Every layer gets its input size,
    because deferred initialisation would delay the broadcast of the parameters to the first forward pass.

    Raises:
        ValueError: ``feature_len`` leaves no position after the last pool.
    """

    def __init__(self, shape: PaperShape, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        positions = lengths(shape.feature_len)
        if positions[-1] < 1:
            raise ValueError(f"feature_len is {shape.feature_len}; this network needs at least 123 characters")
        self.shape = shape
        with self.name_scope():
            for index, (kernel, pooled) in enumerate(CONVOLUTIONS):
                name = f"conv{index}_"
                if index == 0:
                    self.add(OneHotConv1D(shape.alphabet_size, shape.filters, kernel, prefix=name))
                else:
                    width = shape.filters
                    self.add(Conv1D(width, kernel, in_channels=width, activation="relu", prefix=name))
                if pooled:
                    self.add(MaxPool1D(pool_size=POOL, strides=POOL))
            self.add(nn.Flatten())  # small, 1014 characters: 34 × 256 = 8704 inputs
            convolutions = len(self)
            width = positions[-1] * shape.filters
            for _ in range(DROPOUTS):
                self.add(Dense(shape.units, in_units=width, activation="relu"))
                self.add(Dropout(shape.dropout))
                width = shape.units
            self.add(Logits(shape.classes, in_units=width))
        self.stages = Stages(list(self), convolutions)

    def hybridize(self, active: bool = True, **flags: Any) -> None:
        """Compile the network at its next call: as one graph, and as two for ``logits`` and ``training_logits``."""
        super().hybridize(active, **flags)
        self.stages.hybridize(active, **flags)

    ngrams = None  # it has no table of n-grams

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch as it is: the network reads its codes."""
        return batch

    def inputs(self, batch: Batch, codes: mx.nd.NDArray) -> tuple[mx.nd.NDArray]:
        """Return the arguments of the forward pass for ``batch``, whose codes are already on the device."""
        return (codes,)

    def logits(self, codes: mx.nd.NDArray) -> mx.nd.NDArray:
        """Compute the logits, float32 [B, classes], as calling the network does."""
        return self.stages(codes)

    def training_logits(self, kept: Kept, codes: mx.nd.NDArray) -> tuple[mx.nd.NDArray]:
        """Compute the logits, float32 [B, classes], of the network's only part, with dropout by ``kept``."""
        mask = partial(kept, self.shape.dropout, DROPOUTS, self.shape.units) if self.shape.dropout else None
        return (self.stages(codes, mask),)

    def compute_in(self, precision: str, device: Any) -> None:
        """Set precision and device of MXNet's operators, and discard the compiled graphs."""
        for layer in self:
            if isinstance(layer, Casting):
                layer.dtype = precision
            if isinstance(layer, MaxPool1D):
                layer.two_dimensional = device.device_type == "gpu"
        drop_compiled_graph(self)
        self.stages.drop_compiled_graphs()


def build_paper(shape: PaperShape, options: ModelOptions, device: Any) -> Paper:
    """Make the paper's network and initialise it on ``device`` as ``options`` specify.

    Raises:
        UserError: The documents are too short for the network.
    """
    if lengths(shape.feature_len)[-1] < 1:
        raise UserError(
            f"documents of {shape.feature_len} characters are too short for this network",
            "six convolutions and three pools need at least 123",
            "prepare the data with --feature-len 123 or more",
        )
    network = Paper(shape)
    network.initialize(_initializer(options.initialisation, shape.filters), ctx=device)
    if options.initialisation == "paper":
        sigma = _paper_sigma(shape.filters)
        for name, parameter in structural_parameters(network).items():
            if name.endswith("bias"):
                parameter.set_data(mx.nd.random.normal(0, sigma, shape=parameter.shape))
    return network


def _initializer(initialisation: Initialisation, filters: int) -> Any:
    if initialisation == "paper":
        return mx.init.Normal(_paper_sigma(filters))
    if initialisation == "xavier":
        return mx.init.Xavier(magnitude=2.24)
    return mx.init.Xavier(rnd_type="gaussian", factor_type="in", magnitude=2)


def _paper_sigma(filters: int) -> float:
    """Return the standard deviation of section 2.5 of the paper, for all weights and biases of a network."""
    return 0.02 if filters >= LARGE_FILTERS else 0.05
