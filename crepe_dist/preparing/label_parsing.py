"""Labels of rows: one, several, or soft ones (shares of classes), and how the cells of a row spell them.

From reading to building, several or soft labels of a row are one string, ``Label``: a JSON object of the classes in
alphabetical order with their shares in units of 1 / ``PROB_SCALE``. Equal sets are equal strings. Rows that are kept
without a label have the string ``ABSENT``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crepe_dist.data.targets import MAX_LABELS, PROB_SCALE, SINGLE_LABEL, SOFT, Pairs
from crepe_dist.data.text_preprocessing import normalize_category

ParseClassName = Callable[[str], str]  # checks a label as read, and returns the name of its class; raises ValueError
TRUE, FALSE = ("1", "1.0", "true", "True", "yes"), ("", "0", "0.0", "false", "False", "no")
WHITE_SPACE = "space"  # as --label-separator
MULTIPLE_LABELS = "several labels"
ABSENT = ""
FASTTEXT = "__label__"

# Keep the spelling of numbers: they may be labels, and converting a million digits would take long.
# NaN, which Python writes for a missing value, is one.
DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant={"NaN": None}.get)


@dataclass(frozen=True)
class LabelFormat:
    """The labels of rows.

    Args:
        kind: one of ``targets.LABEL_KINDS``.
        separator: separator of several labels in a cell; empty if cells are JSON lists or there is a column for each.
        levels: separator of the levels of a label's name, if the classes form a tree; empty if they do not. Where there
            are columns of labels, each has the part of a level.
        type: type of the labels of a table in memory, one of ``LABEL_TYPES``; empty: text.
    """

    kind: str = SINGLE_LABEL
    separator: str = ""
    levels: str = ""
    type: str = ""

    def parse(self, cell: str, name: ParseClassName) -> str:
        """Return the string for the labels in a cell; raise ``ValueError`` if it is unusable."""
        return _encode_units(self._parse_soft(cell, name) if self.kind == SOFT else self._parse_multilabel(cell, name))

    def join_levels(self, cell: str) -> str:
        """Join the levels of a label that have a column each (``labels_to_cell``); raise ``ValueError`` if they
        cannot be.
        """
        parts = list(map(normalize_category, _parse_json(cell).values()))
        while parts and not parts[-1]:
            parts.pop()  # a code of fewer levels
        if not all(parts):
            raise ValueError(f"unusable level: the one above {parts[parts.index('') + 1]!r:.40} is empty")
        if unusable := next((part for part in parts if self.levels.strip() in part), None):
            raise ValueError(f"unusable level: {unusable!r:.40} contains the separator of --levels")
        return self.levels.join(parts)

    def _parse_multilabel(self, cell: str, name: ParseClassName) -> dict[str, int]:
        labels: Iterable[str]
        values = _parse_json(cell)
        if isinstance(values, dict):
            labels = [label for label, value in values.items() if _is_set(label, value)]
        elif isinstance(values, list):
            labels = _names_in_list(values)
        elif self.separator == WHITE_SPACE:
            labels = cell.split()
        else:
            labels = cell.split(self.separator) if self.separator else [cell]
            labels = [label for label in labels if label.strip()] or [""]
        return {name(label): PROB_SCALE for label in labels}

    def _parse_soft(self, cell: str, name: ParseClassName) -> dict[str, int]:
        values = _parse_json(cell)
        if not isinstance(values, dict):
            return {name(cell): PROB_SCALE}
        shares: dict[str, float] = {}
        for label, value in values.items():
            try:
                share = float(value or 0)
            except (TypeError, ValueError):
                share = math.nan
            if not 0 <= share < math.inf:
                raise ValueError(f"unusable share: {value!r:.40} of {label!r:.40} is not a number from 0")
            if share:
                shares[name(label)] = shares.get(name(label), 0) + share
        total = sum(shares.values())
        if not 0 < total < math.inf:
            problem = "the sum of the row's shares is too large" if total else "all shares of the row are 0"
            raise ValueError(f"unusable share: {problem}")
        return _round_probs({label: share / total for label, share in shares.items()})


def _round_probs(shares: dict[str, float]) -> dict[str, int]:
    """Round shares to whole units with the exact sum, by largest remainders."""
    units = {label: int(share * PROB_SCALE) for label, share in shares.items()}
    order = sorted(shares, key=lambda label: units[label] - shares[label] * PROB_SCALE)
    for label in order[: PROB_SCALE - sum(units.values())]:
        units[label] += 1
    return {label: count for label, count in units.items() if count}


def _encode_units(units: dict[str, int]) -> str:
    if len(units) > MAX_LABELS:
        raise ValueError(f"more than {MAX_LABELS:,} labels")
    return json.dumps(units, sort_keys=True, ensure_ascii=False)


def labels_to_cell(names: Sequence[str], cells: Sequence[str]) -> str:
    """Return the cell for rows that have a column for each class."""
    return json.dumps(dict(zip(names, cells)), ensure_ascii=False)


def parse_label(label: str, kind: str) -> list[str]:
    """Return the classes in a label string; one label is a string by itself."""
    return [label] if kind == SINGLE_LABEL else list(json.loads(label)) if label != ABSENT else []


def collect_classes(labels: Iterable[str], kind: str) -> set[str]:
    """Return all classes in label strings."""
    return {name for label in labels for name in parse_label(label, kind)}


def encode_labels(labels: Sequence[str], class_index: Mapping[str, int]) -> Pairs:
    """Return the classes and shares of label strings, uint16 [labels, most, 2]; see ``data/targets``.

    Args:
        number: index of each class; labels with another class get no pairs.
    """
    sets = [json.loads(label) if label != ABSENT else {} for label in labels]
    sets = [shares if shares.keys() <= class_index.keys() else {} for shares in sets]
    pairs = np.zeros((len(sets), max(1, max(map(len, sets), default=1)), 2), np.uint16)
    for row, shares in zip(pairs, sets):
        ordered = sorted((class_index[name], share) for name, share in shares.items())
        if ordered:
            row[: len(ordered)] = ordered
    return pairs


def fasttext_labels_to_cell(words: Sequence[str], kind: str) -> str:
    """Return the cell for the ``__label__…`` words of a line; raise ``ValueError`` if several cannot be labels."""
    labels = [word[len(FASTTEXT) :] for word in words]
    if kind == SINGLE_LABEL:
        if len(labels) > 1:
            raise ValueError(f"{MULTIPLE_LABELS}: {', '.join(labels)}"[:200])
        return labels[0] if labels else ""
    return json.dumps(labels, ensure_ascii=False) if labels else ""


def _is_set(label: str, value: Any) -> bool:
    text = "" if value is None else str(value).strip()
    if text not in TRUE + FALSE:
        raise ValueError(f"unusable label: {text!r:.40} in column {label!r:.40} is neither 0 nor 1")
    return text in TRUE


def _names_in_list(values: list[Any]) -> list[str]:
    if any(isinstance(label, (dict, list)) or label is None for label in values):
        raise ValueError("unusable label: the list holds more than names")
    return [str(label).lower() if isinstance(label, bool) else str(label) for label in values]


def _parse_json(cell: str) -> Any:
    """Return the object or the list that a cell holds; ``None`` if it holds neither."""
    if not cell.lstrip().startswith(("{", "[")):
        return None
    try:
        return DECODER.decode(cell.strip())
    except (ValueError, RecursionError):
        return None
