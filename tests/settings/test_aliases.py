"""Old names of flags, settings and values: accepted, refused, or read from files, and never in the help."""

import json
import pickle
import re
from typing import Any

import pytest

import crepe_dist
from crepe_dist.commands.drift import Drift
from crepe_dist.commands.evaluate import Evaluate
from crepe_dist.commands.export import Export
from crepe_dist.commands.inspect import Inspect
from crepe_dist.commands.prepare import Prepare
from crepe_dist.distributed.endpoint import read_time_limit
from crepe_dist.errors import UserError
from crepe_dist.runs.run_dir_selection import select_run_dir_on_rank0
from crepe_dist.settings import config

ACCEPTED = {
    "--embeddings=1024": "--embedding-rows=1024",
    "--choose=macro_f1": "--metric-for-best-model=macro_f1",
    "--encoder=wordllama": "--sentence-encoder=wordllama",
    "--kernels=own": "--kernels=native",
}
OLD_FILE = """
model: {network: crepe, embeddings: 1024, kernels: own}
training: {choose: macro_f1, encoder: wordllama}
checkpoint: {every: 4}
"""


@pytest.mark.parametrize(("old", "new"), ACCEPTED.items())
def test_train_accepts_old_flags_and_values(old, new):
    assert config.parse([old]) == config.parse([new])
    assert config.parse(old.split("=")) == config.parse([new])


@pytest.mark.parametrize("flag", ["--checkpoint.every"])
def test_train_refuses_flags_that_misled(flag):
    with pytest.raises(UserError, match=rf"{flag} is now called --state\.save") as caught:
        config.parse([flag, "4"])
    assert caught.value.remedy.startswith("pass --state.save")


def test_python_refuses_the_same_settings(tmp_path):
    with pytest.raises(UserError, match="is now called"):
        config.merge_settings({"checkpoint.every": 4})
    (tmp_path / "manifest.json").write_text("{}")
    for name in ("checkpoint.every", "choose", "embeddings"):
        options: Any = {name: 4}
        with pytest.raises(UserError) as caught:
            crepe_dist.fit(tmp_path, **options)
        assert ("is now called" in caught.value.what) == (name == "checkpoint.every")
        assert "no option" not in caught.value.what


def test_settings_of_earlier_files_are_read(tmp_path):
    (tmp_path / "old.yaml").write_text(OLD_FILE)
    found = config.parse(["--config", str(tmp_path / "old.yaml")])
    assert found == config.parse([*ACCEPTED.values(), "--state.save-steps=4"])
    for double in ("model: {embeddings: 4, embedding_rows: 4}", "checkpoint: {every: 4}\nstate: 5"):
        (tmp_path / "double.yaml").write_text(double)
        with pytest.raises(UserError, match="two names of one setting"):
            config.parse(["--config", str(tmp_path / "double.yaml")])


def test_a_run_is_found_by_the_old_names_of_its_settings(tmp_path):
    key = {**config.parse([*ACCEPTED]).run_key(), "data": "fingerprint"}
    (tmp_path / "run.json").write_text(json.dumps(key))
    flags = [*ACCEPTED.values(), f"--run-dir={tmp_path}"]
    assert select_run_dir_on_rank0(config.parse(flags), "data", "fingerprint").path == tmp_path
    with pytest.raises(UserError) as caught:
        select_run_dir_on_rank0(config.parse([*flags, "--embedding-rows=2048"]), "data", "fingerprint")
    assert caught.value.why == "different: model.embedding_rows 1024 → 2048"
    del key["batches"]
    (tmp_path / "run.json").write_text(json.dumps(key))
    with pytest.raises(UserError, match="was started by another version"):
        select_run_dir_on_rank0(config.parse(flags), "data", "fingerprint")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("export", "run", "--size", "2"), "--size is now called --max-size-mb"),
        (("predict", "run", "--score=good"), "--score is now called --score-class"),
        (("inspect", "data", "--next", "0"), "--num-suggestions is 0"),
        (("drift", "run", "new.csv", "--least", "9"), "--min-effect is 9"),
        (("prepare", "a.csv", "--labels", "one", "--label-separator", ";", "--out", "b"), "--labels single cannot be"),
        (("prepare", "a.csv", "--labels", "several", "--stratified", "--out", "b"), "--labels multilabel cannot be"),
        (
            ("prepare", "classes", "--text", "x", "--alphabet", "usual", "--out", "b"),
            "classes does not exist",
        ),
        (("evaluate", "run", "--text", "x"), "--text-column has no effect"),
    ],
)
def test_commands_know_old_flags(words, said, tmp_path, complaint):
    assert said in complaint(*words, cwd=tmp_path)


def test_the_help_has_no_old_names():
    parsers = [command.parser() for command in (Drift, Evaluate, Export, Inspect, Prepare)]
    for parser in (*parsers, config.parser()):
        told, known = parser.format_help(), parser.flags()
        for old in parser.aliases.keys() - set(known):
            assert not re.search(rf"{old}(?![-\w])", told)
        assert not re.search(r"\b(own|usual|several):", told)


def test_the_old_variable_sets_the_time_limit():
    old, new = "CREPE_DIST_MEETING_SECONDS", "CREPE_DIST_RENDEZVOUS_SECONDS"
    assert [read_time_limit(given) for given in ({}, {old: "7"}, {old: "7", new: "8"})] == [300, 7, 8]


def test_the_estimator_takes_length_and_reads_earlier_pickles():
    pytest.importorskip("sklearn")
    from sklearn.base import clone

    from crepe_dist.estimator.classifier import CrepeClassifier

    estimator = CrepeClassifier(length=40)  # type: ignore[call-arg]
    assert estimator.max_length == 40
    assert clone(estimator).get_params()["max_length"] == 40
    assert estimator.set_params(length=50).max_length == 50
    state = estimator.__getstate__()
    state["length"] = state.pop("max_length")
    restored = CrepeClassifier.__new__(CrepeClassifier)
    restored.__setstate__(state)
    assert pickle.loads(pickle.dumps(restored)).get_params() == estimator.get_params()
    with pytest.raises(ValueError, match="Invalid parameter 'width'"):
        CrepeClassifier(width=3)  # type: ignore[call-arg]
