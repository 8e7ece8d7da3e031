"""Measurement of fastText and scikit-learn on short texts; it runs in an environment that has them.

    python short_texts_worker.py PEER FOLDER THREADS

PEER is a name of ``PEERS``. FOLDER holds train.txt and test.txt, a line ``__label__<class> <text>`` for each document.
It prints JSON: ``train_rate`` and ``predict_rate`` in documents/s, ``seconds`` to train and score, ``accuracy``, and
``epochs`` if there are any.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Callable

EPOCHS = 5
FASTTEXT = {"dim": 16, "epoch": EPOCHS, "lr": 0.5, "verbose": 0}


def main() -> None:
    peer, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    print(json.dumps(PEERS[peer](folder, threads)))


def fasttext_with(**settings: int) -> Callable[[Path, int], dict[str, float]]:
    """Return a function that measures fastText. Its training time includes reading the file, twice."""

    def measure(folder: Path, threads: int) -> dict[str, float]:
        import fasttext

        labels, texts = read(folder / "test.txt")
        began = time.perf_counter()
        model = fasttext.train_supervised(str(folder / "train.txt"), thread=threads, **FASTTEXT, **settings)
        trained = time.perf_counter()
        predicted = [found[0] for found in model.predict(texts)[0]]
        ended = time.perf_counter()
        documents = EPOCHS * len(read(folder / "train.txt")[0])
        return {"epochs": EPOCHS, **figures(documents, labels, predicted, began, trained, ended)}

    return measure


def svm_on(**settings: Any) -> Callable[[Path, int], dict[str, float]]:
    """Return a function that measures a linear SVM on TF-IDF, whose rate counts each document once."""

    def measure(folder: Path, threads: int) -> dict[str, float]:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import LinearSVC

        labels, texts = read(folder / "train.txt")
        wanted, unseen = read(folder / "test.txt")
        began = time.perf_counter()
        model = make_pipeline(TfidfVectorizer(sublinear_tf=True, **settings), LinearSVC(C=0.5)).fit(texts, labels)
        trained = time.perf_counter()
        predicted = list(model.predict(unseen))
        return figures(len(texts), wanted, predicted, began, trained, time.perf_counter())

    return measure


def figures(
    documents: int, labels: list[str], predicted: list[str], began: float, trained: float, ended: float
) -> dict[str, float]:
    right = sum(label == found for label, found in zip(labels, predicted))
    return {
        "train_rate": documents / (trained - began),
        "predict_rate": len(labels) / (ended - trained),
        "seconds": ended - began,
        "accuracy": right / len(labels),
    }


def read(path: Path) -> tuple[list[str], list[str]]:
    """Read the labels and texts of a file."""
    lines = [line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    return [label for label, _ in lines], [text for _, text in lines]


PEERS: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "fastText, 2-6 characters": fasttext_with(minn=2, maxn=6),
    "fastText, words and pairs": fasttext_with(wordNgrams=2),
    "linear SVM, 1-5 characters": svm_on(analyzer="char_wb", ngram_range=(1, 5), min_df=2),
    "linear SVM, words and pairs": svm_on(ngram_range=(1, 2)),
}

if __name__ == "__main__":
    main()
