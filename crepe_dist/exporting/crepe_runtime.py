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
from itertools import islice, tee
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

FORMAT = "1"  # version of the metadata
BLANK = 255  # code of unknown characters and of padding
MAX_BATCH = 64  # texts
MAX_ACTIVATIONS = 1 << 24  # numbers in the output of one layer for one batch
FILTERS = 256  # width of a typical convolution


class Prediction(NamedTuple):
    """Prediction for one text. ``ranking`` lists all (class, probability) pairs, the most probable first. ``read``
    counts the known characters that the network read, without spaces; if it is 0, the prediction is meaningless."""

    label: str
    probability: float
    ranking: tuple[tuple[str, float], ...]
    read: int


class Classifier:
    """Classifier of texts.

    Args:
        model: path of a .onnx file, or its content; ValueError is raised if it was not exported by crepe_dist.
        providers: names of ONNX Runtime's execution providers.
    """

    def __init__(self, model: str | bytes, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        self.session = onnxruntime.InferenceSession(model, providers=list(providers))
        about = self.session.get_modelmeta().custom_metadata_map
        if about.get("format") != FORMAT:
            raise ValueError(f"the model has no crepe_dist metadata in format {FORMAT}")
        self.about: dict[str, Any] = {name: json.loads(value) for name, value in about.items()}
        self.classes: list[str] = self.about["classes"]
        # All characters of a code are listed, because lower case and decompositions differ between Unicode versions.
        self.table = np.full(0x110000, BLANK, np.uint8)
        for code, characters in enumerate(self.about["characters"]):
            self.table[[ord(character) for character in characters]] = code
        width = self.about["longest"] * len(self.classes) if self.about["kind"] == "ngrams" else FILTERS
        self.batch_size: int = min(MAX_BATCH, max(1, MAX_ACTIVATIONS // (self.about["feature_len"] * width)))

    def encode(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Encode texts as uint8 [n, feature_len]: the first characters in mode notebook, else the last reversed."""
        length: int = self.about["feature_len"]
        codes = np.full((len(texts), length), BLANK, np.uint8)
        for row, text in zip(codes, texts):
            kept = text[:length] if self.about["mode"] == "notebook" else text[-length:][::-1]
            points = np.frombuffer(kept.encode("utf-32-le", "surrogatepass"), "<u4")
            row[: len(points)] = self.table[points]
        return codes

    def inputs(self, codes: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Convert codes to the model's inputs: the codes themselves, uint8 [n, feature_len], or for n-grams their
        ``buckets``, int32 [n, K], padded, and the mask ``own``, float32 [n, K], which is 0 for padding."""
        if self.about["kind"] != "ngrams":
            return {"codes": codes}
        found = [self.buckets(row) for row in codes]
        most = max([1, *map(len, found)])
        buckets, own = np.zeros((len(codes), most), np.int32), np.zeros((len(codes), most), np.float32)
        for row, each in enumerate(found):
            buckets[row, : len(each)], own[row, : len(each)] = each, 1
        return {"buckets": buckets, "own": own}

    def buckets(self, codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Hash the n-grams of known characters into distinct buckets: uint8 [feature_len] → int32 [k]."""
        digits, known = codes.astype(np.uint64) + np.uint64(1), codes != BLANK
        key, good = digits, known
        keys = [key[good]]
        for n in range(1, self.about["longest"]):
            key, good = key[:-1] * np.uint64(257) + digits[n:], good[:-1] & known[n:]
            keys.append(key[good])
        z = np.concatenate(keys)  # the finaliser of SplitMix64, modulo 2^64
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = (z ^ (z >> np.uint64(31))) >> np.uint64(32)
        return np.asarray(np.unique((z * np.uint64(self.about["buckets"]) >> np.uint64(32)).astype(np.int32)))

    def probabilities(self, codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Compute the probabilities in one batch: uint8 [n, feature_len] → float32 [n, classes]."""
        return np.asarray(self.session.run(None, self.inputs(codes))[0])

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Classify texts; return one prediction per text, in order."""
        return list(self.predict_stream(texts))

    def predict_stream(self, texts: Iterable[str]) -> Iterator[Prediction]:
        """Classify texts lazily, ``batch_size`` at a time; yield one prediction per text, in order."""
        texts, space = iter(texts), self.table[ord(" ")]
        while batch := list(islice(texts, self.batch_size)):
            codes = self.encode(batch)
            read = ((codes != BLANK) & (codes != space)).sum(axis=1)
            for row, known in zip(self.probabilities(codes), read.tolist()):
                ranking = tuple((self.classes[each], float(row[each])) for each in np.argsort(-row, kind="stable"))
                yield Prediction(*ranking[0], ranking, known)


def shown(text: str) -> str:
    """Escape the characters of a text that a terminal would act on."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


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
    texts, again = tee(sys.argv[2:] or (line.rstrip("\r\n") for line in sys.stdin))
    for number, (prediction, text) in enumerate(zip(classifier.predict_stream(texts), again), 1):
        if prediction.read:
            print("   ".join(f"{shown(label)} {percent(share)}" for label, share in prediction.ranking[:5]))
        else:
            print(f"not classified: line {number}:", "no known character" if text.strip() else "empty text")
            unread += 1
    return 1 if unread else 0


if __name__ == "__main__":
    sys.exit(main())
