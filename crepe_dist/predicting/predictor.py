"""Predictor: a text classifier that ``crepe_dist.load`` loads from a checkpoint."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.char_encoder import CharEncoder, CharIds
from crepe_dist.data.label_types import to_label_type
from crepe_dist.data.text_preprocessing import EMPTY, TextPreprocessor
from crepe_dist.distributed.device import CPU, select_device
from crepe_dist.distributed.process_group import SAME_MACHINES_HINT, SINGLE_PROCESS, ProcessGroup
from crepe_dist.errors import UserError
from crepe_dist.files.folders import temporary_folder
from crepe_dist.files.json_file import write_json
from crepe_dist.files.safe_read import read_bytes, sha256
from crepe_dist.formatting import excerpt, percent, pluralize, score_name
from crepe_dist.model import weights_io
from crepe_dist.model.backend import choose_for_inference, is_gpu_build
from crepe_dist.model.calibration import UNCALIBRATED, Calibration, softmax
from crepe_dist.model.inference import InferenceEngine, Logits
from crepe_dist.predicting.input_reader import extract_texts, model_columns
from crepe_dist.predicting.occlusion import Explanation, occlude
from crepe_dist.predicting.prediction import NO_KNOWN_CHARACTERS, Prediction
from crepe_dist.preparing.sources import ReadOptions
from crepe_dist.runs import checkpoint
from crepe_dist.runs.scores import Floats
from crepe_dist.sealed_json import damaged_error
from crepe_dist.settings.options import Precision

AUTO = "auto"
DEFAULT_PREPROCESSOR = TextPreprocessor()
BATCH_SIZE = 256  # Maximum number of texts in a batch.
WINDOWED_BATCH_SIZE = 16  # Number of texts in a batch if long texts are divided into windows.
MAX_BATCH_CHARACTERS = 1 << 22  # Maximum number of characters in a batch. It bounds memory for long documents.
MAX_SHOWN_CLASSES = 5  # Number of class names in ``repr``.
MAX_CHECKPOINT_BYTES = 1 << 34  # Maximum size of a checkpoint file.
CPU_NAME = "cpu"  # Value of the option ``device``.
# Weight of a window without known characters. It is not 0, so that the mean over such windows is defined.
MIN_WINDOW_WEIGHT = 1e-6


@dataclass(eq=False, repr=False)
class Predictor:
    """Text classifier that ``load`` loads from a checkpoint.

    Attributes:
        engine: Engine that computes logits. It holds the parameters and the configuration of the network.
        encoding: Encoder of texts as character ids.
        classes: Class names in the order of the outputs.
        calibration: Temperature of the probabilities, and the model's own threshold.
        min_probability: Threshold, 0 to 1. Predictions with a lower probability are ``rejected``.
        id: Name of the id column in the training data. ``None`` if the training data had no ids.
        thresholds: Minimum probability of each label, float64 [classes], for multilabel models. ``None`` for
            single-label models.
        composition: Preprocessing of the training texts. ``predict`` and ``explain`` preprocess texts in the same way.
        precision: float32 if training requested it. Otherwise the device determines the precision.
        path: Weights file.
        metadata: Metadata of the checkpoint. Empty for external weights.
        label_type: Type of the labels in the training data frame, one of ``LABEL_TYPES``. An empty string means text.
    """

    engine: InferenceEngine
    encoding: CharEncoder
    classes: list[str]
    calibration: Calibration = UNCALIBRATED
    min_probability: float = 0.0
    thresholds: Floats | None = None
    id: str | None = None
    composition: TextPreprocessor = DEFAULT_PREPROCESSOR
    precision: Precision = "auto"
    path: Path = Path()
    metadata: dict[str, Any] = field(default_factory=dict)
    label_type: str = ""

    def __repr__(self) -> str:
        classes = f"{pluralize(len(self.classes), 'class', 'classes')}: {', '.join(self.classes[:MAX_SHOWN_CLASSES])}"
        classes += ", …" * (len(self.classes) > MAX_SHOWN_CLASSES)
        accuracy = self.metadata.get("test_accuracy")
        score = "" if accuracy is None else f"; test {self.score_name} {percent(accuracy)}"
        return f"<Predictor of {excerpt(classes)}{score}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # The engine holds memory of the native kernels, which cannot be pickled. The pickle therefore contains the
        # files of the model, which are validated when the pickle is loaded.
        state = {name: getattr(self, name) for name in ("min_probability", "thresholds", "path")}
        device = AUTO if is_gpu_build(self.engine.backend.build_name) else CPU_NAME
        return _unpickled, (self.files(), device, self.engine.threads, state)

    @property
    def classes_(self) -> npt.NDArray[Any]:
        """Classes in the order of the outputs, [classes]. They have the same type as the training labels."""
        return np.array(to_label_type(self.classes, self.label_type))

    @property
    def is_multilabel(self) -> bool:
        """True if the model predicts any number of labels per text instead of exactly one class."""
        return self.thresholds is not None

    @property
    def score_name(self) -> str:
        """Name of the metric in the metadata entry ``test_accuracy``: accuracy, or micro F1 for a multilabel model."""
        return score_name(self.is_multilabel)

    @property
    def trained_on(self) -> str:
        """Name of the training data set. Empty if it is unknown."""
        return str(self.metadata.get("data", {}).get("name", ""))

    @property
    def kernels(self) -> str:
        """Build name and precision of the kernels."""
        return f"{self.engine.backend.build_name}, {self.engine.backend.precision}"

    @property
    def reading(self) -> ReadOptions:
        """Options that the training data were read with, or default options if the metadata lacks them.

        Raises:
            UserError: The metadata are damaged.
        """
        if (saved := self.metadata.get("reading")) is None:
            return ReadOptions()
        try:
            return ReadOptions.from_dict(saved)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged_error(self.path.with_suffix(".json"), error, checkpoint.OTHER_CHECKPOINT_HINT) from error

    def to(self, device: str, group: ProcessGroup = SINGLE_PROCESS) -> "Predictor":
        """Return a copy of this predictor on a GPU, or this predictor itself for the CPU. Every rank must call this.

        Args:
            device: ``auto``, ``gpu`` or ``cpu``. The device is selected in the same way as for training.
            group: Process group.

        Raises:
            UserError: There is no such device, or the GPU cannot be used.
        """
        config, arrays = self.engine.config, self.engine.parameters
        selected = select_device(device, lambda gpu: choose_for_inference(config, self.precision, gpu), group)
        if selected == CPU:
            return self
        from crepe_dist.engines.gpu_inference import GpuInferenceEngine

        backend = choose_for_inference(config, self.precision, selected)
        engine = group.run_on_all(
            "engine", lambda: GpuInferenceEngine(config, arrays, backend, selected), mismatch_hint=SAME_MACHINES_HINT
        )
        return replace(self, engine=engine)

    def logits(self, char_ids: CharIds) -> Logits:
        """Compute calibrated logits: uint8 [n, feature_len] → float32 [n, classes].

        Raises:
            UserError: The logits are not finite.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            logits = self.engine.logits(char_ids) / np.float32(self.calibration.temperature)
        check_finite(logits)
        return np.asarray(logits)

    def probabilities(self, logits: Logits) -> Logits:
        """Compute the probabilities of calibrated logits, float32 [n, classes]."""
        if self.thresholds is None:
            return np.asarray(softmax(logits))
        # This is the sigmoid function, computed with logaddexp so that it does not overflow.
        return np.asarray(np.exp(-np.logaddexp(np.float32(0), -logits)))

    def predict(self, texts: Iterable[str], *, windows: bool = False) -> list[Prediction]:
        """Classify texts. Return one prediction per text, in the order of the texts.

        If a text contains no known character, for example if it is empty, its prediction has an ``error``.

        Args:
            texts: A list or another iterable of texts, an array, a series, or a table: a data frame, or a mapping of
                column names to columns. The text columns of a table are selected in the same way as the text columns
                of ``crepe predict --file``.
            windows: Read a long text completely, in overlapping windows. The prediction is computed from the mean of
                the windows' logits, weighted by the number of known characters in each window.

        Raises:
            UserError: A text is not a string, or ``texts`` has another type, such as a single string.
        """
        predictions = self._predict_rows(texts, windows)
        if not self.label_type:
            return list(predictions)
        labels: dict[str, Any] = dict(zip(self.classes, to_label_type(self.classes, self.label_type)))
        return [
            prediction._replace(
                label=labels[prediction.label],
                ranking=tuple([(labels[name], probability) for name, probability in prediction.ranking]),
                labels=None if prediction.labels is None else tuple([labels[name] for name in prediction.labels]),
            )
            for prediction in predictions
        ]

    def predict_proba(self, texts: Iterable[str], *, windows: bool = False) -> npt.NDArray[np.float64]:
        """Return the probability of each of ``classes_`` for each text, float64 [n, classes]; see ``predict``.

        If a text cannot be classified, its row contains NaN. The probabilities of a multilabel model do not sum to 1.
        """
        rows = [
            np.full(len(self.classes), np.nan)
            if prediction.error
            else list(map(dict(prediction.ranking).get, self.classes))
            for prediction in self._predict_rows(texts, windows)
        ]
        return np.array(rows, np.float64).reshape(-1, len(self.classes))

    def _predict_rows(self, texts: Iterable[str], windows: bool) -> Iterator[Prediction]:
        return self.predict_stream(iter(extract_texts(texts, model_columns(self.composition))), windows)

    def predict_stream(self, texts: Iterator[str], windows: bool = False) -> Iterator[Prediction]:
        """Classify texts lazily, one batch at a time. Yield one prediction per text, in the order of the texts.

        Args:
            texts: Texts.
            windows: See ``predict``.
        """
        while rows := list(islice(texts, WINDOWED_BATCH_SIZE if windows else self._max_batch_size(BATCH_SIZE))):
            batch = list(map(self.composition.text, rows))
            if windows:
                logits, num_known = self._logits_of_windows(batch)
                lengths = np.zeros(len(batch), np.int64)
            else:
                char_ids, lengths = self.encoding.encode_and_measure(batch)
                logits, num_known = self.logits(char_ids), self.count_known(char_ids)
            probabilities = self.probabilities(logits)
            orders = np.argsort(-probabilities, axis=1, kind="stable").tolist()
            is_long = (lengths > self.encoding.feature_len).tolist()
            results = zip(batch, probabilities.tolist(), orders, num_known.tolist(), is_long)
            for text, row, order, characters_read, is_truncated in results:
                ranking = tuple([(self.classes[index], row[index]) for index in order])
                error = EMPTY if not text.strip() else "" if characters_read else NO_KNOWN_CHARACTERS
                characters_read = 0 if error else characters_read
                rejected = ranking[0][1] < self.min_probability
                labels = None
                if self.thresholds is not None:
                    labels = tuple([self.classes[index] for index in order if row[index] >= self.thresholds[index]])
                truncated = len(self.encoding.truncated_range(text)) if is_truncated else 0
                yield Prediction(*ranking[0], ranking, characters_read, error, rejected, labels, truncated)

    def _logits_of_windows(self, texts: list[str]) -> tuple[Logits, npt.NDArray[np.int64]]:
        """Return the mean logits of the windows of each text, and the number of known characters of each text.

        The mean is weighted by the number of known characters per window, because a window of blanks or unknown
        characters carries no information.
        """
        whole_texts, windows = zip(*map(self.encoding.windows, texts))
        counts, char_ids = np.array(list(map(len, windows))), np.concatenate(windows)
        size = self._max_batch_size(BATCH_SIZE)
        batches = [self.logits(char_ids[start : start + size]) for start in range(0, len(char_ids), size)]
        logits, starts = np.concatenate(batches), np.cumsum(counts) - counts
        weights = np.maximum(self.count_known(char_ids), MIN_WINDOW_WEIGHT)[:, None]
        means = np.add.reduceat(logits * weights, starts) / np.add.reduceat(weights, starts)
        return means.astype(np.float32), np.array(list(map(self.count_known, whole_texts)))

    def count_known(self, char_ids: CharIds) -> npt.NDArray[np.int64]:
        """Count the known characters, without spaces, in character ids, uint8 […, n]."""
        return np.asarray(
            (self.encoding.starts_character(char_ids) & (char_ids != self.encoding.alphabet.find(" "))).sum(axis=-1)
        )

    def score(self, table: Any, label: str | None = None, label_columns: Sequence[str] = ()) -> float:
        """Return the accuracy on labelled texts, 0 to 1, or the micro F1 of a multilabel model.

        Rows are not scored if the text or the label is missing, or if the label is not a class of the model. A warning
        reports the number of these rows. ``crepe evaluate`` handles these rows in the same way.

        Args:
            table: Data frame, or mapping of column names to lists. It has the text columns of the training data.
            label, label_columns: Label column, or one column per class. Default: the columns of the training data.

        Raises:
            UserError: The columns cannot be selected, or no row can be scored.
        """
        # This import is slow: it loads all modules that prepare data sets.
        from crepe_dist.predicting.labelled import accuracy

        return accuracy(self, table, label, label_columns)

    def save(self, folder: str | Path) -> None:
        """Write a model folder, which ``load`` and the commands can open. Files with the same names are replaced."""
        path = Path(folder) / weights_io.MODEL_FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be created: {error.strerror}", remedy="choose another folder") from error
        weights_io.write_safetensors(weights_io.to_file_arrays(self.engine.arrays, type(self.engine.config)), path)
        self.write_metadata(path)

    def files(self) -> dict[str, bytes]:
        """Return the names and contents of the files of the model folder."""
        with temporary_folder() as folder:
            self.save(folder)
            return {path.name: read_bytes(path, MAX_CHECKPOINT_BYTES) for path in folder.glob("model.*")}

    def write_metadata(self, path: Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Write the metadata file next to a weights file.

        Args:
            path: Weights file. The metadata file has the same name with the suffix ``.json``.
            metadata: Metadata of the checkpoint. If it is ``None``, ``self.metadata`` is used. The entries for the
                encoder, the classes, the network and the calibration are replaced with the values of this predictor.
        """
        metadata = self.metadata if metadata is None else metadata
        network = {**metadata.get("network", {}), **self.engine.config.settings()}
        written = {**metadata, "encoding": self.encoding.to_dict(), "classes": self.classes, "network": network}
        written |= {"calibration": self.calibration.to_dict()}
        write_json(path.with_suffix(".json"), {**written, "format": checkpoint.FORMAT, "sha256": sha256(path)})

    def index(self, label: Any) -> int:
        """Return the index of a class.

        Raises:
            UserError: The model has no such class.
        """
        if self.label_type and not isinstance(label, str):
            labels = to_label_type(self.classes, self.label_type)
            label = self.classes[labels.index(label)] if label in labels else str(label)
        if label not in self.classes:
            why = f"the classes are {', '.join(self.classes)}"[:500]
            raise UserError(f"there is no class {label!r:.80}", why, "name one of them")
        return self.classes.index(label)

    def explain(self, text: str, label: Any = None) -> Explanation:
        """Score the evidence in a text for and against a class by occlusion (see ``predicting.occlusion``).

        Each character and each word is replaced with blanks, one at a time. The resulting drop in the log-odds of the
        class is its score. The cost is one forward pass per character that the network reads, and one per word.

        Args:
            text: Text.
            label: Class to explain. If it is ``None``, the most probable class is explained. ``Explanation.label`` is
                always a string.

        Raises:
            UserError: The model has no such class.
        """
        requested = None if label is None else self.index(label)
        (prediction,), text = self.predict_stream(iter([text])), self.composition.text(text)
        index = self.index(prediction.label) if requested is None else requested
        label = self.classes[index]
        logits = self.logits if self.thresholds is None else partial(self._binary_logits, index)
        index = index if self.thresholds is None else 0
        scores, words = occlude(text, self.encoding, logits, self._max_batch_size(BATCH_SIZE), index)
        truncated = self.encoding.truncated_range(text)
        return Explanation(text, label, prediction, truncated, tuple(scores), tuple(words))

    def _binary_logits(self, index: int, char_ids: CharIds) -> Logits:
        """Return logits for the presence and the absence of a label, float32 [n, 2]. The logit of absence is 0."""
        logits = self.engine.logits(char_ids)[:, index]
        return np.stack([logits, np.zeros_like(logits)], axis=1)

    def _max_batch_size(self, batch_size: int) -> int:
        return max(1, min(batch_size, MAX_BATCH_CHARACTERS // self.encoding.feature_len))


# Pickles refer to this function by its qualified name, so its name and its arguments must not change.
def _unpickled(files: Mapping[str, bytes], device: str, threads: int, state: Mapping[str, Any]) -> Predictor:
    from crepe_dist.predicting.loading import open_files  # That module imports this one.

    predictor = replace(open_files(files, device), **state)
    predictor.engine.threads = threads
    return predictor


def check_finite(values: npt.ArrayLike) -> None:
    """Raise ``UserError`` unless all values, which are logits or a loss, are finite."""
    if not np.isfinite(values).all():
        raise UserError(
            "the network returned NaN or infinity", "its parameters are too large", "choose another checkpoint"
        )
