"""The training objective as a graph of MXNet's operators."""

from __future__ import annotations

from typing import Any

from mxnet import gluon

from crepe_dist.data.targets import SEVERAL
from crepe_dist.model.objective import Objective


class Loss(gluon.HybridBlock):
    """Sum of the losses of a batch, in nats, float32 [1].

    Inputs are logits, float32 [B, classes]; labels, float32 [B], or if the objective has pairs the shares of all
    classes, float32 [B, classes]; weights of the documents, float32 [B, 1]; and, if the objective has them, the class
    weights, float32 [classes].
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__(prefix="")
        self._objective = objective

    def hybrid_forward(self, F: Any, logits: Any, labels: Any, weights: Any, class_weights: Any = None) -> Any:
        if self._objective.labelled == SEVERAL:
            return self._independent(F, logits, labels, weights, class_weights)
        log_probabilities, smoothing = F.log_softmax(logits), self._objective.smoothing
        if self._objective.pairs:
            target = F.sum(log_probabilities * labels, axis=1, keepdims=True)
        else:
            target = F.pick(log_probabilities, labels, axis=1, keepdims=True)
        if smoothing:
            target = (1 - smoothing) * target + smoothing * F.mean(log_probabilities, axis=1, keepdims=True)
        if class_weights is not None:
            of_label = F.dot(labels, class_weights) if self._objective.pairs else F.take(class_weights, labels)
            weights = weights * F.reshape(of_label, (-1, 1))
        return -F.sum(target * weights)

    def _independent(self, F: Any, logits: Any, shares: Any, weights: Any, class_weights: Any) -> Any:
        smoothing = self._objective.smoothing
        wanted = (1 - smoothing) * shares + smoothing / 2 if smoothing else shares
        losses = F.Activation(logits, act_type="softrelu") - wanted * logits
        if class_weights is not None:
            losses = F.broadcast_mul(losses, F.reshape(class_weights, (1, -1)))
        return F.sum(F.broadcast_mul(losses, weights))
