"""Text classifier for a model.onnx that crepe_dist exported. It requires only NumPy and ONNX Runtime.

    from crepe_runtime import Classifier
    print(Classifier("model.onnx").predict(["a text"])[0].label)

The input of the ONNX model is the code points of the texts. The metadata of the model (JSON values) contain the class
names.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

FORMAT = "5"  # Version of the inputs and the metadata.
MAX_BATCH = 64  # Maximum number of texts in a batch.
MAX_ACTIVATIONS = 1 << 24  # Maximum number of values in the output of one layer for one batch.
FILTERS = 256  # Number of channels of a typical convolution.


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
        texts = map(self.without_tags, texts)
        thresholds = dict(zip(self.classes, self.metadata.get("thresholds", [])))
        while batch := list(islice(texts, self.batch_size)):
            probabilities, read, truncated = self.run(batch)
            for text, row, num_known, num_truncated in zip(batch, probabilities, read.tolist(), truncated.tolist()):
                ranking = tuple((self.classes[n], float(row[n])) for n in np.argsort(-row, kind="stable"))
                labels = None
                if thresholds:
                    labels = tuple(label for label, probability in ranking if probability >= thresholds[label])
                error = "" if num_known else "no character that the network knows"
                if not text.strip():
                    num_known, error = 0, "empty text"
                yield Prediction(*ranking[0], ranking, num_known, labels, error, num_truncated)


def checked(texts: Iterable[Any]) -> list[Any]:
    """Convert texts to a list. A TypeError is raised for a single text or a table."""
    if isinstance(texts, (str, bytes, dict, set)) or hasattr(texts, "columns") or not hasattr(texts, "__iter__"):
        raise TypeError(f"predict takes a list of texts, or a column of a table, not {type(texts).__name__}")
    return list(texts)
