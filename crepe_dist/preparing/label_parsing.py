"""Parsing of labels: a single label, multiple labels, or soft labels (a probability for each class).

Until the data set is written, all labels of a row are stored in one *label string*. For a single label, the label
string is the label. For multiple or soft labels, the label string is a JSON object: the keys are the classes in
alphabetical order, and the values are the probabilities as integer multiples of 1 / ``PROB_SCALE``. Equal labels
therefore have equal label strings. The label string of a row without a label is ``ABSENT``.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crepe_dist.data.targets import MAX_LABELS, PROB_SCALE, SINGLE_LABEL, SOFT, Pairs

# Function that converts a label in a file to a class name. It raises ``ValueError`` if the label is invalid.
ParseClassName = Callable[[str], str]
# Accepted values in a 0/1 column of a class.
TRUE, FALSE = ("1", "1.0", "true", "True", "yes"), ("", "0", "0.0", "false", "False", "no")
# Start of the reason why a row with more than one label is invalid.
MULTIPLE_LABELS = "several labels"
# Label string of a row without a label.
ABSENT = ""
# Prefix of a label in the fastText format.
FASTTEXT = "__label__"

# Decoder that returns numbers as strings in their original spelling, because they may be labels. This also avoids the
# slow conversion of a million digits to an integer. NaN, which Python writes for a missing value, becomes ``None``.
DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant={"NaN": None}.get)


@dataclass(frozen=True)
class LabelFormat:
    """Format of the labels in a source.

    Args:
        kind: Single, multiple or soft labels; one of ``targets.LABEL_KINDS``.
        type: Type of the labels of a table in memory, one of ``LABEL_TYPES``. Empty for text.
    """

    kind: str = SINGLE_LABEL
    type: str = ""

    def parse(self, cell: str, name: ParseClassName) -> str:
        """Return the label string for a cell with multiple or soft labels.

        Raises:
            ValueError: The cell is invalid.
        """
        units = self._parse_soft(cell, name) if self.kind == SOFT else self._parse_multilabel(cell, name)
        if len(units) > MAX_LABELS:
            raise ValueError(f"more than {MAX_LABELS:,} labels")
        return json.dumps(units, sort_keys=True, ensure_ascii=False)

    def _parse_multilabel(self, cell: str, name: ParseClassName) -> dict[str, int]:
        labels: Iterable[str]
        values = _parse_json(cell)
        if isinstance(values, dict):
            labels = [label for label, value in values.items() if _is_set(label, value)]
        elif isinstance(values, list):
            labels = _names_in_list(values)
        else:
            labels = [cell]
        return {name(label): PROB_SCALE for label in labels}

    def _parse_soft(self, cell: str, name: ParseClassName) -> dict[str, int]:
        values = _parse_json(cell)
        if not isinstance(values, dict):
            return {name(cell): PROB_SCALE}
        weights: dict[str, float] = {}
        for label, value in values.items():
            try:
                weight = float(value or 0)
            except (TypeError, ValueError):
                weight = math.nan
            if not 0 <= weight < math.inf:
                raise ValueError(f"unusable probability: {value!r:.40} of {label!r:.40} is not a number from 0")
            if weight:
                weights[name(label)] = weights.get(name(label), 0) + weight
        total = sum(weights.values())
        if not 0 < total < math.inf:
            problem = "the sum of the row is too large" if total else "all values of the row are 0"
            raise ValueError(f"unusable probability: {problem}")
        return _round_probs({label: weight / total for label, weight in weights.items()})


def _round_probs(probs: dict[str, float]) -> dict[str, int]:
    """Round probabilities to integer multiples of 1 / ``PROB_SCALE`` whose sum is exactly 1.

    The remaining units go to the classes with the largest remainders.
    """
    units = {label: int(prob * PROB_SCALE) for label, prob in probs.items()}
    order = sorted(probs, key=lambda label: units[label] - probs[label] * PROB_SCALE)
    for label in order[: PROB_SCALE - sum(units.values())]:
        units[label] += 1
    return {label: count for label, count in units.items() if count}


def labels_to_cell(names: Sequence[str], cells: Sequence[str]) -> str:
    """Combine the cells of multiple label columns into one cell, which contains a JSON object."""
    return json.dumps(dict(zip(names, cells)), ensure_ascii=False)


def parse_label(label: str, kind: str) -> list[str]:
    """Return the classes in a label string."""
    return [label] if kind == SINGLE_LABEL else list(json.loads(label)) if label != ABSENT else []


def collect_classes(labels: Iterable[str], kind: str) -> set[str]:
    """Return the set of all classes in label strings."""
    return {name for label in labels for name in parse_label(label, kind)}


def encode_labels(labels: Sequence[str], class_index: Mapping[str, int]) -> Pairs:
    """Convert label strings to pairs of class index and probability, uint16 [label strings, max labels, 2].

    The module ``data/targets`` describes the array. If a label string contains an unknown class, all its pairs are 0.

    Args:
        class_index: Index of each known class.
    """
    sets = [json.loads(label) if label != ABSENT else {} for label in labels]
    sets = [probs if probs.keys() <= class_index.keys() else {} for probs in sets]
    pairs = np.zeros((len(sets), max(1, max(map(len, sets), default=1)), 2), np.uint16)
    for row, probs in zip(pairs, sets):
        ordered = sorted((class_index[name], prob) for name, prob in probs.items())
        if ordered:
            row[: len(ordered)] = ordered
    return pairs


def fasttext_labels_to_cell(words: Sequence[str], kind: str) -> str:
    """Convert the ``__label__…`` words of a line to the cell that a label column would contain.

    Raises:
        ValueError: There are multiple labels, but ``kind`` allows only one.
    """
    labels = [word[len(FASTTEXT) :] for word in words]
    if kind == SINGLE_LABEL:
        if len(labels) > 1:
            raise ValueError(f"{MULTIPLE_LABELS}: {', '.join(labels)}"[:200])
        return labels[0] if labels else ""
    return json.dumps(labels, ensure_ascii=False) if labels else ""


def _is_set(label: str, value: Any) -> bool:
    text = "" if value is None else str(value).strip()
    if text not in TRUE + FALSE:
        raise ValueError(f"unusable label: {text!r:.40} in column {label!r:.40} is not 0 or 1")
    return text in TRUE


def _names_in_list(values: list[Any]) -> list[str]:
    if any(isinstance(label, (dict, list)) or label is None for label in values):
        raise ValueError("unusable label: the list contains values that are no names")
    return [str(label).lower() if isinstance(label, bool) else str(label) for label in values]


def _parse_json(cell: str) -> Any:
    """Parse a cell that is a JSON object or list. Return ``None`` for other cells."""
    if not cell.lstrip().startswith(("{", "[")):
        return None
    try:
        return DECODER.decode(cell.strip())
    except (ValueError, RecursionError):
        return None
