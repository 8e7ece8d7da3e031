"""Files of runs that earlier versions of the package have written."""

import json

import numpy as np
import pytest

from crepe_dist.files.json_file import write_json
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.runs.scores import BINS, FORMER_KEYS, MultilabelScores
from crepe_dist.sealed_json import rename_keys, write_sealed_json


@pytest.fixture
def scores():
    return MultilabelScores(
        documents=2,
        loss=0.5,
        confusion_counts=np.array([[1, 0, 1]]),
        average_precision=np.ones(1),
        thresholds=np.full(1, 0.5),
        reliability=np.zeros((BINS, 3), np.int64),
        is_correct=np.array([True, False]),
        selective_counts=np.array([[[3, 2]]]),
    )


def test_scores_with_the_former_keys_are_read(tmp_path, scores):
    former_names = {name: former for former, name in FORMER_KEYS.items()}
    splits = {"test": rename_keys(scores.to_dict(), former_names)}
    assert {"decisions", "right", "sure"} < splits["test"].keys()
    write_sealed_json(tmp_path / "a.scores.json", 4, {"several": True, "splits": splits})
    read = checkpoint.read_scores(tmp_path / "a.params")["test"]
    assert json.dumps(read.to_dict()) == json.dumps(scores.to_dict())


@pytest.mark.parametrize("version", checkpoint.FORMER_FORMATS)
def test_the_metadata_of_a_former_checkpoint_are_read(tmp_path, version):
    (tmp_path / "a.params").write_bytes(b"")
    checksum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    sizes = {"longest": 6, "buckets": 64, "letters": 36, "words": 16, "reach": 5, "rows": 32, "width": 8}
    former = {"sha256": checksum, "encoding": {}, "classes": ["a"], "computed": {"device": "cpu(0)"}}
    write_json(tmp_path / "a.json", {"format": version, **former, "network": {"kind": "crepe", **sizes}})
    metadata = checkpoint.read_metadata(tmp_path / "a.params")
    assert metadata is not None
    assert metadata["numerics"] == {"device": "cpu(0)"}
    assert "computed" not in metadata
    ngrams = {"maxn": 6, "buckets": 64, "num_word_char_ids": 36, "word_buckets": 16}
    assert metadata["network"] == {"kind": "crepe", **ngrams, "embedding_maxn": 5, "embedding_rows": 32, "width": 8}


def test_the_result_of_a_former_run_with_unlabelled_texts_is_read(tmp_path):
    figures = {"texts": 5, "first": {"loss": 0.1}, "student": {"loss": 0.2}, "reported": "first network"}
    values = {"checkpoint": "checkpoints/a.params", "provenance": {"unlabelled": figures}}
    write_sealed_json(tmp_path / "result.json", checkpoint.RESULT_FORMAT, values)
    result = checkpoint.read_result_file(tmp_path)
    assert result is not None
    unlabelled = result["provenance"]["unlabelled"]
    assert unlabelled == {
        "texts": 5,
        "supervised": {"loss": 0.1},
        "student": {"loss": 0.2},
        "reported": checkpoint.SUPERVISED,
    }
    (tmp_path / "first").mkdir()
    assert RunDir(tmp_path).supervised.path == tmp_path / "first"
