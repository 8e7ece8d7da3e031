"""Predictor: a checkpoint that is ready to classify texts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.char_encoder import CharEncoder, CharIds
from crepe_dist.data.label_hierarchy import LabelHierarchy
from crepe_dist.data.label_types import to_label_type
from crepe_dist.data.text_preprocessing import TextPreprocessor, strip_field_separators
from crepe_dist.distributed.device import CPU, select_device
from crepe_dist.distributed.process_group import SAME_MACHINES_HINT, SINGLE_PROCESS, ProcessGroup
from crepe_dist.errors import UserError
from crepe_dist.files.folders import temporary_folder
from crepe_dist.files.json_file import write_json
from crepe_dist.files.safe_read import read_bytes, sha256
from crepe_dist.formatting import excerpt, join_words, percent, pluralize, score_name
from crepe_dist.model import weights_io
from crepe_dist.model.backend import choose_for_inference, is_gpu_build
from crepe_dist.model.calibration import UNCALIBRATED, Calibration, softmax
from crepe_dist.model.inference import InferenceEngine, Logits, open_inference
from crepe_dist.predicting.input_reader import extract_texts, model_columns
from crepe_dist.predicting.occlusion import Explanation, occlude
from crepe_dist.predicting.prediction import UNKNOWN, Prediction
from crepe_dist.preparing.dataframe_source import is_table
from crepe_dist.preparing.sources import ReadOptions
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.runs.scores import Floats
from crepe_dist.sealed_json import damaged_error
from crepe_dist.settings.options import Precision

AUTO = "auto"
PLAIN = TextPreprocessor()
BATCH_SIZE = 256
MAX_SHOWN = 5  # classes in ``repr``
MAX_CHECKPOINT_BYTES = 1 << 34  # bytes of a checkpoint's file
CPU_NAME = "cpu"  # as an option
PARAMETER_FILES = (".params", weights_io.SAFETENSORS)
WINDOWED = 16  # texts in a batch that are read in windows
NOTHING = 1e-6  # known characters of a window that has none, so that a text of such windows has a mean, too
MAX_CODES = 1 << 22  # characters in a batch; it limits the number of long documents in one batch


@dataclass(eq=False, repr=False)
class Predictor:
    """Classifier of texts, made by ``load``.

    Attributes:
        engine: computes logits; has the parameters and the shape of the network.
        encoding: converts texts to codes.
        classes: class names in the order of the outputs.
        calibration: temperature of the probabilities, and the model's own threshold.
        min_probability: threshold below which predictions are ``rejected``, 0 to 1.
        id: name of the column of ids in the data that it was trained on; ``None`` if they had none.
        thresholds: probability from which a text has the label, float64 [classes], if the model gives several labels;
            ``None`` if it gives one class.
        composition: composition of the texts that it was trained on; ``predict`` and ``explain`` strip HTML as it says.
        precision: float32 if that was requested in training; any other precision depends on the device.
        path: file of the parameters.
        about: description of the parameters; empty for those of another program.
        label_type: type of the labels of the table that it was trained on, one of ``LABEL_TYPES``; empty: text.
        sure: if the classes form a tree, probability from which a node of each level, and a class, is an answer; empty:
            the most probable class is.
    """

    engine: InferenceEngine
    encoding: CharEncoder
    classes: list[str]
    calibration: Calibration = UNCALIBRATED
    min_probability: float = 0.0
    thresholds: Floats | None = None
    id: str | None = None
    composition: TextPreprocessor = PLAIN
    precision: Precision = "auto"
    path: Path = Path()
    metadata: dict[str, Any] = field(default_factory=dict)
    level_thresholds: tuple[float, ...] = ()
    label_type: str = ""

    def __repr__(self) -> str:
        classes = f"{pluralize(len(self.classes), 'class', 'classes')}: {', '.join(self.classes[:MAX_SHOWN])}"
        classes += ", …" * (len(self.classes) > MAX_SHOWN)
        accuracy = self.metadata.get("test_accuracy")
        scored = "" if accuracy is None else f"; test {self.score_name} {percent(accuracy)}"
        return f"<Predictor of {excerpt(classes)}{scored}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # The engine holds memory of the kernels. So a pickle has the files of the model, which are checked when read.
        state = {name: getattr(self, name) for name in ("min_probability", "thresholds", "sure", "path")}
        device = AUTO if is_gpu_build(self.engine.backend.build_name) else CPU_NAME
        return _unpickled, (self.files(), device, self.engine.threads, state)

    @property
    def classes_(self) -> npt.NDArray[Any]:
        """The classes in the order of the outputs, of the type of the labels of the training, [classes]."""
        return np.array(to_label_type(self.classes, self.label_type))

    @property
    def is_multilabel(self) -> bool:
        """Tell whether the model gives several labels."""
        return self.thresholds is not None

    @property
    def score_name(self) -> str:
        """Name of the score that its description calls test accuracy."""
        return score_name(self.is_multilabel)

    @property
    def trained_on(self) -> str:
        """Name of the data set that it was trained on; empty if unknown."""
        return str(self.metadata.get("data", {}).get("name", ""))

    @property
    def kernels(self) -> str:
        """Implementation of the kernels, and their precision."""
        return f"{self.engine.backend.build_name}, {self.engine.backend.precision}"

    @property
    def levels(self) -> LabelHierarchy | None:
        """Levels of the classes, if these form a tree."""
        return LabelHierarchy(self.metadata["levels"], tuple(self.classes)) if self.metadata.get("levels") else None

    @property
    def reading(self) -> ReadOptions:
        """Options that the data of the model were read with; the defaults if the description lacks them.

        Raises:
            UserError: the description is damaged.
        """
        if (saved := self.metadata.get("reading")) is None:
            return ReadOptions()
        try:
            return ReadOptions.from_dict(saved)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged_error(self.path.with_suffix(".json"), error, checkpoint.OTHER_CHECKPOINT_HINT) from error

    def to(self, device: str, ranks: ProcessGroup = SINGLE_PROCESS) -> Predictor:
        """Return the predictor on the CPU or a GPU, which ``device`` chooses as for training; all ranks call it.

        Raises:
            UserError: as ``device.select_device`` raises it, or the GPU cannot be used.
        """
        shape, arrays = self.engine.config, self.engine.parameters
        picked = select_device(device, lambda gpu: choose_for_inference(shape, self.precision, gpu), ranks)
        if picked == CPU:
            return self
        from crepe_dist.engines.gpu_inference import GpuInferenceEngine

        chosen = choose_for_inference(shape, self.precision, picked)
        opened = ranks.run_on_all(
            "engine", lambda: GpuInferenceEngine(shape, arrays, chosen, picked), mismatch_hint=SAME_MACHINES_HINT
        )
        return replace(self, engine=opened)

    def logits(self, codes: CharIds) -> Logits:
        """Compute the logits of the calibrated probabilities: uint8 [n, feature_len] → float32 [n, classes].

        Raises:
            UserError: they are not finite.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            logits = self.engine.logits(codes) / np.float32(self.calibration.temperature)
        check_finite(logits)
        return np.asarray(logits)

    def probabilities(self, logits: Logits) -> Logits:
        """Compute the probabilities of calibrated logits, float32 [n, classes]."""
        if self.thresholds is None:
            return np.asarray(softmax(logits))
        return np.asarray(np.exp(-np.logaddexp(np.float32(0), -logits)))  # of independent classes

    def predict(self, texts: Iterable[str], *, windows: bool = False) -> list[Prediction]:
        """Classify texts; return one prediction per text, in order.

        That of a text of which the network knows no character, such as an empty one, has a ``problem``.

        Args:
            texts: a list or another iterable of texts, an array, a series, or a table: a data frame, or a mapping of
                names to columns. The columns of a table are chosen as ``crepe predict --file`` chooses those of a file.
            windows: read the whole of a long text in windows. The prediction is made from the mean of their logits,
                weighted by the number of known characters in each window.

        Raises:
            UserError: a text is not a string, or ``texts`` is something else, such as one string.
        """
        found = self._predict_rows(texts, windows)
        if not self.label_type:
            return list(found)
        labels: dict[str, Any] = dict(zip(self.classes, to_label_type(self.classes, self.label_type)))
        return [
            each._replace(
                label=labels.get(each.label, each.label),  # a node above the classes keeps its name
                ranking=tuple([(labels[name], share) for name, share in each.ranking]),
                labels=None if each.labels is None else tuple([labels[name] for name in each.labels]),
            )
            for each in found
        ]

    def predict_proba(self, texts: Iterable[str], *, windows: bool = False) -> npt.NDArray[np.float64]:
        """Return the probability of each of ``classes_`` for each text, float64 [n, classes]; see ``predict``.

        The row of a text that cannot be classified is NaN. Probabilities of several labels do not sum to 1.
        """
        rows = [
            np.full(len(self.classes), np.nan) if each.problem else list(map(dict(each.ranking).get, self.classes))
            for each in self._predict_rows(texts, windows)
        ]
        return np.array(rows, np.float64).reshape(-1, len(self.classes))

    def _predict_rows(self, texts: Iterable[str], windows: bool) -> Iterator[Prediction]:
        rows = extract_texts(texts, model_columns(self.composition))
        return self.predict_stream(iter(rows if is_table(texts) else map(strip_field_separators, rows)), windows)

    def predict_stream(self, texts: Iterator[str], windows: bool = False) -> Iterator[Prediction]:
        """Classify texts lazily, some at a time, as ``predict``; yield one prediction per text, in order.

        A text may have the values of columns beside it, as ``with_values`` appends them.
        """
        levels = self.levels if self.level_thresholds else None
        while rows := list(islice(texts, WINDOWED if windows else self._capped(BATCH_SIZE))):
            pairs = list(map(self.composition.read, rows))
            batch = [text for text, _ in pairs]
            if windows:
                logits, read = self._in_windows(batch)
            else:
                codes = self.encoding.encode(batch)
                logits, read = self.logits(codes), self.count_known(codes)
            read = self.without_values(read, batch).tolist()
            probabilities = self.probabilities(logits)
            sure = levels.predict_confident(probabilities, self.level_thresholds) if levels else repeat(None)
            orders = np.argsort(-probabilities, axis=1, kind="stable").tolist()
            answers = zip(pairs, probabilities.tolist(), orders, read, sure)
            for (text, problem), row, order, known, node in answers:
                ranking = tuple([(self.classes[index], row[index]) for index in order])
                problem = problem or ("" if known else UNKNOWN)
                known = 0 if problem else known
                best, rejected = ranking[0], ranking[0][1] < self.min_probability
                if node is not None:
                    best, rejected = node[1:] if node[0] else best, node[0] == 0
                labels = None
                if self.thresholds is not None:
                    labels = tuple([self.classes[index] for index in order if row[index] >= self.thresholds[index]])
                cut = 0 if windows else len(self.encoding.truncated_range(text))
                yield Prediction(*best, ranking, known, problem, rejected, labels, cut)

    def _in_windows(self, texts: list[str]) -> tuple[Logits, npt.NDArray[np.int64]]:
        """Return the weighted mean of the logits of each text's windows, and the number of its known characters.

        Windows are weighted by their known characters, because one of blanks or unknown characters tells nothing.
        """
        whole, parts = zip(*map(self.encoding.windows, texts))
        counts, codes, size = np.array(list(map(len, parts))), np.concatenate(parts), self._capped(BATCH_SIZE)
        logits = np.concatenate([self.logits(codes[start : start + size]) for start in range(0, len(codes), size)])
        starts, weights = np.cumsum(counts) - counts, np.maximum(self.count_known(codes), NOTHING)[:, None]
        means = np.add.reduceat(logits * weights, starts) / np.add.reduceat(weights, starts)
        return means.astype(np.float32), np.array(list(map(self.count_known, whole)))

    def count_known(self, codes: CharIds) -> npt.NDArray[np.int64]:
        """Count the known characters, without spaces, of codes, uint8 […, n]."""
        return np.asarray(
            (self.encoding.starts_character(codes) & (codes != self.encoding.alphabet.find(" "))).sum(axis=-1)
        )

    def without_values(self, known: npt.NDArray[np.int64], texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Subtract the values of columns at the ends of composed texts from the numbers of known characters."""
        if not self.composition.beside:
            return known
        counts = np.array([self.encoding.count_unknown(self.composition.value_characters(text)) for text in texts])
        return np.asarray(np.maximum(known + counts[:, 0] - counts[:, 1], 0))

    def score(self, table: Any, label: str | None = None, label_columns: Sequence[str] = ()) -> float:
        """Return the accuracy on labelled texts, from 0 to 1; the micro F1 if the model gives several labels.

        Rows without a text or a label, and rows with a label that the model does not know, are left out, as by
        ``crepe evaluate``. A warning counts them.

        Args:
            table: data frame, or mapping of names to lists. The columns of the text are those of the training.
            label, label_columns: column of the label, or columns of the classes; by default those of the training.

        Raises:
            UserError: the columns cannot be chosen, or no row can be scored.
        """
        from crepe_dist.predicting.labelled import accuracy  # imports what prepares data sets

        return accuracy(self, table, label, label_columns)

    def save(self, folder: str | Path) -> None:
        """Write a model folder, which ``load`` and the commands open; files of the same names are replaced."""
        path = Path(folder) / weights_io.MODEL_FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be made: {error.strerror}", remedy="choose another name") from error
        weights_io.write_safetensors(weights_io.to_file_arrays(self.engine.arrays, type(self.engine.config)), path)
        self.describe(path)

    def files(self) -> dict[str, bytes]:
        """Return the files of its model folder: names and contents."""
        with temporary_folder() as folder:
            self.save(folder)
            return {path.name: read_bytes(path, MAX_CHECKPOINT_BYTES) for path in folder.glob("model.*")}

    def describe(self, path: Path, about: Mapping[str, Any] | None = None) -> None:
        """Write the description of a parameter file beside it, from the predictor's own and the checkpoint's."""
        about = self.metadata if about is None else about
        network = {**about.get("network", {}), **self.engine.config.settings()}
        description = {**about, "encoding": self.encoding.to_dict(), "classes": self.classes, "network": network}
        description |= {"calibration": self.calibration.to_dict()}
        write_json(path.with_suffix(".json"), {**description, "format": checkpoint.FORMAT, "sha256": sha256(path)})

    def index(self, label: Any) -> int:
        """Return the position of a class; raise ``UserError`` if the model does not know it."""
        if self.label_type and not isinstance(label, str):
            labels = to_label_type(self.classes, self.label_type)
            label = self.classes[labels.index(label)] if label in labels else str(label)
        if label not in self.classes:
            why = f"the classes are {', '.join(self.classes)}"[:500]
            raise UserError(f"there is no class {label!r:.80}", why, "name one of them")
        return self.classes.index(label)

    def explain(self, text: str, label: Any = None) -> Explanation:
        """Find the evidence in a text for and against a class by occlusion (see ``predicting.occlusion``).

        Each character, and each word, is replaced by a blank; its score is the drop in the log-odds of the class. The
        cost is one forward pass per character that is read, and one per word.

        Args:
            label: class to explain; ``None`` for the predicted class. The explanation has its name, a text.

        Raises:
            UserError: the model has no such class.
        """
        given = None if label is None else self.index(label)
        (prediction,), text = self.predict_stream(iter([text])), self.composition.text(text)
        index = self.index(prediction.ranking[0][0]) if given is None else given  # the label may be a node above
        label = self.classes[index]
        logits = self.logits if self.thresholds is None else partial(self._against_its_absence, index)
        index = index if self.thresholds is None else 0
        scores, words = occlude(text, self.encoding, logits, self._capped(BATCH_SIZE), index)
        explanation = Explanation(
            text, label, prediction, self.encoding.truncated_range(text), tuple(scores), tuple(words)
        )
        return (
            explanation.with_display_text(self.composition.describe_character)
            if self.composition.beside
            else explanation
        )

    def _against_its_absence(self, index: int, codes: CharIds) -> Logits:
        """Return the logits of one of several labels, and of its absence, float32 [n, 2]."""
        logits = self.engine.logits(codes)[:, index]
        return np.stack([logits, np.zeros_like(logits)], axis=1)

    def _capped(self, batch_size: int) -> int:
        return max(1, min(batch_size, MAX_CODES // self.encoding.feature_len))


def open_files(files: Mapping[str, bytes], device: str) -> Predictor:
    """Open a checkpoint, given the names and contents of its two files."""
    with temporary_folder() as folder:
        for name, content in files.items():
            (folder / Path(name).name).write_bytes(content)
        return load(next(path for path in folder.iterdir() if path.suffix in PARAMETER_FILES), device=device)


def _unpickled(files: Mapping[str, bytes], device: str, threads: int, state: Mapping[str, Any]) -> Predictor:
    predictor = replace(open_files(files, device), **state)
    predictor.engine.threads = threads
    return predictor


def check_finite(answer: npt.ArrayLike) -> None:
    """Raise ``UserError`` unless logits, or a loss, are finite."""
    if not np.isfinite(answer).all():
        raise UserError(
            "the network returned NaN or infinity", "its parameters are too large", "choose another checkpoint"
        )


def load(
    checkpoint_or_run: str | Path | None = None,
    *,
    mode: str | None = None,
    feature_len: int | None = None,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    min_probability: float | str = 0.0,
    min_precision: float | None = None,
    threads: int | None = None,
) -> Predictor:
    """Open a checkpoint.

    Args:
        checkpoint_or_run: a .params file, a run folder (for its reported checkpoint), or a model folder or its URL;
            ``None`` for the model that ``crepe use`` has chosen, else the newest run in ``runs/``, if all runs are of
            the same data.
        mode: encoding of parameters without a ``.json`` file, such as ``notebook`` for those of the original notebook.
            This and the next two arguments are only for such parameters.
        feature_len: number of characters that the network reads; 1014 unless given.
        classes: class names in the order of the outputs.
        device: ``auto``, ``gpu`` or ``cpu``.
        min_probability: threshold below which predictions are ``rejected``, 0 to 1; ``auto`` for the model's own, which
            95 % of its validation texts reach.
        min_precision: share of right answers among those that are not ``rejected``, 0 to 1, which sets the threshold by
            the validation texts, or that of each of several labels; ``None``: none.
        threads: most threads of a call, which calls at the same time divide; ``None``: one per core.

    Raises:
        UserError: there is no checkpoint, or the description does not fit the parameters.
    """
    path = checkpoint.resolve_model(None if checkpoint_or_run is None else str(checkpoint_or_run))
    predictor = open_checkpoint(path, mode, feature_len, classes).to(device)
    if min_precision is not None and min_probability:
        raise UserError("--min-probability and --min-precision exclude each other", remedy="leave one of them out")
    if predictor.is_multilabel and min_probability:
        remedy = "leave --min-probability out, or give --min-precision"
        raise UserError(f"{path} gives labels, each with a threshold of its own", remedy=remedy)
    if min_precision is not None:
        if not 0 <= min_precision <= 1:
            raise UserError(f"the precision {min_precision!r:.40} is not a share", remedy="give a number from 0 to 1")
        found = predictor.calibration.thresholds_for(min_precision)
        if predictor.is_multilabel:
            predictor.thresholds = np.minimum(found, 2)  # which no probability reaches
            if silent := [name for name, least in zip(predictor.classes, found) if least > 1]:
                what = f"{len(silent):,} of {len(found):,} classes are never so sure, and never answer"
                warnings.warn(f"{what}: {excerpt(join_words(silent))}", stacklevel=2)
        elif len(found) > 1:  # a class may have no such threshold, and a node have one
            predictor.level_thresholds = tuple(found)
        else:
            (min_probability,) = found
    if min_probability == AUTO:
        min_probability = predictor.calibration.min_probability
        if not min_probability:
            remedy = "give a probability, such as --min-probability 0.6; or prepare with --validation, and train again"
            raise UserError(f"{path} has no threshold of its own: its data had no validation split", remedy=remedy)
    if isinstance(min_probability, str) or not 0 <= min_probability <= 1:
        remedy = f"give a number from 0 to 1, or {AUTO}"
        raise UserError(f"the threshold {min_probability!r:.40} is not a probability", remedy=remedy)
    predictor.min_probability = float(min_probability)
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}", remedy="give at least 1, or leave it out")
    predictor.engine.threads = threads or predictor.engine.threads
    return predictor


def open_checkpoint(
    path: Path, mode: str | None = None, feature_len: int | None = None, classes: Sequence[str] | None = None
) -> Predictor:
    """Open the checkpoint at ``path`` on the CPU; see ``load``."""
    about, arrays = checkpoint.read_metadata(path), weights_io.load(path)
    network: dict[str, Any] | None = None
    calibration, composition = UNCALIBRATED, PLAIN
    if about is None:
        if mode is None or classes is None:
            raise UserError(
                f"{path} does not say how it was trained: there is no {path.with_suffix('.json').name} beside it",
                remedy="add --mode (notebook: the original notebook's), --classes, and --feature-len unless it is 1014",
            )
        about, classes = {}, list(classes)
        encoding = CharEncoder(mode, feature_len or 1014)  # type: ignore[arg-type]
    elif (mode, feature_len, classes) != (None, None, None):
        raise UserError(
            f"{path} already has a description, {path.with_suffix('.json').name}",
            remedy="remove --mode, --feature-len and --classes",
        )
    else:
        if path.parent.name == checkpoint.FOLDER and (name := RunDir(path.parent.parent).name):
            about["name"] = name
        encoding, classes, network = checkpoint.parse_metadata(path, about)
        calibration, composition = Calibration.from_metadata(about), checkpoint.composition(about)
    shape = weights_io.infer_config(arrays, encoding.num_ids, encoding.feature_len, network)
    if len(classes) != shape.num_classes:
        raise UserError(
            f"{path} has {shape.num_classes} outputs, but {len(classes)} classes were given",
            remedy="give one class per output, in the order used in training",
        )
    thresholds = np.array(calibration.thresholds) if calibration.thresholds else None
    precision: Precision = "float32" if network is not None and network.get("precision") == "float32" else "auto"
    engine = open_inference(
        shape, weights_io.validate_compressed(arrays, shape), choose_for_inference(shape, precision)
    )
    label_type = about.get("label_type", "")
    try:
        to_label_type(classes, label_type)
    except ValueError as error:
        raise damaged_error(path.with_suffix(".json"), error, checkpoint.OTHER_CHECKPOINT_HINT) from error
    return Predictor(
        engine, encoding, classes, calibration, 0.0, thresholds, about.get("id"), composition, precision, path, about,
        label_type=label_type,
    )  # fmt: skip
