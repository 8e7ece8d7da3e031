"""Scikit-learn estimator."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from crepe_dist.data.text_preprocessing import EMPTY
from crepe_dist.errors import UserError
from crepe_dist.estimator.fitting import DEFAULT_VALIDATION_FRACTION, fit_checkpoint
from crepe_dist.predicting.input_reader import InvalidInput, extract_texts
from crepe_dist.predicting.loading import open_files
from crepe_dist.predicting.prediction import NO_KNOWN_CHARACTERS
from crepe_dist.preparing.dataframe_source import is_missing
from crepe_dist.preparing.formats.columns import ColumnSpec

if TYPE_CHECKING:
    from crepe_dist.predicting.predictor import Predictor


UNLABELLED = -1  # Label of a text without a label, as in scikit-learn's semi-supervised estimators.


class CrepeClassifier(ClassifierMixin, BaseEstimator):
    """Character-level text classifier for scikit-learn's pipelines and searches.

    ``fit`` trains in another process. A fitted estimator contains the bytes of its checkpoint. Therefore, it can be
    pickled, copied and sent to other processes, and it does not depend on files. Training is deterministic: with the
    same random seed, the same texts in the same order give the same model on the same machine with the same number of
    processes.

    Args:
        network: ``crepe``, ``ngrams`` (faster and less accurate than ``crepe``) or ``paper``.
        epochs: Number of epochs. ``None`` selects the default of ``crepe train``.
        learning_rate: Initial learning rate. ``None`` selects the default of ``crepe train``.
        batch_size: Number of texts per step, over all processes. ``None`` selects the default of ``crepe train``.
        max_length: Maximum number of characters that are read. If a text is longer, its start and its end are read. If
            it is ``None``, the maximum length is the smallest one that keeps 99 % of the training texts complete.
        validation_fraction: Fraction of the texts that form the validation split. The validation split is used to
            select the best epoch. If the fraction is 0, there is no validation split, and the last epoch is used.
            However, if there are unlabelled texts or ``min_precision`` is set, 0 means a tenth of the texts.
        patience: Early-stopping patience: training stops after this number of epochs without an improvement on the
            validation split. If it is 0, training never stops early. ``None`` selects the default of ``crepe train``.
        min_precision: Required precision of the predictions, from 0 to 1. For a text without a prediction of this
            precision, ``predict`` returns ``None``. If ``min_precision`` is ``None``, ``predict`` returns a class for
            every text.
        class_weight: ``balanced``, weights by label, or ``None``.
        processes: Number of processes that train.
        device: ``auto``, ``gpu`` or ``cpu``.
        settings: Further settings of ``crepe train`` by their names, such as ``{"model.width": 32}``.
        random_state: Random seed, or a ``RandomState``. If it is ``None``, each call of ``fit`` draws a random seed.
        verbose: Amount of output. 0 prints nothing, 1 prints a line per epoch while ``fit`` trains, and 2 prints all
            lines of ``crepe train``.

    Attributes:
        classes_: Sorted labels, of the dtype of the labels in ``fit``, [classes]. If texts have multiple labels, these
            are the columns of the label matrix.
        model_: Contents of the two checkpoint files, weights and JSON metadata, by file name.
    """

    def __init__(
        self,
        network: str = "crepe",
        *,
        epochs: int | None = None,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        max_length: int | None = None,
        validation_fraction: float = 0.0,
        patience: int | None = None,
        min_precision: float | None = None,
        class_weight: str | Mapping[Any, float] | None = None,
        processes: int = 1,
        device: str = "auto",
        settings: Mapping[str, Any] | None = None,
        random_state: Any = 0,
        verbose: int = 0,
    ) -> None:
        self.network = network
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_length = max_length
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.min_precision = min_precision
        self.class_weight = class_weight
        self.processes = processes
        self.device = device
        self.settings = settings
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, *, unlabelled: Any = None, groups: Any = None
    ) -> "CrepeClassifier":
        """Train on texts and their labels.

        Args:
            X: Texts: a list, an array, a series, or a table. The text columns of a table are detected like the columns
                of a file. Blank texts are not used.
            y: Labels of the texts, of any type that can be sorted. The number -1 means that a text has no label.
                However, if there is only one other label, -1 is a label. If texts have multiple labels, give a matrix
                or a table of 0 and 1, [n, classes].
            sample_weight: Weight of each text in the loss, from 0. Only the ratios of the weights matter. If it is
                ``None``, all texts have the same weight.
            unlabelled: Additional texts without labels, in one of the forms of ``X``. They get pseudo labels. If it is
                ``None``, there are no additional texts.
            groups: Group of each text, such as its author, as in scikit-learn's ``GroupKFold``. All texts of a group
                are either in the validation split or in the training split. A text whose group is ``None`` or NaN is a
                group by itself. If it is ``None``, each text is a group by itself.

        Raises:
            ValueError: The texts, labels or parameters cannot be used.
            UserError: The training failed.
        """
        texts = extract_texts(X, ColumnSpec())
        is_multilabel = _is_multilabel(y)
        classes, targets = encode_multilabel(y, texts) if is_multilabel else encode_labels(y, texts)
        labelled = np.arange(len(texts)) if is_multilabel else np.flatnonzero(targets != UNLABELLED)
        labels = [np.flatnonzero(row).tolist() for row in targets] if is_multilabel else targets[labelled]
        table: dict[str, Any] = {"text": [texts[row] for row in labelled], "label": labels}
        if sample_weight is not None:
            table["weight"] = check_weights(sample_weight, texts)[labelled]
        if groups is not None:
            values = check_groups(groups, texts)
            table["group"] = [values[row] for row in labelled]
        unlabelled_texts = [] if is_multilabel else [texts[row] for row in np.flatnonzero(targets == UNLABELLED)]
        unlabelled_texts += [] if unlabelled is None else extract_texts(unlabelled, ColumnSpec())
        needs_validation = bool(unlabelled_texts) or self.min_precision is not None
        options = {
            "labels": "multilabel" if is_multilabel else "single",
            "feature_len": self.max_length or "auto",
            "validation": self.validation_fraction or (DEFAULT_VALIDATION_FRACTION if needs_validation else 0),
        }
        seed = self.random_state
        if not isinstance(seed, (int, np.integer)):
            seed = check_random_state(seed).randint(2**31 - 1)
        settings = self._settings(classes, int(seed))
        try:
            self.model_ = fit_checkpoint(
                table, unlabelled_texts, settings, options, processes=self.processes, verbose=self.verbose
            )
        except UserError as error:
            raise InvalidInput(error.what, error.why, error.remedy) from None
        self.classes_, self.several_ = classes, is_multilabel
        self._opened: list[Predictor] = []
        return self

    def predict(self, X: Any) -> np.ndarray[Any, Any]:
        """Return the most probable class of each text, [n], of the dtype of the labels.

        If ``min_precision`` is set, the array has the dtype object. A text whose prediction does not reach this
        precision gets ``None``.

        If texts have multiple labels, the result is a matrix of 0 and 1, int64 [n, classes]. The thresholds of the
        classes maximise F1 on the validation split, or reach ``min_precision`` there.
        """
        probabilities = self.predict_proba(X)
        predictor = self._opened[0]
        calibration = predictor.calibration
        if self.several_:
            precision = self.min_precision
            # The network has no output for a class without training texts, so such a class is never predicted.
            thresholds = np.full(len(self.classes_), np.inf)
            outputs = list(map(int, predictor.classes))
            thresholds[outputs] = calibration.thresholds if precision is None else calibration.thresholds_for(precision)
            return (probabilities >= thresholds).astype(np.int64)
        predicted: np.ndarray[Any, Any] = self.classes_[probabilities.argmax(axis=1)]
        if self.min_precision is None:
            return predicted
        predicted = predicted.astype(object)
        predicted[probabilities.max(axis=1) < calibration.thresholds_for(self.min_precision)[0]] = None
        return predicted

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy of the most probable classes.

        If texts have multiple labels, return the fraction of the texts whose predicted labels are exactly their labels.
        """
        predicted = self.predict(X) if self.several_ else self.classes_[self.predict_proba(X).argmax(axis=1)]
        return float(accuracy_score(y, predicted, sample_weight=sample_weight))

    def predict_proba(self, X: Any) -> np.ndarray[Any, Any]:
        """Return the probability of each of ``classes_`` for each text, float64 [n, classes].

        The probabilities of a text sum to 1, unless texts may have multiple labels. The probabilities of multiple
        labels are independent.
        """
        check_is_fitted(self)
        texts = extract_texts(X, ColumnSpec())
        if not self._opened:
            self._opened.append(open_files(self.model_, self.device))
        (predictor,) = self._opened
        # The network has no output for a class whose training texts were all blank. The probability of the class is 0.
        probabilities = np.zeros((len(texts), len(self.classes_)))
        for row, prediction in enumerate(predictor.predict_stream(iter(texts))):
            if prediction.error not in ("", EMPTY, NO_KNOWN_CHARACTERS):
                raise InvalidInput(f"row {row}: {prediction.error}", remedy="give numbers, or leave the value out")
            for label, probability in prediction.ranking:
                probabilities[row, int(label)] = probability
        return probabilities if self.several_ else probabilities / probabilities.sum(axis=1, keepdims=True)

    def _settings(self, classes: np.ndarray[Any, Any], seed: int) -> dict[str, Any]:
        """Return the settings of the training run, keyed by their dotted names.

        The network is trained on the indices of the classes, not on their names.
        """
        settings = {
            "model.network": self.network,
            "training.epochs": self.epochs,
            "optimizer.learning_rate": self.learning_rate,
            "data.batch_size": self.batch_size,
            "training.patience": self.patience,
            "training.class_weights": self._class_weights(classes),
            "training.seed": seed,
            "device": self.device,
            **(self.settings or {}),
        }
        return {name: value for name, value in settings.items() if value is not None}

    def _class_weights(self, classes: np.ndarray[Any, Any]) -> str | dict[str, float] | None:
        if not isinstance(self.class_weight, Mapping):
            return self.class_weight
        labels = classes.tolist()
        if unknown := [label for label in self.class_weight if label not in labels]:
            raise InvalidInput(f"class_weight has the label {unknown[0]!r:.40}", remedy="name labels that occur in y")
        return {str(labels.index(label)): float(weight) for label, weight in self.class_weight.items()}

    def __getstate__(self) -> dict[str, Any]:
        # The predictor refers to memory of the kernels, which cannot be pickled. The predictor is therefore opened
        # again when it is needed.
        state: dict[str, Any] = {**super().__getstate__()}
        return {**state, "_opened": []} if "_opened" in state else state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.classifier_tags.multi_label = True
        return tags


