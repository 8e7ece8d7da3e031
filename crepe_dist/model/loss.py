"""Training loss: cross-entropy with optional label smoothing and class weights."""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.dataset import Dataset
from crepe_dist.data.targets import MULTILABEL, SINGLE_LABEL
from crepe_dist.errors import UserError
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.native.constants import LOSS_UNIT
from crepe_dist.settings.fields import truncate
from crepe_dist.settings.options import TrainingOptions

# Maximum ratio between two class weights, for single-label and multilabel data. The limit for multilabel data is lower
# than the limit for single-label data, because the gradients of all labels use one fixed-point scale, which the class
# with the largest weight determines (docs/decisions/parallel.md).
MAX_RATIO, MAX_MULTILABEL_RATIO = 10**6, 10**4


def quantize_losses(losses: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Round losses of documents to multiples of ``LOSS_UNIT``.

    Sums of rounded losses are exact up to 2**33 nats, so they do not depend on the order of the additions.
    """
    return np.asarray(np.rint(np.asarray(losses, np.float64) / LOSS_UNIT) * LOSS_UNIT)


class Constants(ctypes.Structure):
    """C struct ``LossConstants`` of ``native/engine.h``: the options of the loss for the C++ kernels."""

    _fields_ = (("smoothing", ctypes.c_double), ("max_labels", ctypes.c_int32), ("is_multilabel", ctypes.c_int32))


@dataclass(frozen=True)
class Loss:
    """Weighted cross-entropy with smoothed labels.

    For single labels and soft labels, the loss of a document is its class weight times the cross-entropy with the
    target (1 - smoothing) × label probability + smoothing / classes. The class weight of a soft label is the mean of
    the class weights, weighted by the label probabilities.

    For multilabel data, each class has a binary cross-entropy with the target (1 - smoothing) × label + smoothing / 2.
    The loss of a document is the sum of these cross-entropies, each multiplied by its class weight. The loss is a sum
    and not a mean, so that the gradient of a logit is as large as for single labels and the same learning rates work.

    Attributes:
        smoothing: Fraction of the target that is spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567,
            section 7), from 0 to below 1.
        weights: Weight of each class. If it is empty, every class has the weight 1.
        label_type: Kind of the labels, one of ``targets.LABEL_KINDS``.
        max_labels: Number of (class, label probability) pairs per document in a batch; 0 for single labels.
    """

    smoothing: float = 0.0
    weights: tuple[float, ...] = ()
    label_type: str = SINGLE_LABEL
    max_labels: int = 0

    @property
    def constants(self) -> Constants:
        return Constants(self.smoothing, self.max_labels, self.label_type == MULTILABEL)

    def class_weights(self, classes: int) -> npt.NDArray[np.float32]:
        """Return the class weights, float32 [classes].

        Raises:
            ValueError: The number of weights differs from ``classes``.
        """
        if self.weights and len(self.weights) != classes:
            raise ValueError(f"{len(self.weights)} weights for {classes} classes")
        return np.array(self.weights or [1.0] * classes, dtype=np.float32)

    def targets(
        self, label_probs: npt.NDArray[np.float32], weights: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Compute the targets of the cross-entropy and the weights of the losses.

        Args:
            label_probs: Label probability of each class for each document, float32 [n, classes].
            weights: Weights of the documents, float32 [n, 1].

        Returns:
            The targets, float32 [n, classes], and the weights of the losses, float32: [n, classes] for multilabel data,
            otherwise [n, 1].
        """
        class_weights, smoothing = self.class_weights(label_probs.shape[1]), np.float32(self.smoothing)
        if self.label_type == MULTILABEL:
            return (1 - smoothing) * label_probs + smoothing / 2, weights * class_weights
        return (1 - smoothing) * label_probs + smoothing / label_probs.shape[1], weights * (
            label_probs @ class_weights
        )[:, None]

    def gluon_loss(self, nd: Any, logits: Any, targets: Any, weights: Any) -> Any:
        """Compute the summed loss of a batch with ``mxnet.nd``.

        The method ``targets`` returns the arguments ``targets`` and ``weights``.
        """
        if self.label_type == MULTILABEL:
            losses = nd.relu(logits) - logits * targets + nd.Activation(-nd.abs(logits), act_type="softrelu")
        else:
            losses = -nd.log_softmax(logits) * targets
        return nd.broadcast_mul(losses, weights).sum()


DEFAULT_LOSS = Loss()


def create_loss(options: TrainingOptions, dataset: Dataset, config: NetworkConfig) -> Loss:
    """Create the loss that the settings specify for a data set.

    Raises:
        UserError: The class weights contain an unknown class, or the ratio of two weights is too large.
    """
    weights, smoothing = options.class_weights, options.label_smoothing
    smoothing = config.label_smoothing if smoothing is None else smoothing
    targets = dataset.splits["train"].targets
    label_format = targets.kind, targets.max_labels
    if weights == "none":
        return Loss(smoothing, (), *label_format)
    if weights == "balanced":
        class_weights = balanced_weights(dataset.class_counts())
    else:
        assert isinstance(weights, dict)
        unknown = set(weights) - set(dataset.classes)
        if unknown:
            raise UserError(
                f"training.class_weights names {', '.join(sorted(unknown))}, which is not a class of the data",
                f"the classes are {', '.join(dataset.classes)}"[:300],
                "spell the names as prepare shows them",
            )
        class_weights = tuple(weights.get(name, 1.0) for name in dataset.classes)
    lightest, heaviest = min(class_weights), max(class_weights)
    max_ratio = MAX_MULTILABEL_RATIO if targets.kind == MULTILABEL else MAX_RATIO
    if heaviest > max_ratio * lightest:
        light, heavy = (truncate(dataset.classes[class_weights.index(weight)]) for weight in (lightest, heaviest))
        raise UserError(
            f"the class weights are too far apart: {lightest:g} of {light} and {heaviest:g} of {heavy}",
            f"if one is more than {max_ratio:,} times another, the lighter class is hardly trained",
            "give closer weights by hand in training.class_weights; 100 times another is already a lot",
        )
    return Loss(smoothing, class_weights, *label_format)


def balanced_weights(counts: npt.NDArray[np.int64]) -> tuple[float, ...]:
    """Return class weights that give all classes equal influence. The mean weight of the documents is 1.

    The weight of a class is documents / (classes with documents × documents of the class). A class without documents
    has the weight 1, because it may still occur in soft labels.
    """
    weights = np.where(counts > 0, counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1)), 1)
    return tuple(weights.tolist())
