#!/usr/bin/env python3
"""Measure strong and simple baselines on data sets: a linear SVM of words and characters, and fastText.

    uv run --group comparison benchmarks/baselines.py data/sample data/agnews_part
    uv run --group comparison --with fasttext-wheel benchmarks/baselines.py data/sample --fasttext --ours

The baselines read the same characters as Crepe. The validation split selects the settings. If Crepe reads capital
letters, the settings include whether the baselines read lower case only. A second model is then trained with these
settings on the training and the validation rows, as in a refit.

The script prints figures for the test split, in %:

- the accuracy, whose standard error is sqrt(p (1 - p) / n), the macro F1 and the weighted F1;
- the coverage of selective predictions, and their precision. The threshold is the lowest score that gives the
  predictions for the validation split a precision of 95 %, by Wilson's lower bound.

The times are CPU seconds: first of training the second model and scoring it, then of selecting the settings.
"""

import argparse
import importlib.util
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import accuracy
import numpy as np
import numpy.typing as npt
import pandas as pd

from crepe_dist import command_runner, hardware
from crepe_dist.data import augmentation
from crepe_dist.data.dataset import Dataset, open_dataset
from crepe_dist.errors import UserError
from crepe_dist.model.calibration import PERCENTS, Calibration
from crepe_dist.predicting.loading import load
from crepe_dist.settings.flags import Parser

SVM = [{"C": penalty} for penalty in (0.1, 0.3, 1)]
FASTTEXT = [
    {"epoch": epochs, **read} for epochs in (5, 25, 100) for read in ({"wordNgrams": 2}, {"minn": 2, "maxn": 6})
]
OURS = ("crepe", "ngrams")
PRECISION = 0.95
TEXT, LABEL = "text", "label"  # columns of a table of rows
COLUMNS = "data, model, setting, accuracy, macro F1, weighted F1, answered, right, lower case, capitals, time, choice"
HEADER = f"| {COLUMNS.replace(', ', ' | ')} |\n{'|---' * (COLUMNS.count(',') + 1)}|"
Settings = Sequence[dict[str, Any]]  # arguments of the model


class Answers(NamedTuple):
    """Predicted classes, int64 [n], and their scores, float64 [n]."""

    classes: npt.NDArray[Any]
    scores: npt.NDArray[Any]


Models = Iterator[tuple[dict[str, Any], Callable[[pd.DataFrame], Answers]]]  # settings, and the model with them


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("data", type=Path, nargs="+", metavar="DIR", help="prepared data with a validation split")
    flags.add_argument("--fasttext", action="store_true", help="also train fastText, on all cores")
    flags.add_argument("--ours", action="store_true", help="also train Crepe and the n-gram table")
    options = flags.parse_args()
    rivals = {"linear SVM": svm, **({"fastText": fasttext} if options.fasttext else {})}
    if not all(map(importlib.util.find_spec, ("sklearn", "fasttext")[: len(rivals)])):
        here = shlex.join(["uv", "run", "--group", "comparison", "--with", "fasttext-wheel", *sys.argv])
        raise UserError("scikit-learn or fastText is not installed", "the project does not depend on them", here)
    print(HEADER, flush=True)
    for data in options.data:
        compare(data, rivals, OURS if options.ours else ())


def compare(data: Path, rivals: dict[str, Callable[..., Models]], ours: Sequence[str]) -> None:
    """Print the figures of all models on a data set."""
    dataset = open_dataset(data)
    if "validation" not in dataset.splits:
        raise UserError(f"{data} has no validation split", "it chooses the setting", "prepare with --validation 0.1")
    train, validation, test = (rows_of(dataset, name) for name in ("train", "validation", "test"))
    for network in ours:
        began = _seconds()
        with tempfile.TemporaryDirectory() as folder:
            record, _ = accuracy.train(Path(folder), data, f"--model {network}", 0, 1)
            predictor, split = load(record.path), dataset.splits["test"]
            cased = [augmentation.in_case(split, upper, dataset.encoder) for upper in (False, True)]
            probs = [
                predictor.probabilities(predictor.logits(each.char_ids(np.arange(len(each)))))
                for each in (split, *(cased if dataset.encoder.mark_ids else ()))
            ]
        typed = [Answers(each.argmax(axis=1), each.max(axis=1)) for each in probs]
        least = predictor.calibration.thresholds_for(PRECISION)[-1]
        _print(dataset, network, {}, scored(test, typed, least), _seconds() - began, 0.0)
    cases = (str.lower, str) if dataset.encoder.mode in ("full", "marked") else (str,)
    for name, rival in rivals.items():
        began = _seconds()
        tried = [
            (case, setting, model(in_case(validation, case)))
            for case in cases
            for setting, model in rival(in_case(train, case))
        ]
        case, setting, answers = max(tried, key=lambda each: float((each[2].classes == validation[LABEL]).mean()))
        chosen = _seconds()
        least = threshold(answers, validation)
        _, model = next(rival(in_case(pd.concat([train, validation], ignore_index=True), case), [setting]))
        found = scored(
            test,
            [model(in_case(in_case(test, each), case)) for each in (str, str.lower, str.upper)[: 2 * len(cases) - 1]],
            least,
        )
        shown = {**setting, "lowercase": case is str.lower} if len(cases) > 1 else setting
        _print(dataset, name, shown, found, _seconds() - chosen, chosen - began)