def encode_labels(y: Any, texts: Sequence[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the sorted classes, of the dtype of the labels, and the class index of each text, int64 [n].

    The number -1 means that a text has no label, as in scikit-learn's semi-supervised estimators. The index of such a
    text is ``UNLABELLED``. However, if there is only one other label, -1 is a class.
    """
    if y is None:
        why = "fit requires y to be passed, but the target y is None"
        raise InvalidInput("there are no labels", why, "give labels")
    labels = column_or_1d(y, warn=True)
    if len(labels) != len(texts):
        what = f"there are {len(texts):,} texts and {len(labels):,} labels"
        raise InvalidInput(what, remedy="give a label for every text")
    missing = [row for row, label in enumerate(labels.tolist()) if is_missing(label)]
    if missing:
        why = f"{len(missing):,} of {len(labels):,} labels are None or NaN (Input y contains NaN)"
        raise InvalidInput(f"label {missing[0]} is missing", why, "leave such rows out")
    check_classification_targets(labels)
    classes, indices = np.unique(labels, return_inverse=True)
    if labels.dtype.kind in "if" and len(classes) > 2 and classes[0] == UNLABELLED:
        classes, indices = classes[1:], indices - 1
        count = f"{np.count_nonzero(indices == UNLABELLED):,} labels are -1"
        warnings.warn(
            f"{count}, which means no label, as in scikit-learn; if -1 is a class, rename this class", stacklevel=3
        )
    if len(classes) < 2:
        remedy = "give texts of two classes or more"
        raise InvalidInput("all labels are of one class", f"it is {classes.tolist()[:1]}", remedy)
    return classes, indices


def encode_multilabel(y: Any, texts: Sequence[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the names of the columns of a label matrix, and the matrix, bool [n, classes]."""
    matrix = y.toarray() if hasattr(y, "toarray") else y
    remedy = "give a matrix of 0 and 1 with a row for each text, such as MultiLabelBinarizer makes of lists"
    try:
        values = np.asarray(matrix, np.float64)
    except (TypeError, ValueError):
        raise InvalidInput(
            "the texts have multiple labels each, and the labels are not a matrix", remedy=remedy
        ) from None
    if values.shape[:1] != (len(texts),) or not np.isin(values, (0, 1)).all():
        raise InvalidInput(f"the matrix of labels, of shape {values.shape}, cannot be used", remedy=remedy)
    return np.asarray(getattr(matrix, "columns", np.arange(values.shape[1]))), values == 1


def _is_multilabel(y: Any) -> bool:
    """Return whether each text has a collection of labels: a matrix with several columns, or nested lists or sets."""
    if len(getattr(y, "shape", ())) == 2:
        return bool(y.shape[1] > 1)
    first = next(iter(y), None) if isinstance(y, (list, tuple)) else None
    return isinstance(first, (list, tuple, set, frozenset))


def check_groups(groups: Any, texts: Sequence[str]) -> list[Any]:
    """Validate the groups of the texts. Return them as a list."""
    values = list(groups)
    if len(values) != len(texts):
        what = f"there are {len(texts):,} texts and {len(values):,} groups"
        raise InvalidInput(what, remedy="give a group for every text")
    nested = next((row for row, value in enumerate(values) if np.ndim(value)), None)
    if nested is not None:
        raise InvalidInput(f"the group of text {nested} is not a single value", remedy="give a group for every text")
    return values


def check_weights(sample_weight: Any, texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """Validate the weights of the texts. Return them as float64 [n]."""
    weights: np.ndarray[Any, Any] = _check_sample_weight(sample_weight, texts, dtype=np.float64)
    if (weights < 0).any():
        row = int((weights < 0).argmax())
        why = "Negative values in data passed to sample_weight"
        raise InvalidInput(f"the weight of text {row} is {weights[row]:g}", why, "give weights from 0")
    return weights
