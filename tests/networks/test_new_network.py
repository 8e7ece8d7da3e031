"""A new network, added by one package and one line in the registry, is trained, resumed, used and exported."""

import pytest

import crepe_dist
from crepe_dist import network_registry
from crepe_dist.exporting import exporter
from crepe_dist.runs import checkpoint
from tests.chaos import harness
from tests.exporting.test_export import texts

NETWORK = ("--model=bag", "--learning-rate=0.02")


def train(run_dir, data, fault=None):
    return harness.run(
        harness.command(run_dir, data, 1, *NETWORK, module="tests.helpers.with_bag"), run_dir.parent, fault
    )


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory, one_thread):
    """Checkpoint of an uninterrupted run on one process."""
    run_dir = tmp_path_factory.mktemp("bag") / "run"
    code, printed = train(run_dir, data)
    assert code == 0, printed
    assert "a bag of characters" in printed
    return run_dir


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(network_registry.NETWORKS, "bag", "tests.helpers.bag")


def test_it_resumes_to_the_same_bits(data, trained, tmp_path, registered):
    fault = {"kind": "SIGKILL", "rank": 0, "phase": "train", "step": 17, "once": str(tmp_path / "killed")}
    code, printed = train(tmp_path / "run", data, fault)
    assert code != 0, printed
    code, printed = train(tmp_path / "run", data)
    assert code == 0, printed
    harness.assert_same(tmp_path / "run", trained)


@pytest.mark.parametrize("form", ["onnx", "crepe"])
def test_it_is_exported(form, trained, tmp_path, registered):
    path = checkpoint.resolve_model(str(trained))
    predictor = crepe_dist.load(path, device="cpu")
    files, difference = exporter.export(predictor, form, tmp_path / "out", texts(40))
    assert files
    assert difference < 1e-5
