"""Text classifier for a model.onnx that crepe_dist exported. It requires only NumPy and ONNX Runtime.

    from crepe_runtime import Classifier
    print(Classifier("model.onnx").predict(["a text"])[0].label)

If the model has feature columns, a row may be a mapping: {"text": "a text", "sector": "public"}.
The input of the ONNX model is the code points of the texts. The metadata of the model (JSON values) contain the class
names.
"""

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

FORMAT = "5"  # Version of the inputs and the metadata.
MAX_BATCH = 64  # Maximum number of texts in a batch.
MAX_ACTIVATIONS = 1 << 24  # Maximum number of values in the output of one layer for one batch.
FILTERS = 256  # Number of channels of a typical convolution.
TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(\.\d+)?", re.ASCII)


class Prediction(NamedTuple):
    """Prediction for one text.

    ``ranking`` lists all (class, probability) pairs. The most probable class comes first. ``characters_read`` counts
    the known characters that the network read, without spaces. If it is 0, ``error`` contains the reason, such as
    "empty text", and the class is meaningless. ``labels`` are the classes that reach their thresholds, for multilabel
    models; otherwise None. ``characters_truncated`` counts the characters that were not read because the text is too
    long.
    """

    label: str
    probability: float
    ranking: tuple[tuple[str, float], ...]
    characters_read: int
    labels: tuple[str, ...] | None = None
    error: str = ""
    characters_truncated: int = 0


