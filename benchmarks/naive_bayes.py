"""Naive Bayes, the ten lines that a network has to beat, on the texts that a network reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.dataset import Dataset, Part
from crepe_dist.errors import UserError


def trained(dataset: Dataset) -> dict[str, Any]:
    """Pipelines of scikit-learn, trained on the part train: multinomial, Laplace smoothing, on counts of words, and of
    groups of four characters that go over word boundaries."""
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.naive_bayes import MultinomialNB
        from sklearn.pipeline import make_pipeline
    except ModuleNotFoundError as error:
        raise UserError("scikit-learn is not installed", remedy="uv run --group comparison …") from error
    part = dataset.parts["train"]
    texts = shown(part, dataset.encoding)
    counts = {
        "naive Bayes, words": CountVectorizer(lowercase=False),
        "naive Bayes, 4 characters": CountVectorizer(lowercase=False, analyzer="char", ngram_range=(4, 4)),
    }
    return {name: make_pipeline(each, MultinomialNB()).fit(texts, part.labels) for name, each in counts.items()}


def shown(part: Part, encoding: Encoding) -> list[str]:
    """The texts, as far as their codes show them."""
    return [encoding.decode(codes) for codes in part.codes(np.arange(len(part)))]
