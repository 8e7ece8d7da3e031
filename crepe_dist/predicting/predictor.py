"""A checkpoint, ready to classify texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import BLANK, Codes, Encoding
from crepe_dist.data.loader import pack
from crepe_dist.distributed.device import pick
from crepe_dist.errors import UserError
from crepe_dist.model import parameters
from crepe_dist.model.engine import Engine, open_engine
from crepe_dist.model.precision import plan
from crepe_dist.predicting.occlusion import Explanation, occlude
from crepe_dist.predicting.prediction import Prediction
from crepe_dist.runs import checkpoint
from crepe_dist.settings.model_options import ModelOptions

BATCH_SIZE = 256
MAX_CODES = 1 << 22  # of a batch; longer documents come fewer at a time


@dataclass(frozen=True)
class Foreign:
    """What must be told about parameters that have no description beside them.

    Args:
        mode: encoding they were trained with; ``notebook`` for the notebook's.
        classes: names in the order of the outputs.
    """

    mode: str | None = None
    feature_len: int | None = None
    fold_accents: bool | None = None
    classes: tuple[str, ...] | None = None

    def __bool__(self) -> bool:
        return self != Foreign()


class Predictor:
    """Classifies texts; made by ``load``.

    Attributes:
        engine: batch → logits [B, classes].
        encoding: text → codes.
        classes: names in the order of the outputs.
    """

    def __init__(self, engine: Engine, encoding: Encoding, classes: list[str]) -> None:
        self.engine = engine
        self.encoding = encoding
        self.classes = classes
        engine.refresh()

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """One prediction a text, in the same order."""
        return list(self.predict_stream(iter(texts)))

    def predict_stream(self, texts: Iterator[str], batch_size: int = BATCH_SIZE) -> Iterator[Prediction]:
        """Predictions as the texts come, ``batch_size`` at a time."""
        batch_size = self._most(batch_size)
        while batch := list(islice(texts, batch_size)):
            codes = self.encoding.encode(batch)
            probabilities = mx.nd.softmax(self._logits(codes)).asnumpy()[: len(batch)]
            read = ((codes != BLANK) & (codes != self.encoding.alphabet.find(" "))).sum(axis=1)
            for row, known in zip(probabilities, read.tolist()):
                order = np.argsort(-row, kind="stable").tolist()
                ranking = tuple((self.classes[index], float(row[index])) for index in order)
                yield Prediction(*ranking[0], ranking, known)

    def explain(self, text: str, label: str | None = None) -> Explanation:
        """Which characters of a text speak for a class, and which against it.

        Found by occlusion (Zeiler & Fergus 2014, see ``explanation``): each character is made blank in turn, and each
        word, and its score is by how much that lowers the log-odds of the class. It takes the time of one
        classification for every character that is read and one for every word.

        Args:
            label: the class; ``None``: the one that the text is taken for.

        Raises:
            UserError: there is no such class.
        """
        if label is not None and label not in self.classes:
            raise UserError(
                f"there is no class {label!r}", f"there are {', '.join(self.classes)}"[:500], "name one of these"
            )
        (prediction,) = self.predict([text])
        label = prediction.label if label is None else label
        index, at_once = self.classes.index(label), self._most(BATCH_SIZE)
        read, scores, words = occlude(text, self.encoding, self._logits_of, at_once, index)
        return Explanation(text, label, prediction, read.start, read.stop, tuple(scores), tuple(words))

    def _logits_of(self, codes: Codes) -> npt.NDArray[np.float32]:
        """uint8 [n, feature_len] → float32 [n, classes]."""
        logits: npt.NDArray[np.float32] = self._logits(codes).asnumpy()
        return logits[: len(codes)]

    def _logits(self, codes: Codes) -> mx.nd.NDArray:
        """float32 [at least n, classes]; the rows behind the n-th are blank."""
        # The batch is filled up to a power of two, so that few shapes are ever compiled.
        rows = 1 << max(len(codes) - 1, 0).bit_length()
        return self.engine.logits(pack(codes, np.zeros(len(codes), dtype=np.int32), rows, len(codes)))

    def _most(self, batch_size: int) -> int:
        return max(1, min(batch_size, MAX_CODES // self.encoding.feature_len))


def load(
    checkpoint_or_run: str | Path | None = None,
    *,
    mode: str | None = None,
    feature_len: int | None = None,
    fold_accents: bool | None = None,
    classes: Sequence[str] | None = None,
    device: str = "auto",
) -> Predictor:
    """Opens a checkpoint.

    Args:
        checkpoint_or_run: a .params file, a run folder (its reported checkpoint), or ``None``: that of the newest run
            in ``runs/``.
        mode: encoding of parameters without a description beside them, such as ``notebook`` for the notebook's own; so
            are the next three.
        feature_len: characters a document; 1014 unless given.
        fold_accents: whether accents are folded; the default of the mode unless given.
        classes: names in the order of the outputs.
        device: auto, gpu or cpu.

    Raises:
        UserError: nothing to open, or what is told does not fit the parameters.
    """
    path = checkpoint.find(None if checkpoint_or_run is None else str(checkpoint_or_run))
    foreign = Foreign(mode, feature_len, fold_accents, tuple(classes) if classes is not None else None)
    return open_checkpoint(path, foreign, pick(device, 0, 1))


def open_checkpoint(path: Path, foreign: Foreign, device: Any) -> Predictor:
    """``load`` for a .params file and an MXNet device."""
    about = checkpoint.describe(path)
    arrays = parameters.load(path)
    if about is None:
        encoding, classes = _from_flags(path, foreign)
        network_about = None
    elif foreign:
        raise UserError(
            f"{path} describes itself",
            f"{path.with_suffix('.json').name} holds its mode, length and classes",
            "leave out --mode, --feature-len, --fold-accents and --classes",
        )
    else:
        encoding, classes, network_about = checkpoint.trained_as(path, about)
    shape = parameters.shape_of(arrays, len(encoding.alphabet), encoding.feature_len, network_about)
    if len(classes) != shape.classes:
        raise UserError(
            f"{path} has {shape.classes} outputs, but {len(classes)} classes were named",
            remedy="name one class an output, in the order of training",
        )
    # What was asked for in training; a precision that was only found, the device here may not have.
    in_float32 = network_about is not None and network_about.get("precision") == "float32"
    options = ModelOptions(precision="float32" if in_float32 else "auto")
    network = parameters.build(shape, options, device, seed=0)
    parameters.set_values(network, arrays)
    return Predictor(open_engine(network, plan(options, device, shape.multiplies), device), encoding, classes)


def _from_flags(path: Path, foreign: Foreign) -> tuple[Encoding, list[str]]:
    if foreign.mode is None or foreign.classes is None:
        raise UserError(
            f"{path} does not say how it was trained",
            f"there is no {path.with_suffix('.json').name} beside it",
            "give --mode (notebook for the notebook's own) and --classes, and --feature-len if it is not 1014",
        )
    length = 1014 if foreign.feature_len is None else foreign.feature_len
    encoding = Encoding(foreign.mode, length, foreign.fold_accents)  # type: ignore[arg-type]
    return encoding, list(foreign.classes)
