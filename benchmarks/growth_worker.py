"""fastText or scikit-learn on a file of any size, in an environment that has them; ``growth.py`` starts it.

    python growth_worker.py TOOL FILE THREADS SECONDS

TOOL is a name of ``TOOLS``. FILE has a line ``__label__<class> <text>`` for each document. It prints JSON: the number
of documents that were trained on, and the seconds that this took.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator

CHUNK = 1000  # documents of a call of partial_fit
FEATURES = 1 << 20


def fasttext(path: str, threads: int, seconds: float) -> tuple[int, float]:
    """Train fastText for an epoch, however long it takes; its first pass over the file counts the words."""
    import fasttext

    began = time.perf_counter()
    fasttext.train_supervised(path, thread=threads, minn=2, maxn=6, dim=16, epoch=1, lr=0.5, verbose=0)
    ended = time.perf_counter()
    return sum(1 for _ in documents(path)), ended - began


def sklearn(path: str, threads: int, seconds: float) -> tuple[int, float]:
    """Train a linear model on hashed n-grams, chunk by chunk, until ``seconds`` have passed."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import SGDClassifier

    classes = sorted({label for label, _ in itertools.islice(documents(path), 10_000)})
    vectors = HashingVectorizer(analyzer="char_wb", ngram_range=(1, 5), n_features=FEATURES)
    model, source, done, began = SGDClassifier(), documents(path), 0, time.perf_counter()
    while time.perf_counter() < began + seconds and (chunk := list(itertools.islice(source, CHUNK))):
        labels, texts = zip(*(row for row in chunk if row[0] in classes))
        model.partial_fit(vectors.transform(texts), labels, classes)
        done += len(chunk)
    return done, time.perf_counter() - began


TOOLS: dict[str, Callable[[str, int, float], tuple[int, float]]] = {"fasttext": fasttext, "sklearn": sklearn}


def documents(path: str) -> Iterator[tuple[str, str]]:
    """Yield the label and the text of each line."""
    with open(path, encoding="utf-8", newline="\n") as stream:
        for line in stream:
            label, _, text = line.rstrip("\n").partition(" ")
            yield label, text


def main() -> None:
    tool, path, threads, seconds = sys.argv[1:]
    print(json.dumps(TOOLS[tool](path, int(threads), float(seconds))))


if __name__ == "__main__":
    main()
