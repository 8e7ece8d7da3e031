"""Classifies texts by a model.onnx of crepe_dist, with NumPy and ONNX Runtime and nothing else.

    python crepe_runtime.py model.onnx "a text" "another"
    python crepe_runtime.py model.onnx < texts.txt             one text a line, one answer a line

    from crepe_runtime import Classifier
    print(Classifier("model.onnx").predict(["a text"])[0].label)

The model says itself (in its metadata, each value as JSON) how texts become codes and what its classes are called.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, tee
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

FORMAT = "1"  # of the metadata
BLANK = 255  # the code of an unknown character, and of what is behind the end of a short text
AT_ONCE = 64  # texts
ROOM = 1 << 24  # numbers that a layer may hold for the texts that are computed together
FILTERS = 256  # of a usual convolution
SHOWN = 5  # classes of an answer on the command line


class Prediction(NamedTuple):
    """What one text was taken for: the most probable class, its probability, all (class, probability) in falling order,
    and how many characters, spaces apart, were read and known; where there is none, the answer means nothing."""

    label: str
    probability: float
    ranking: tuple[tuple[str, float], ...]
    read: int


class Classifier:
    """Raises ValueError where the model is none of crepe_dist, and what ONNX Runtime raises where it is no model.

    Args:
        model: name of a .onnx file, or its bytes.
        providers: of ONNX Runtime, by name.
    """

    def __init__(self, model: str | bytes, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        self.session = onnxruntime.InferenceSession(model, providers=list(providers))
        about = self.session.get_modelmeta().custom_metadata_map
        if about.get("format") != FORMAT:
            raise ValueError(f"the model's metadata are not those of crepe_dist in format {FORMAT}")
        self.about: dict[str, Any] = {name: json.loads(value) for name, value in about.items()}
        self.classes: list[str] = self.about["classes"]
        # The code of every code point. The characters of a code are told one by one, because which is the lower case
        # or the first part of which differs between the Unicodes of Pythons.
        self.table = np.full(0x110000, BLANK, np.uint8)
        for code, characters in enumerate(self.about["characters"]):
            self.table[[ord(character) for character in characters]] = code
        width = self.about["longest"] * len(self.classes) if self.about["kind"] == "ngrams" else FILTERS
        self.at_once: int = min(AT_ONCE, max(1, ROOM // (self.about["feature_len"] * width)))

    def encode(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """uint8 [n, feature_len]. Mode notebook reads the first characters, others the last ones, backwards."""
        length: int = self.about["feature_len"]
        codes = np.full((len(texts), length), BLANK, np.uint8)
        for row, text in zip(codes, texts):
            kept = text[:length] if self.about["mode"] == "notebook" else text[-length:][::-1]
            points = np.frombuffer(kept.encode("utf-32-le", "surrogatepass"), "<u4")
            row[: len(points)] = self.table[points]
        return codes

    def inputs(self, codes: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """What the model takes: uint8 codes [n, feature_len], or int32 buckets [n, K] of their n-grams, filled up with
        others, and float32 own [n, K], 1 for those that are the text's own."""
        if self.about["kind"] != "ngrams":
            return {"codes": codes}
        found = [self.buckets(row) for row in codes]
        most = max([1, *map(len, found)])
        buckets, own = np.zeros((len(codes), most), np.int32), np.zeros((len(codes), most), np.float32)
        for row, each in enumerate(found):
            buckets[row, : len(each)], own[row, : len(each)] = each, 1
        return {"buckets": buckets, "own": own}

    def buckets(self, codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 [feature_len] → int32 [k], in which buckets the n-grams of known characters are, each once."""
        digits, known = codes.astype(np.uint64) + np.uint64(1), codes != BLANK
        key, good = digits, known
        keys = [key[good]]
        for n in range(1, self.about["longest"]):
            key, good = key[:-1] * np.uint64(257) + digits[n:], good[:-1] & known[n:]
            keys.append(key[good])
        z = np.concatenate(keys)  # mixed as SplitMix64 does it, modulo 2^64
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = (z ^ (z >> np.uint64(31))) >> np.uint64(32)
        return np.asarray(np.unique((z * np.uint64(self.about["buckets"]) >> np.uint64(32)).astype(np.int32)))

    def probabilities(self, codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 [n, feature_len] → float32 [n, classes], all at once."""
        found: np.ndarray[Any, Any] = self.session.run(None, self.inputs(codes))[0]
        return found

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """One prediction a text, in the same order."""
        return list(self.predict_stream(texts))

    def predict_stream(self, texts: Iterable[str]) -> Iterator[Prediction]:
        """Predictions as the texts come, some at a time."""
        texts, space = iter(texts), self.table[ord(" ")]
        while some := list(islice(texts, self.at_once)):
            codes = self.encode(some)
            read = ((codes != BLANK) & (codes != space)).sum(axis=1)
            for row, known in zip(self.probabilities(codes), read.tolist()):
                order = np.argsort(-row, kind="stable").tolist()
                ranking = tuple((self.classes[index], float(row[index])) for index in order)
                yield Prediction(*ranking[0], ranking, known)


def shown(text: str) -> str:
    """The text, what a terminal would act on escaped."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return 0 if len(sys.argv) > 1 else 2
    try:
        classifier = Classifier(sys.argv[1])
    except Exception as error:  # ONNX Runtime has many
        sys.exit(f"error: {sys.argv[1]!r} cannot be used: {error}")
    unread = 0
    sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace", newline="\n")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    texts, again = tee(sys.argv[2:] or (line.rstrip("\r\n") for line in sys.stdin))
    for number, (prediction, text) in enumerate(zip(classifier.predict_stream(texts), again), 1):
        if prediction.read:
            print("   ".join(f"{shown(label)} {share:.1%}" for label, share in prediction.ranking[:SHOWN]))
        else:
            reason = "no character that the network knows" if text.strip() else "empty text"
            print(f"not classified: line {number}: {reason}")
            unread += 1
    return 1 if unread else 0


if __name__ == "__main__":
    sys.exit(main())