def in_case(rows: pd.DataFrame, case: Callable[[str], str]) -> pd.DataFrame:
    """Apply ``case`` to the texts of a copy of the rows."""
    return rows.assign(**{TEXT: list(map(case, rows[TEXT]))})


def rows_of(dataset: Dataset, name: str) -> pd.DataFrame:
    """Decode a split: the texts and the labels."""
    split = dataset.splits[name]
    texts = list(map(dataset.encoder.decode, split.char_ids(np.arange(len(split)))))
    return pd.DataFrame({TEXT: list(map(str.strip, texts)), LABEL: split.labels})


def threshold(answers: Answers, rows: pd.DataFrame) -> float:
    """Return the lowest threshold with a precision of 95 %, computed like the threshold of a model's calibration."""
    edges = np.quantile(answers.scores, np.arange(PERCENTS) / PERCENTS)
    places, right = np.searchsorted(edges, answers.scores, "right") - 1, answers.classes == rows[LABEL]
    counts = (np.bincount(places, weights, PERCENTS).astype(int) for weights in (None, right))
    try:
        percents = Calibration(answers=tuple(" ".join(map(str, each)) for each in counts)).thresholds_for(PRECISION)
    except UserError:
        return np.inf
    return float(edges[round(100 * percents[-1])])


def scored(rows: pd.DataFrame, typed: Sequence[Answers], least: float) -> list[float]:
    """Compute what ``main`` prints, as fractions.

    Args:
        typed: Answers to the texts, and to the texts in lower case and in capitals if the models distinguish them.
    """
    from sklearn.metrics import f1_score

    true, answers = rows[LABEL], typed[0]
    right, answered = answers.classes == true, answers.scores >= least
    means = [f1_score(true, answers.classes, labels=true.unique(), average=each) for each in ("macro", "weighted")]
    cased = [(each.classes == true).mean() for each in typed[1:]] or [right.mean()] * 2
    return [right.mean(), *means, answered.mean(), right[answered].mean(), *cased]


def svm(rows: pd.DataFrame, settings: Settings = SVM) -> Models:
    """Train linear SVMs on TF-IDF of words and word pairs, and of 2 to 5 characters across words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union
    from sklearn.svm import LinearSVC

    words = {"ngram_range": (1, 2), "min_df": 2}
    characters = {"analyzer": "char", "ngram_range": (2, 5), "min_df": 3, "max_features": 600_000}
    union = make_union(*(TfidfVectorizer(sublinear_tf=True, lowercase=False, **units) for units in (words, characters)))
    vectors = union.fit_transform(rows[TEXT])
    for setting in settings:
        fitted = LinearSVC(random_state=0, **setting).fit(vectors, rows[LABEL])

        def model(others: pd.DataFrame, fitted: LinearSVC = fitted) -> Answers:
            scores = fitted.decision_function(union.transform(others[TEXT]))
            scores = scores if scores.ndim == 2 else np.stack([-scores, scores], axis=1)
            return Answers(fitted.classes_[scores.argmax(axis=1)], scores.max(axis=1))

        yield setting, model


def fasttext(rows: pd.DataFrame, settings: Settings = FASTTEXT) -> Models:
    """Train fastText; as it advises, punctuation marks are separate words, and the rows are in random order."""
    from fasttext import train_supervised

    lines = [f"__label__{label} {text}\n" for label, text in zip(rows[LABEL], _words(rows))]
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.writelines(lines[row] for row in np.random.default_rng(0).permutation(len(lines)))
        file.flush()
        for setting in settings:
            fitted = train_supervised(file.name, lr=0.5, dim=10, thread=hardware.num_cores(), verbose=0, **setting)

            def model(others: pd.DataFrame, fitted: Any = fitted) -> Answers:
                names, scores = fitted.predict(_words(others))
                return Answers(np.array([int(each[0][9:]) for each in names]), np.array(scores)[:, 0])

            yield setting, model


def _words(rows: pd.DataFrame) -> list[str]:
    return [re.sub(r"([^\w ])", r" \1 ", text) for text in rows[TEXT]]


def _seconds() -> float:
    return sum(os.times()[:4])  # of this process, and of those that it started and that have ended


def _print(dataset: Dataset, name: str, setting: dict[str, Any], found: list[float], *seconds: float) -> None:
    shown = " ".join(f"{argument}={value}" for argument, value in setting.items())
    cells = [
        dataset.name,
        name,
        shown,
        *(f"{100 * each:.2f}" for each in found),
        *(f"{each:.0f} s" for each in seconds),
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    command_runner.run(main)
