"""Defaults of a run: the number of epochs for the amount of text, and label smoothing for Crepe."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from crepe_dist import network_registry
from crepe_dist.data.dataset import Dataset
from crepe_dist.data.targets import MULTILABEL, SINGLE_LABEL, SOFT, Targets
from crepe_dist.model.loss import create_loss
from crepe_dist.networks.ngrams.init import table_lr_mult
from crepe_dist.settings.config import parse
from crepe_dist.settings.options import reference_steps
from crepe_dist.training.training_data import resolve_epochs


def data(rows: int, length: int, validation: int = 0, labelled: str = SINGLE_LABEL) -> Dataset:
    """Stand-in of a data set with the requested number of rows."""
    parts = {"train": range(rows), **({"validation": range(validation)} if validation else {})}
    about = {"splits": parts, "label_kind": labelled, "encoder": SimpleNamespace(feature_len=length)}
    return cast(Dataset, SimpleNamespace(**about, unlabelled=None))


@pytest.mark.parametrize(
    ("rows", "length", "epochs", "paper"),
    [
        (1, 1, 20, 20), (1000, 256, 8, 20), (3200, 256, 8, 15), (17_000, 256, 3, 5), (22_500, 4092, 3, 5),
        (200_000, 1000, 2, 3), (101, 10**6, 3, 5),
    ],
)  # fmt: skip
def test_few_documents_need_more_epochs_and_much_text_needs_fewer(rows, length, epochs, paper):
    settled = resolve_epochs(parse([]), data(rows, length))
    assert settled.training.num_epochs == epochs
    assert replace(settled, training=parse([]).training) == parse([])
    assert resolve_epochs(parse(["--model=paper"]), data(rows, length)).training.num_epochs == paper
    assert resolve_epochs(parse(["--epochs=7"]), data(rows, length)).training.num_epochs == 7


@pytest.mark.parametrize(
    ("flags", "validation", "labelled", "patience"),
    [
        ([], 200, SINGLE_LABEL, 2),
        ([], 199, SINGLE_LABEL, 0),  # too few to tell an improvement from chance
        ([], 0, SINGLE_LABEL, 0),
        ([], 200, SOFT, 2),
        ([], 200, MULTILABEL, 0),
        (["--model=ngrams"], 200, SINGLE_LABEL, 2),
        (["--model=paper"], 200, SINGLE_LABEL, 0),  # it may stay at chance for some epochs
        (["--epochs=9"], 200, SINGLE_LABEL, 0),  # as many as were asked for
        (["--patience=0"], 200, SINGLE_LABEL, 0),
        (["--patience=5", "--epochs=9"], 20, SINGLE_LABEL, 5),
    ],
)
def test_training_stops_early_where_the_validation_split_can_tell(flags, validation, labelled, patience):
    derived = resolve_epochs(parse(flags), data(3600, 256, validation, labelled))
    assert derived.training.patience == patience
    assert resolve_epochs(derived, data(3600, 256, validation, labelled)) == derived


@pytest.mark.parametrize(("rows", "epochs", "multiple"), [(64, 1, 1), (64 * 300, 5, 1), (64 * 1500, 4, 0.5)])
def test_the_n_gram_table_learns_more_slowly_in_long_trainings(rows, epochs, multiple):
    assert {table_lr_mult(epochs * reference_steps(rows, batch_size)) for batch_size in (64, 4096)} == {multiple}


@pytest.mark.parametrize(("kind", "smoothing"), [("crepe", 0.1), ("ngrams", 0.0), ("paper", 0.0)])
def test_labels_are_smoothed_for_crepe(kind, smoothing):
    shape: Any = network_registry.import_network_module(kind, "config").CONFIG_CLASS
    one_label = cast(
        Dataset, SimpleNamespace(splits={"train": SimpleNamespace(targets=Targets(SINGLE_LABEL, np.zeros(1), 2))})
    )
    assert create_loss(parse([]).training, one_label, shape).smoothing == smoothing
