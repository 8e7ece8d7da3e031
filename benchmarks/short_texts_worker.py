"""Measurement of fastText and scikit-learn on short texts; it runs in an environment that has them.

    python short_texts_worker.py TOOL FOLDER THREADS

TOOL is a name of ``TOOLS``. FOLDER holds train.txt and test.txt, a line ``__label__<class> <text>`` for each document.
It prints JSON: ``train_rate`` and ``predict_rate`` in documents/s, ``seconds`` to train and score, and ``accuracy``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EPOCHS = 5
FASTTEXT = "fastText, 2-6 characters"  # reads what our networks read
SVM = "linear SVM, 1-5 characters"
TOOLS = (FASTTEXT, SVM)
Texts = tuple[list[str], list[str]]  # labels, texts


def main() -> None:
    folder, threads = Path(sys.argv[2]), int(sys.argv[3])
    train, test = read(folder / "train.txt"), read(folder / "test.txt")
    began = time.perf_counter()
    if sys.argv[1] == FASTTEXT:
        predict, epochs = fasttext(folder / "train.txt", threads), EPOCHS
    else:
        predict, epochs = svm(train), 1
    trained = time.perf_counter()
    labels = predict(test[1])
    ended = time.perf_counter()
    figures = {
        "epochs": epochs,
        "train_rate": epochs * len(train[0]) / (trained - began),
        "predict_rate": len(labels) / (ended - trained),
        "seconds": ended - began,
        "accuracy": sum(label == predicted for label, predicted in zip(test[0], labels)) / len(labels),
    }
    print(json.dumps(figures))


def fasttext(path: Path, threads: int) -> Callable[[list[str]], list[str]]:
    """Train fastText. The time includes reading the file, twice."""
    import fasttext

    settings = {"minn": 2, "maxn": 6, "dim": 16, "epoch": EPOCHS, "lr": 0.5, "verbose": 0}
    model = fasttext.train_supervised(str(path), thread=threads, **settings)
    return lambda texts: [labels[0] for labels in model.predict(texts)[0]]


def svm(train: Texts) -> Callable[[list[str]], Any]:
    """Train a linear SVM on TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    vectors = TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(1, 5), min_df=2)
    model = make_pipeline(vectors, LinearSVC(C=0.5)).fit(train[1], train[0])
    return lambda texts: model.predict(texts)


def read(path: Path) -> Texts:
    """Read the labels and texts of a file."""
    lines = [line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    return [label for label, _ in lines], [text for _, text in lines]


if __name__ == "__main__":
    main()
