"""The bag of characters as a Gluon block."""

from typing import Any

from mxnet.gluon import nn

from tests.helpers.bag.config import BagShape


class Bag(nn.HybridBlock):
    """Gluon block: character ids, uint8 [B, L] → logits, float32 [B, classes]."""

    def __init__(self, shape: BagShape, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape = shape
        with self.name_scope():
            self.weight = self.params.get("weight", shape=(shape.num_classes, shape.alphabet_size))
            self.bias = self.params.get("bias", shape=(shape.num_classes,))

    def hybrid_forward(self, F: Any, char_ids: Any, weight: Any, bias: Any) -> Any:
        counts = F.sum(F.one_hot(char_ids, depth=self.shape.alphabet_size), axis=1)
        return F.FullyConnected(counts, weight, bias, num_hidden=self.shape.num_classes)


BLOCK = Bag
