"""Text classifier for a model.onnx exported by crepe_dist. It only needs NumPy and ONNX Runtime.

    python crepe_runtime.py model.onnx "a text" "another"
    python crepe_runtime.py model.onnx < texts.txt             one text per line, one answer per line

    from crepe_runtime import Classifier
    print(Classifier("model.onnx").predict(["a text"])[0].label)

The metadata of the model (JSON values) describe the encoding of texts and the names of the classes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

FORMAT = "3"  # version of the metadata
BLANK = 255  # code of unknown characters and of padding
MAX_BATCH = 64  # texts
MAX_ACTIVATIONS = 1 << 24  # numbers in the output of one layer for one batch
FILTERS = 256  # width of a typical convolution


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

    def __init__(self, model: str | bytes, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        self.session = onnxruntime.InferenceSession(model, providers=list(providers))
        about = self.session.get_modelmeta().custom_metadata_map
        if about.get("format") != FORMAT:
            raise ValueError(f"the model has no crepe_dist metadata in format {FORMAT}")
        self.about: dict[str, Any] = {name: json.loads(value) for name, value in about.items()}
        self.classes: list[str] = self.about["classes"]
        self.min_probability: float = self.about.get("min_probability", 0)  # below it, perhaps none of the classes fits
        # All characters of a code are listed, because lower case and decompositions differ between Unicode versions.
        self.codes = {char: [code] for code, chars in enumerate(self.about["characters"]) for char in chars}
        self.codes.update(self.about["spellings"])  # some characters have several
        width = max(FILTERS, self.about.get("longest", 0) * len(self.classes))
        self.batch_size: int = min(MAX_BATCH, max(1, MAX_ACTIVATIONS // (self.about["feature_len"] * width)))

    def encode(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Encode texts as uint8 [n, feature_len]: in reading order in mode notebook, else in reverse."""
        codes = np.full((len(texts), self.about["feature_len"]), BLANK, np.uint8)
        for row, text in zip(codes, texts):
            read = [code for code, _ in self.read(text)]
            row[: len(read)] = read if self.about["mode"] == "notebook" else read[::-1]
        return codes

    def read(self, text: str) -> list[tuple[int, int]]:
        """Return the codes of a text, at most feature_len, and the positions of their characters; -1 for a seam."""
        length, (head, tail) = self.about["feature_len"], self.about["kept"]
        places: Sequence[int] = range(len(text))
        if len(text) > 2 * length:  # only the ends can be read
            places = [*places[:length], *places[-length:]]
        read = [(code, place) for place in places for code in self.codes.get(text[place], [BLANK])]
        if len(read) <= length:
            return read
        return read[:head] + [(BLANK, -1)] * (length - head - tail) + read[len(read) - tail :]

    def characters_cut(self, text: str) -> int:
        """Count the characters of a text that are not read, because it is too long."""
        return len(text) - len({place for _, place in self.read(text)} - {-1})

    def inputs(self, codes: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Convert codes, uint8 [n, feature_len], to the model's inputs: the ``codes`` themselves; or, if the metadata
        have the length of the ``longest`` n-grams, the ``buckets`` of each text, int32 [n, K], and the mask ``own``,
        float32 [n, K], 1 for the first occurrence of a bucket; and, if they have a ``reach``, the ``places``: the
        n-grams of T positions, int32 [n, T, K]."""
        about = self.about
        if "longest" not in about:
            return {"codes": codes}
        known = codes != BLANK
        codes = codes[:, : 1 + np.flatnonzero(known.any(axis=0)).max(initial=0)]  # the end of the longest
        rows, stride = np.flatnonzero(known.any(axis=1)), about.get("stride", 1)
        ends = known.shape[1] - known[rows, ::-1].argmax(axis=1)
        codes = np.pad(codes, ((0, 0), (1, 1 + -(codes.shape[1] + 2) % stride)), constant_values=BLANK)
        codes[rows, 0] = codes[rows, ends + 1] = len(about["characters"])  # before the first and after the last one
        buckets = self.hashed(codes, about["longest"], about["buckets"]).reshape(len(codes), -1)
        buckets.sort(axis=1)
        own = buckets < about["buckets"]
        own[:, 1:] &= buckets[:, 1:] != buckets[:, :-1]
        inputs = {"buckets": buckets * own, "own": own.astype(np.float32)}
        if "reach" in about:
            places = self.hashed(codes, about["reach"], about["rows"])
            inputs["places"] = places.reshape(len(codes), -1, stride * about["reach"])
        return inputs

    def hashed(self, codes: np.ndarray[Any, Any], longest: int, rows: int) -> np.ndarray[Any, Any]:
        """Hash the n-grams of 1 … longest characters that start at each position: uint8 [n, L] → int32 [n, L, longest]
        below ``rows``; or ``rows`` itself, where there are unknown characters or the text ends."""
        keys, known = np.zeros((*codes.shape, longest), np.uint64), np.zeros((*codes.shape, longest), np.bool_)
        digits, key = codes.astype(np.uint64) + np.uint64(1), np.zeros(codes.shape, np.uint64)
        good, is_known = np.ones(codes.shape, np.bool_), codes != BLANK
        for n, end in zip(range(longest), range(codes.shape[1], 0, -1)):
            keys[:, :end, n] = key = key[:, :end] * np.uint64(257) + digits[:, n:]
            known[:, :end, n] = good = good[:, :end] & is_known[:, n:]
        z = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # SplitMix64's finaliser, modulo 2^64
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = (z ^ (z >> np.uint64(31))) >> np.uint64(32)
        return np.where(known, z * np.uint64(rows) >> np.uint64(32), np.uint64(rows)).astype(np.int32)

    def probabilities(self, codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Compute the probabilities in one batch: uint8 [n, feature_len] → float32 [n, classes]."""
        return np.asarray(self.session.run(None, self.inputs(codes))[0])

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Classify texts, a list or a column; return one prediction per text, in order. TypeError if they are none."""
        return list(self.predict_stream(checked(texts)))

    def predict_stream(self, texts: Iterable[str]) -> Iterator[Prediction]:
        """Classify texts lazily, ``batch_size`` at a time; yield one prediction per text, in order."""
        texts, (space,) = iter(texts), self.codes[" "]
        limits = dict(zip(self.classes, self.about.get("thresholds", [])))
        while batch := list(islice(texts, self.batch_size)):
            codes = self.encode(batch)
            read = ((codes < self.about["counted"]) & (codes != space)).sum(axis=1)
            for text, row, known in zip(batch, self.probabilities(codes), read.tolist()):
                ranking = tuple((self.classes[n], float(row[n])) for n in np.argsort(-row, kind="stable"))
                labels = tuple(label for label, share in ranking if share >= limits[label]) if limits else None
                problem = "" if known else "no character that the network knows" if text.strip() else "empty text"
                yield Prediction(*ranking[0], ranking, known, labels, problem, self.characters_cut(text))


def checked(texts: Iterable[str]) -> list[str]:
    """Return texts as a list. TypeError is raised for one text, a table, or a list of something else than texts."""
    if isinstance(texts, (str, bytes, dict, set)) or hasattr(texts, "columns") or not hasattr(texts, "__iter__"):
        raise TypeError(f"predict takes a list of texts, or a column of a table, not {type(texts).__name__}")
    for number, text in enumerate(texts := list(texts)):
        if not isinstance(text, str):
            raise TypeError(f"text {number} is {text!r:.40}, of type {type(text).__name__}, not a string")
    return texts


def shown(text: str) -> str:
    """Escape the characters of a text that a terminal would act on."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def percent(share: float) -> str:
    """Format a share with one decimal, as the package does; only exact shares are shown as 0.0 % and 100.0 %."""
    return "< 0.1 %" if 0 < share < 0.0005 else "> 99.9 %" if 0.9995 <= share < 1 else f"{100 * share:.1f} %"


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return 0 if len(sys.argv) > 1 else 2
    try:
        classifier = Classifier(sys.argv[1])
    except Exception as error:  # ONNX Runtime raises many types
        sys.exit(f"error: {sys.argv[1]!r} cannot be used: {error}")
    unread = 0
    sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace", newline="\n")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    texts = sys.argv[2:] or (line.rstrip("\r\n") for line in sys.stdin)
    for number, prediction in enumerate(classifier.predict_stream(texts), 1):
        if prediction.problem:
            print(f"not classified: line {number}: {prediction.problem}")
            unread += 1
            continue
        best = [label for label, _ in prediction.ranking[:5]] if prediction.labels is None else prediction.labels
        shares = [f"{shown(label)} {percent(share)}" for label, share in prediction.ranking if label in best]
        rejected = prediction.probability < classifier.min_probability
        none = ["none of these"] if rejected else ["no label"] if not shares else []
        print("   ".join([*none, *shares]))
    return 1 if unread else 0


if __name__ == "__main__":
    sys.exit(main())
