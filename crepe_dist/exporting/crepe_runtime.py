"""Text classifier for a model.onnx exported by crepe_dist. It only needs NumPy and ONNX Runtime.

    from crepe_runtime import Classifier
    print(Classifier("model.onnx").predict(["a text"])[0].label)

If the model reads columns beside the text, a row may be a mapping: {"text": "a text", "sector": "public"}.
The model reads code points, and its metadata (JSON values) have the names of the classes.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

FORMAT = "4"  # version of the inputs and the metadata
MAX_BATCH = 64  # texts
MAX_ACTIVATIONS = 1 << 24  # numbers in the output of one layer for one batch
FILTERS = 256  # width of a typical convolution
TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(\.\d+)?", re.ASCII)


class Prediction(NamedTuple):
    """Prediction for one text. ``ranking`` lists all (class, probability) pairs, the most probable first. ``read``
    counts the known characters that the network read, without spaces; if it is 0, the text has a ``problem``, such as
    "empty text", and the class is meaningless. ``labels`` are the classes that reach their thresholds, if texts may
    have several; otherwise None. ``characters_cut`` counts the characters that were not read, because the text is too
    long."""

    label: str
    probability: float
    ranking: tuple[tuple[str, float], ...]
    read: int
    labels: tuple[str, ...] | None = None
    problem: str = ""
    characters_cut: int = 0


class Classifier:
    """Classifier of texts. ``model`` is the path or the content of a .onnx file, and ``providers`` names ONNX Runtime's
    execution providers. ValueError is raised if crepe_dist did not export the model."""

    without_tags = staticmethod(lambda text: text)  # of a model that was trained on texts without HTML, see the end

    def __init__(self, model: str | bytes, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        self.session = onnxruntime.InferenceSession(model, providers=list(providers))
        about = self.session.get_modelmeta().custom_metadata_map
        if about.get("format") != FORMAT:
            raise ValueError(f"the model has no crepe_dist metadata in format {FORMAT}")
        self.about: dict[str, Any] = {name: json.loads(value) for name, value in about.items()}
        for column in self.about.get("beside", []):
            column["categories"] = column["categories"] and list(map(category, column["categories"]))
        self.classes: list[str] = self.about["classes"]
        self.min_probability: float = self.about.get("min_probability", 0)  # below it, perhaps none of the classes fits
        width = max(FILTERS, self.about.get("longest", 0) * len(self.classes))
        self.batch_size: int = min(MAX_BATCH, max(1, MAX_ACTIVATIONS // (self.about["feature_len"] * width)))

    def run(self, texts: Sequence[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Compute one batch: the probabilities, float32 [n, classes], and how many characters of each text are read and
        cut, int32 [n]."""
        length = self.about["feature_len"]
        # Only the ends of a text can be read.
        ends = [text if len(text) <= 2 * length else text[:length] + text[-length:] for text in texts]
        points = [np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<i4") for text in ends]
        batch = np.full((len(texts), max(1, *map(len, points))), -1, np.int32)
        for row, each in zip(batch, points):
            row[: len(each)] = each
        probabilities, read, cut = self.session.run(["probabilities", "read", "characters_cut"], {"text": batch})
        return probabilities, read, cut + np.array([len(text) - len(end) for text, end in zip(texts, ends)], np.int32)

    def predict(self, texts: Sequence[Any]) -> list[Prediction]:
        """Classify texts, a list or a column; return one prediction per text, in order. TypeError if they are none."""
        return list(self.predict_stream(checked(texts)))

    def predict_stream(self, texts: Iterable[Any]) -> Iterator[Prediction]:
        """Classify texts lazily, ``batch_size`` at a time; yield one prediction per text, in order."""
        texts = map(self._composed, texts)
        limits = dict(zip(self.classes, self.about.get("thresholds", [])))
        beside = len(self.about.get("beside", []))
        while batch := list(islice(texts, self.batch_size)):
            probabilities, read, cut = self.run(batch)
            for text, row, known, unread in zip(batch, probabilities, read.tolist(), cut.tolist()):
                ranking = tuple((self.classes[n], float(row[n])) for n in np.argsort(-row, kind="stable"))
                labels = tuple(label for label, share in ranking if share >= limits[label]) if limits else None
                end = len(text) - 2 * beside
                known = max(0, known - sum(value != "\0" for value in text[end + 1 :: 2]))  # values make no text
                problem = "" if known else "no character that the network knows"
                if not text[:end].strip():
                    known, problem = 0, "empty text"
                yield Prediction(*ranking[0], ranking, known, labels, problem, unread)

    def _composed(self, row: Any) -> str:
        """Append the values of columns to a text, each as the private character that stands for it. ValueError if a
        mapping has no text."""
        if isinstance(row, Mapping) and "text" not in row:
            raise ValueError(f"a row has no key 'text', which may be None; it has {', '.join(map(repr, row))[:200]}")
        text, values = (row.get("text") or "", row) if isinstance(row, Mapping) else (row, {})
        text = self.without_tags(text)  # first, since an entity can spell any character
        text = "".join("\0" if "\U000f0000" <= character < "\U0010ff00" else character for character in text)
        start, ends = 0xF0000, []
        for column in self.about.get("beside", []):
            if values and column["name"] not in values:
                raise ValueError(f"a row has no column {column['name']!r}, which may be None")
            value = values.get(column["name"])
            value = "" if value is None or value != value else category(str(value))
            known = ["", *column["categories"]] if column["categories"] is not None else None
            if known is None:
                value = "" if value.lower().lstrip("+-") == "nan" else value
                if value and not math.isfinite(float(value)):
                    raise ValueError(f"unusable number: {column['name']} is {value!r}")
                number = 1 + bisect_right(column["edges"], float(value)) if value else 0
            else:
                number = known.index(value) if value in known else -1
            ends.append(chr(start + number) if number >= 0 else "\0")
            start += len(known or column["edges"]) + 2 * (known is None)
        return "\0".join([f"{text} ", *ends]) if ends else str(text)


def category(value: str) -> str:
    """Return the value of a column as crepe_dist spells it: numbers without .0, and days without midnight."""
    value = value.strip()
    if time := TIME.fullmatch(value):
        day, of_day, fraction = time[1], time[2], (time[3] or "").rstrip(".0")
        return day if of_day == "00:00:00" and not fraction else f"{day} {of_day}{fraction}"
    if value.endswith(".0") and value[:-2].removeprefix("-").isdecimal():
        return value[:-2] if float(value) else value[:-2].removeprefix("-")
    return value.lower() if value in ("True", "False") else value


def checked(texts: Iterable[Any]) -> list[Any]:
    """Return texts as a list. TypeError is raised for one text, or a table."""
    if isinstance(texts, (str, bytes, dict, set)) or hasattr(texts, "columns") or not hasattr(texts, "__iter__"):
        raise TypeError(f"predict takes a list of texts, or a column of a table, not {type(texts).__name__}")
    return list(texts)
