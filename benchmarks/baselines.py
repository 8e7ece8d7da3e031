"""scikit-learn's models, also on vectors of sentence encoders, and fastText, trained on the texts of the network."""

from __future__ import annotations

import functools
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import encoders
import numpy as np
import numpy.typing as npt

from crepe_dist import machine
from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.dataset import Dataset, Split
from crepe_dist.errors import UserError

FEW = 30_000  # rows up to which 100 epochs are worth a try; with more, fewer epochs do


def trained(dataset: Dataset, kind: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the name and pipeline of each baseline whose name starts with ``kind``, trained on the train split.

    Naive Bayes is multinomial with Laplace smoothing. It counts words, or character 4-grams across word boundaries. The
    linear SVM has squared hinge loss (C = 0.5) and reads sublinear TF-IDF: of words and word pairs, or of character
    1- to 5-grams within words that occur in at least two documents.
    """
    try:
        from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
        from sklearn.naive_bayes import MultinomialNB
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import LinearSVC
    except ModuleNotFoundError as error:
        here = shlex.join(["uv", "run", "--group", "comparison", *sys.argv])
        raise UserError("scikit-learn is not installed", "only the group comparison has it", here) from error
    split = dataset.splits["train"]
    texts = shown(split, dataset.encoding)
    within = {"analyzer": "char_wb", "ngram_range": (1, 5), "min_df": 2}
    for name, steps in {
        "naive Bayes, words": (CountVectorizer(), MultinomialNB()),
        "naive Bayes, 4 characters": (CountVectorizer(analyzer="char", ngram_range=(4, 4)), MultinomialNB()),
        "linear SVM, 1-2 words": (TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)), LinearSVC(C=0.5)),
        "linear SVM, 1-5 characters": (TfidfVectorizer(sublinear_tf=True, **within), LinearSVC(C=0.5)),
    }.items():
        if name.startswith(kind):
            yield name, make_pipeline(*steps).fit(texts, split.labels)


def trained_on_vectors(dataset: Dataset, encoder: str) -> Iterator[tuple[str, Callable[[list[str], Any], float]]]:
    """Yield the name and the score of logistic regressions on the vectors of a pre-trained sentence encoder."""
    from sklearn.linear_model import LogisticRegression

    split = dataset.splits["train"]
    rows = encoders.vectors(encoder, shown(split, dataset.encoding))
    for inverse in (0.3, 3, 30, 300):  # of the penalty
        model = LogisticRegression(C=inverse, max_iter=1000).fit(rows, split.labels)
        yield f"{encoder}, logistic regression, C = {inverse}", functools.partial(_score_vectors, model, encoder)


def _score_vectors(model: Any, encoder: str, texts: list[str], labels: npt.NDArray[np.int32]) -> float:
    return float(model.score(encoders.vectors(encoder, texts), labels))


def trained_fasttext(dataset: Dataset) -> Iterator[tuple[str, Callable[[list[str], Any], float]]]:
    """Yield the name and the score of fastText with a few settings, trained on all cores."""
    for epochs in (5, 25, 100) if len(dataset.splits["train"]) <= FEW else (5, 25):
        for characters in ((0, 0), (2, 6)):
            read = "{}-{} characters".format(*characters) if characters[1] else "1-2 words"
            yield f"fastText, {read}, {epochs} epochs", _fasttext(dataset, characters, epochs)


def _fasttext(
    dataset: Dataset, characters: tuple[int, int], epochs: int
) -> Callable[[list[str], npt.NDArray[np.int32]], float]:
    """Train fastText on the train split; return a function from texts and their labels to the accuracy.

    As its documentation advises, punctuation marks are separate words, and the rows are in random order.
    """
    try:
        import fasttext
    except ModuleNotFoundError as error:
        here = shlex.join(["uv", "run", "--group", "comparison", "--with", "fasttext-wheel", *sys.argv])
        raise UserError("fastText is not installed", "the project does not depend on it", here) from error
    split = dataset.splits["train"]
    texts = shown(split, dataset.encoding)
    lines = [f"__label__{label} {_spaced(text)}\n" for label, text in zip(split.labels.tolist(), texts)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        order = np.random.default_rng(0).permutation(len(lines))
        path.write_text("".join(lines[row] for row in order), encoding="utf-8")
        model = fasttext.train_supervised(
            str(path),
            lr=0.5,
            epoch=epochs,
            dim=10,
            bucket=2_000_000,
            wordNgrams=1 if characters[1] else 2,
            minn=characters[0],
            maxn=characters[1],
            thread=machine.cores(),
            verbose=0,
        )

    def score(texts: list[str], labels: npt.NDArray[np.int32]) -> float:
        predicted = [int(names[0].rpartition("__")[2]) for names in model.predict(list(map(_spaced, texts)))[0]]
        return float(np.mean(labels == np.array(predicted)))

    return score


def _spaced(text: str) -> str:
    return re.sub(r"([^\w ])", r" \1 ", text)


def shown(split: Split, encoding: Encoding) -> list[str]:
    """Decode the texts of a split from their codes."""
    return [encoding.decode(codes) for codes in split.codes(np.arange(len(split)))]