class Classifier:
    """Text classifier.

    ``model`` is the path or the content of a .onnx file. ``providers`` are the names of ONNX Runtime's execution
    providers. A ValueError is raised if the model has no metadata of crepe_dist in this format.
    """

    # If the model was trained on texts without HTML tags, the export appends code that replaces this function.
    without_tags = staticmethod(lambda text: text)

    def __init__(self, model: str | bytes, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        self.session = onnxruntime.InferenceSession(model, providers=list(providers))
        metadata = self.session.get_modelmeta().custom_metadata_map
        if metadata.get("format") != FORMAT:
            raise ValueError(f"the model has no crepe_dist metadata in format {FORMAT}")
        self.metadata: dict[str, Any] = {name: json.loads(value) for name, value in metadata.items()}
        for column in self.metadata.get("feature_columns", []):
            column["categories"] = column["categories"] and list(map(category, column["categories"]))
        self.classes: list[str] = self.metadata["classes"]
        # If the highest probability is below this threshold, possibly none of the classes is correct.
        self.min_probability: float = self.metadata.get("min_probability", 0)
        width = max(FILTERS, self.metadata.get("maxn", 0) * len(self.classes))
        self.batch_size: int = min(MAX_BATCH, max(1, MAX_ACTIVATIONS // (self.metadata["feature_len"] * width)))

    def run(self, texts: Sequence[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Run the model on one batch.

        Return the probabilities, float32 [n, classes], the number of characters that the network reads of each text,
        and the number of characters that are truncated, both int32 [n].
        """
        length = self.metadata["feature_len"]
        # The network reads at most the beginning and the end of a text, so the middle is not copied to the batch.
        ends = [text if len(text) <= 2 * length else text[:length] + text[-length:] for text in texts]
        points = [np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<i4") for text in ends]
        batch = np.full((len(texts), max(1, *map(len, points))), -1, np.int32)
        for row, text_points in zip(batch, points):
            row[: len(text_points)] = text_points
        outputs = ["probabilities", "read", "characters_cut"]
        probabilities, read, truncated = self.session.run(outputs, {"text": batch})
        return (
            probabilities,
            read,
            truncated + np.array([len(text) - len(end) for text, end in zip(texts, ends)], np.int32),
        )

    def predict(self, texts: Sequence[Any]) -> list[Prediction]:
        """Classify the texts of a list or a column. Return one prediction per text, in the order of the texts.

        A TypeError is raised if ``texts`` has another type.
        """
        return list(self.predict_stream(checked(texts)))

    def predict_stream(self, texts: Iterable[Any]) -> Iterator[Prediction]:
        """Classify texts lazily, ``batch_size`` at a time. Yield one prediction per text, in the order of the texts."""
        texts = map(self._composed, texts)
        thresholds = dict(zip(self.classes, self.metadata.get("thresholds", [])))
        num_columns = len(self.metadata.get("feature_columns", []))
        while batch := list(islice(texts, self.batch_size)):
            probabilities, read, truncated = self.run(batch)
            for text, row, num_known, num_truncated in zip(batch, probabilities, read.tolist(), truncated.tolist()):
                ranking = tuple((self.classes[n], float(row[n])) for n in np.argsort(-row, kind="stable"))
                labels = None
                if thresholds:
                    labels = tuple(label for label, probability in ranking if probability >= thresholds[label])
                end = len(text) - 2 * num_columns
                # The characters of feature columns do not count as known characters of the text.
                num_known = max(0, num_known - sum(value != "\0" for value in text[end + 1 :: 2]))
                error = "" if num_known else "no character that the network knows"
                if not text[:end].strip():
                    num_known, error = 0, "empty text"
                yield Prediction(*ranking[0], ranking, num_known, labels, error, num_truncated)

    def _composed(self, row: Any) -> str:
        """Append the values of feature columns to a text. Each value is encoded as one private-use character.

        A ValueError is raised if a mapping lacks the text or a column, or if a number is invalid.
        """
        if isinstance(row, Mapping) and "text" not in row:
            raise ValueError(f"a row has no key 'text', which may be None; it has {', '.join(map(repr, row))[:200]}")
        text, values = (row.get("text") or "", row) if isinstance(row, Mapping) else (row, {})
        # HTML is removed first, because an HTML entity can stand for any character.
        text = self.without_tags(text)
        text = "".join("\0" if "\U000f0000" <= character < "\U0010ff00" else character for character in text)
        start, ends = 0xF0000, []
        for column in self.metadata.get("feature_columns", []):
            if values and column["name"] not in values:
                raise ValueError(f"a row has no column {column['name']!r}, which may be None")
            value = values.get(column["name"])
            value = "" if value is None or value != value else category(str(value))
            categories = ["", *column["categories"]] if column["categories"] is not None else None
            if categories is None:
                value = "" if value.lower().lstrip("+-") == "nan" else value
                if value and not math.isfinite(float(value)):
                    raise ValueError(f"unusable number: {column['name']} is {value!r}")
                number = 1 + bisect_right(column["edges"], float(value)) if value else 0
            else:
                number = categories.index(value) if value in categories else -1
            ends.append(chr(start + number) if number >= 0 else "\0")
            start += len(categories or column["edges"]) + 2 * (categories is None)
        return "\0".join([f"{text} ", *ends]) if ends else str(text)


def category(value: str) -> str:
    """Normalize the value of a column as crepe_dist does: remove ".0" from numbers, and midnight from dates."""
    value = value.strip()
    if time := TIME.fullmatch(value):
        date, time_of_day, fraction = time[1], time[2], (time[3] or "").rstrip(".0")
        return date if time_of_day == "00:00:00" and not fraction else f"{date} {time_of_day}{fraction}"
    if value.endswith(".0") and value[:-2].removeprefix("-").isdecimal():
        return value[:-2] if float(value) else value[:-2].removeprefix("-")
    return value.lower() if value in ("True", "False") else value


def checked(texts: Iterable[Any]) -> list[Any]:
    """Convert texts to a list. A TypeError is raised for a single text or a table."""
    if isinstance(texts, (str, bytes, dict, set)) or hasattr(texts, "columns") or not hasattr(texts, "__iter__"):
        raise TypeError(f"predict takes a list of texts, or a column of a table, not {type(texts).__name__}")
    return list(texts)
