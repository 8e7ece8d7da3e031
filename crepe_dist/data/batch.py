"""A batch of encoded documents, packed into one array."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crepe_dist.data.char_encoder import PAD_UNK_ID, CharIds
from crepe_dist.data.dataset import UNIT_WEIGHT_BYTES, WEIGHT_BYTES, WEIGHT_SCALE
from crepe_dist.data.targets import PAIR_BYTES, PROB_SCALE, LabelProbs
from crepe_dist.native.constants import MULTIPLIER1, MULTIPLIER2

LABEL_BYTES = 2  # Size of the label in a packed row for single-label data, in bytes.
RowIndices = npt.NDArray[np.int64]  # Row numbers in a split.


def num_trailer_bytes(pairs: int) -> int:
    """Return the number of bytes after the character ids in a packed row.

    These bytes hold the label, or ``pairs`` pairs of a class and its label probability, and then the weight.
    """
    return (PAIR_BYTES * pairs or LABEL_BYTES) + WEIGHT_BYTES


class Batch(NamedTuple):
    """One rank's shard of a global batch. Blank rows of weight 0 pad it to the same size on every rank.

    All data is packed into one array, because copying an array to a GPU takes 0.1 ms.

    Attributes:
        packed: uint8 [B, L + num_trailer_bytes(pairs)]. B is the size of the largest shard of the global batch. If each
            document has one label, a row holds the L character ids, the label and the weight, L + 5 bytes. Otherwise,
            pairs of a class and its label probability replace the label, and a row has L + 4 · pairs + 3 bytes. The
            weight of padding is 0.
        labels: Labels of this rank's documents, int32 [n]. The documents are the first n rows of ``packed``.
        global_batch_size: Number of documents in the global batch, over all ranks.
        first: Position of this rank's first document in the global batch.
        rows: Row numbers of this rank's documents in their split, int64 [n]; empty if they do not come from a split.
        step: Number of the training step, counted from 1; 0 outside training.
        seed: Random seed of the step's dropout, a uint64 number.
    """

    packed: CharIds
    labels: npt.NDArray[np.int32]
    global_batch_size: int
    first: int = 0
    rows: RowIndices = np.zeros(0, np.int64)
    step: int = 0
    seed: int = 0

    def for_step(self, step: int, seed: int) -> "Batch":
        """Return this batch with the number of a training step.

        The dropout seed of the step is computed from the seed of the run.
        """
        return self._replace(step=step, seed=(seed * MULTIPLIER2 + (step - 1) * MULTIPLIER1) % 2**64)


def pack_batch(
    char_ids: CharIds,
    labels: npt.NDArray[np.int32],
    rows: int,
    global_batch_size: int,
    first: int = 0,
    weights: CharIds = UNIT_WEIGHT_BYTES,
    targets: CharIds | None = None,
) -> Batch:
    """Pack a rank's documents into a padded batch.

    Args:
        char_ids: Encoded documents, uint8 [n, L].
        labels: Labels of the documents, int32 [n].
        rows: Number of rows of the batch, at least n.
        global_batch_size: Number of documents in the global batch, over all ranks.
        first: Position of the first document in the global batch.
        weights: Weights of the documents in bytes, uint8 [n or 1, 3]; see ``Split.weight_bytes``.
        targets: Classes and label probabilities in bytes; see ``Targets.bytes``. ``None`` uses ``labels``.
    """
    count, length = char_ids.shape
    if targets is None:
        targets = labels.astype("<u2")[:, None].view(np.uint8)
    packed = np.empty((rows, length + targets.shape[1] + WEIGHT_BYTES), np.uint8)
    packed[:count, :length] = char_ids
    packed[count:, :length] = PAD_UNK_ID
    packed[:count, length:-WEIGHT_BYTES] = targets
    packed[:count, -WEIGHT_BYTES:] = weights
    packed[count:, length:] = 0
    return Batch(packed, labels, global_batch_size, first)


def unpack_batch(batch: Batch, classes: int, pairs: int = 0) -> tuple[CharIds, LabelProbs, npt.NDArray[np.float32]]:
    """Return the character ids, the label probabilities and the weights of a batch.

    Args:
        pairs: Number of pairs of a class and its label probability in a row; 0 if a row holds one label.

    Returns:
        Character ids, uint8 [B, L]; label probabilities, float32 [B, classes]; weights, float32 [B, 1].
    """
    char_ids, trailer = np.split(batch.packed, [-num_trailer_bytes(pairs)], axis=1)
    labels, weights = np.split(trailer.astype(np.float32), [-WEIGHT_BYTES], axis=1)
    labels = labels.reshape(len(labels), -1, PAIR_BYTES if pairs else LABEL_BYTES)
    pair_probs = (labels[..., 2] + 256 * labels[..., 3]) / PROB_SCALE if pairs else 1
    label_probs = np.zeros((len(labels), classes), np.float32)
    pair_classes = (labels[..., 0] + 256 * labels[..., 1]).astype(np.int32)
    np.add.at(label_probs, (np.arange(len(labels))[:, None], pair_classes), pair_probs)
    return char_ids, label_probs, weights @ np.array([[1 / WEIGHT_SCALE], [256 / WEIGHT_SCALE], [1]], np.float32)
