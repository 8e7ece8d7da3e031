"""Baselines from scikit-learn, trained on the same texts as the network."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.dataset import Dataset, Split
from crepe_dist.errors import UserError


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


def shown(split: Split, encoding: Encoding) -> list[str]:
    """Decode the texts of a split from their codes."""
    return [encoding.decode(codes) for codes in split.codes(np.arange(len(split)))]
