"""The training objective as a graph of MXNet's operators."""

from __future__ import annotations

from typing import Any

from mxnet import gluon

from crepe_dist.model.objective import Objective


class Loss(gluon.HybridBlock):
    """Sum of the losses of a batch, in nats, float32 [1].

    Inputs are logits, float32 [B, classes]; labels, float32 [B]; weights of the documents, float32 [B, 1]; and, if the
    objective has them, the class weights, float32 [classes].
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__(prefix="")
        self._objective = objective

    def hybrid_forward(self, F: Any, logits: Any, labels: Any, weights: Any, class_weights: Any = None) -> Any:
        log_probabilities, smoothing = F.log_softmax(logits), self._objective.smoothing
        target = F.pick(log_probabilities, labels, axis=1, keepdims=True)
        if smoothing:
            target = (1 - smoothing) * target + smoothing * F.mean(log_probabilities, axis=1, keepdims=True)
        if class_weights is not None:
            weights = weights * F.reshape(F.take(class_weights, labels), (-1, 1))
        return -F.sum(target * weights)
