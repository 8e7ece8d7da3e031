"""Several labels per row, and soft labels: read from every format, and trained by every engine."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

import crepe_dist
from crepe_dist.data.batch import pack_batch
from crepe_dist.data.dataset import open_dataset
from crepe_dist.data.targets import MULTILABEL, PROB_SCALE, SINGLE_LABEL, SOFT, Targets, open_targets
from crepe_dist.errors import UserError
from crepe_dist.model.loss import MAX_MULTILABEL_RATIO, Loss
from crepe_dist.native.library import supported_builds
from crepe_dist.networks.paper.config import PaperConfig
from tests.conftest import write_frame
from tests.helpers import reference
from tests.helpers.engines import initial, learnt, sized

SETS = [["good", "new"], ["bad"], [], ["bad", "new"], ["good"]] * 8
TEXTS = [f"{' '.join(names) or 'neither'} text number {row}" for row, names in enumerate(SETS)]
ALL: Any = {"test": 0.0, "feature_len": 123}
NAMES = ["bad", "good", "new"]


def shares_of(folder):
    data = open_dataset(folder)
    targets = data.splits["train"].targets
    return data, targets.label_probs(np.arange(len(data.splits["train"])))


def expected(sets):
    return np.array([[name in each for name in NAMES] for each in sets], np.float32)


@pytest.mark.parametrize(
    "form", ["json.csv", "json.xlsx", "columns.csv", "bare.csv", "jsonl", "parquet", "columns.parquet"]
)
def test_every_table_may_have_several_labels(tmp_path, form):
    flags: Any = {"labels": "multilabel"}
    frame: Any = pd.DataFrame({"label": SETS, "text": TEXTS})
    if "columns" in form or form == "bare.csv":
        frame = pd.DataFrame(
            {"text": TEXTS, **{name: expected(SETS)[:, i].astype(int) for i, name in enumerate(NAMES)}}
        )
        flags = {"label_columns": ["2", "3", "4"] if form == "bare.csv" else NAMES}
    elif form.startswith("json."):
        frame = frame.assign(label=[json.dumps(each) for each in SETS])
    crepe_dist.prepare(write_frame(frame, tmp_path / f"table.{form}"), tmp_path / "out", **flags, **ALL)
    data, shares = shares_of(tmp_path / "out")
    assert data.manifest["labels"] == {"kind": "several", "most": 2}
    assert len(data.classes) == 3
    if form != "bare.csv":
        assert data.classes == NAMES
        np.testing.assert_array_equal(shares, expected(SETS))
        np.testing.assert_array_equal(data.class_counts(), expected(SETS).sum(axis=0))
    assert sorted(shares.sum(axis=1)) == sorted(map(len, SETS))


def test_lines_of_fasttext(tmp_path):
    lines = [" ".join([*(f"__label__{name}" for name in each), text]) for each, text in zip(SETS, TEXTS)]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    crepe_dist.prepare(tmp_path / "train.txt", tmp_path / "out", labels="multilabel", **ALL)
    _, shares = shares_of(tmp_path / "out")
    np.testing.assert_array_equal(shares, expected([each for each in SETS if each]))
    with pytest.raises(UserError, match="rows are invalid") as caught:
        crepe_dist.prepare(tmp_path / "train.txt", tmp_path / "one", **ALL)
    assert 'labels="multilabel"' in caught.value.remedy
    (tmp_path / "single.txt").write_text("".join(f"__label__{i % 2} text {i}\n" for i in range(9)))
    crepe_dist.prepare(tmp_path / "single.txt", tmp_path / "single", **ALL)
    assert open_dataset(tmp_path / "single").label_kind == SINGLE_LABEL


def test_soft_labels_are_shares_that_sum_to_one(tmp_path):
    votes = {"a": [3, 0, 1] * 5, "b": [1, 2, 1] * 5, "c": [0, 0, 1] * 5}
    table: Any = {"text": [f"text {row}" for row in range(15)], **votes}
    crepe_dist.prepare(table, tmp_path / "out", labels="soft", label_columns=["a", "b", "c"], **ALL)
    data, shares = shares_of(tmp_path / "out")
    wanted = np.array([[0.75, 0.25, 0], [0, 1, 0], [1 / 3] * 3])
    np.testing.assert_allclose(shares[:3], wanted, atol=1 / PROB_SCALE)
    assert data.splits["train"].labels[:3].tolist() == [0, 1, 0]
    labels: Any = [{"a": 0.75, "b": 0.25}, "b", {"a": 1, "b": 1, "c": 1}] * 5
    crepe_dist.prepare({"text": table["text"], "label": labels}, tmp_path / "same", labels="soft", **ALL)
    np.testing.assert_array_equal(shares_of(tmp_path / "same")[1], shares)


@pytest.mark.parametrize(
    ("given", "flags", "what"),
    [
        ({"label": SETS}, {}, "has no valid row"),
        ({"x": [2] * 40, "y": [1] * 40}, {"label_columns": ["x", "y"]}, "has no valid row"),
        ({"x": [2] * 40, "y": [1] * 40}, {"label_columns": ["x"]}, "two different columns"),
        ({"x": [2] * 40, "y": [1] * 40}, {"label_columns": ["x", "z"]}, "no column 'z'"),
        ({"x": [0] * 40, "y": [1] * 40}, {"labels": "single", "label_columns": ["x", "y"]}, "cannot be combined"),
        ({"x": [1e308] * 40, "y": [1e308] * 40}, {"labels": "soft", "label_columns": ["x", "y"]}, "large"),
        ({"x": [0] * 40, "y": [-1] * 40}, {"labels": "soft", "label_columns": ["x", "y"]}, "unusable"),
    ],
)
def test_what_cannot_be_prepared(tmp_path, given, flags, what):
    with pytest.raises(UserError, match=f"(?s){what}"):
        crepe_dist.prepare({"text": TEXTS, **given}, tmp_path / "no", **flags, **ALL)


def some_targets(kind: str, rows: int, classes: int) -> Targets:
    generator = np.random.default_rng(3)
    pairs = np.zeros((rows, 3, 2), np.uint16)
    pairs[..., 0] = [generator.permutation(classes)[:3] for _ in range(rows)]
    if kind == MULTILABEL:
        pairs[..., 1] = generator.integers(0, 2, (rows, 3)) * PROB_SCALE
        pairs[0, :, 1] = 0
    else:
        pairs[..., 1] = [[40000, 20000, 5535], [PROB_SCALE, 0, 0], [1, PROB_SCALE - 1, 0]] * (rows // 3)
    return Targets(kind, pairs, classes)


PAPER = PaperConfig(69, 123, 5, 8, 16, 0.0)
CREPE = sized(blocks=1)
ENGINES = [
    *((name, shape) for name in supported_builds() for shape in (CREPE, PAPER, CREPE.ngram_config)),
    (None, PAPER),
]


@pytest.mark.usefixtures("every_build")
@pytest.mark.parametrize("kind", [SINGLE_LABEL, MULTILABEL, SOFT])
@pytest.mark.parametrize(("name", "shape"), ENGINES, ids=str)
def test_the_gradients_are_those_of_the_reference(name, shape, kind):
    rows = 6
    targets = None if kind == SINGLE_LABEL else some_targets(kind, rows, shape.num_classes).bytes(np.arange(rows))
    objective = Loss(0.1, tuple(1 + 0.5 * n for n in range(shape.num_classes)), kind, 0 if kind == SINGLE_LABEL else 3)
    generator = np.random.default_rng(2)
    codes = generator.integers(0, shape.alphabet_size, (rows, shape.feature_len)).astype(np.uint8)
    half = np.full((rows, 3), [0, 128, 0], np.uint8)
    batch = pack_batch(codes, np.arange(rows, dtype=np.int32) % 5, rows + 1, rows, weights=half, targets=targets)
    network = initial(shape, seed=1)
    loss, wanted = reference.learnt(shape, network.values, batch, objective, seed=1)
    found = learnt(network.opened(name, objective=objective), batch)
    assert found.pop("loss") == pytest.approx(loss, rel=1e-5)
    for parameter, array in wanted.items():
        np.testing.assert_allclose(found[parameter], array, rtol=2e-3, atol=1e-4 * np.abs(array).max() + 1e-9)


@pytest.mark.usefixtures("every_build")
@pytest.mark.parametrize(("name", "shape"), ENGINES, ids=str)
def test_a_heavy_class_leaves_the_others_their_gradients(name, shape):
    """Applies to several labels, because only the gradients of the heavy class's own logit grow with its weight."""
    rows, codes = 60, np.random.default_rng(2).integers(0, shape.alphabet_size, (60, shape.feature_len))
    targets, whole = some_targets(MULTILABEL, rows, shape.num_classes), np.full((rows, 3), [0, 0, 1], np.uint8)
    batch = pack_batch(
        codes.astype(np.uint8), np.zeros(rows, np.int32), rows, rows, 0, whole, targets.bytes(np.arange(rows))
    )
    found = []
    for heavy in (1, MAX_MULTILABEL_RATIO):
        objective = Loss(0.0, (heavy, *[1.0] * (shape.num_classes - 1)), MULTILABEL, 3)
        found.append(learnt(initial(shape, seed=1).opened(name, objective=objective), batch))
    for (key, expected), got in zip(found[0].items(), found[1].values()):
        if "convolution" not in key and shape.num_classes in expected.shape:
            (others, same) = (np.delete(each, 0, each.shape.index(shape.num_classes)) for each in (expected, got))
            assert np.linalg.norm(same - others) < 0.02 * np.linalg.norm(others), key


IMPOSSIBLE = [
    (MULTILABEL, 5, PROB_SCALE),
    (MULTILABEL, 65535, 0),
    (SOFT, 0, PROB_SCALE - 1),
    (SOFT, 9, PROB_SCALE),
]


@pytest.mark.parametrize(("kind", "pair", "share"), IMPOSSIBLE)
def test_targets_that_cannot_be_are_refused(tmp_path, kind, pair, share):
    np.save(tmp_path / "train.targets.npy", np.array([[[pair, share]]], np.uint16))
    with pytest.raises(ValueError, match=r"classes that do not exist|sum is not 1"):
        open_targets(tmp_path, "train", 1, kind, 1, 5)
    np.save(tmp_path / "train.targets.npy", np.array([[[4, PROB_SCALE]]], np.uint16))
    assert open_targets(tmp_path, "train", 1, kind, 1, 5).class_mass().tolist() == [0, 0, 0, 0, 1]
