"""The paper's network in Gluon, as in the original Gluon notebook."""

from typing import Any

from mxnet.gluon import nn

from crepe_dist.native.constants import PAPER_POOL
from crepe_dist.networks.paper.config import CONVOLUTIONS, PaperConfig, layer_lengths

CHANNEL_BLOCK = 16  # oneDNN's fast kernels require that the number of input channels is a multiple of this number.


class Paper(nn.HybridSequential):
    """Six convolutions, three pools and three dense layers: uint8 character ids [B, L] → float32 logits [B, classes].

    The children have the same indices as in the notebook's ``HybridSequential``. Therefore, this class and the notebook
    can load each other's ``save_parameters`` files. Every layer is created with its input size, because deferred
    initialisation would delay Horovod's broadcast of the parameters until the first forward pass.
    """

    def __init__(self, config: PaperConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        with self.name_scope():
            for number, (kernel, pooled) in enumerate(CONVOLUTIONS):
                layer, channels = (nn.Conv1D, config.filters) if number else (OneHotConv1D, config.alphabet_size)
                self.add(layer(config.filters, kernel, in_channels=channels, activation="relu"))
                if pooled:
                    self.add(nn.MaxPool1D(PAPER_POOL, PAPER_POOL))
            self.add(nn.Flatten())  # small, 1014 characters: 34 × 256 = 8704 inputs
            width = layer_lengths(config.feature_len)[-1] * config.filters
            for _ in range(2):
                self.add(nn.Dense(config.units, in_units=width, activation="relu"), Dropout(config.dropout))
                width = config.units
            self.add(nn.Dense(config.num_classes, in_units=width))


class OneHotConv1D(nn.Conv1D):
    """Convolution of one-hot character ids. MXNet's ``one_hot`` turns ids beyond the alphabet into zeros."""

    def hybrid_forward(self, F: Any, char_ids: Any, weight: Any, bias: Any) -> Any:
        filters, alphabet_size, kernel = self.weight.shape
        padding = -alphabet_size % CHANNEL_BLOCK
        one_hot = F.transpose(F.one_hot(char_ids, depth=alphabet_size + padding), axes=(0, 2, 1))
        if padding:
            weight = F.concat(weight, F.zeros((filters, padding, kernel)), dim=1)
        return super().hybrid_forward(F, one_hot, weight, bias)


class Dropout(nn.Dropout):
    """Dropout with MXNet's random generator. cuDNN's generator ignores ``mx.random.seed`` (apache/mxnet#15662)."""

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return F.Dropout(x, p=self._rate, cudnn_off=True) if self._rate else F.identity(x)


BLOCK = Paper
