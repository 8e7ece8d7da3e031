"""The scripts in examples/, run as their docstrings say, on small data."""

import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import crepe_dist
from tests.conftest import QUICK, run, train, write_csv, write_rows

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TOLERANCE = 1e-5  # The order of float32 sums differs. No difference was seen in the six printed decimals.
pytestmark = pytest.mark.usefixtures("one_thread")
QUICKEST = ("--filters=16", "--units=32", "--dropout=0", "--batch-size=50", "--epochs=2", "--log-every=1")


def example(name: str, *arguments: object, cwd: Path, processes: int = 0) -> str:
    """Run an example. Several processes are started by horovodrun."""
    launcher = ["horovodrun", "-np", str(processes)] if processes else []
    printed = run([*launcher, sys.executable, str(EXAMPLES / name), *map(str, arguments)], cwd)
    assert "Traceback" not in printed
    assert "shut down" not in printed  # MXNet prints this text if Horovod ends first.
    return printed


def losses(printed: str) -> list[float]:
    return [float(found) for found in re.findall(r"step \d+ loss (\S+)", printed)]


class TestHorovodCrepe:
    def test_two_processes_compute_what_one_does(self, data, tmp_path):
        """Adam would hide a gradient that is wrong by a factor, so SGD is used. The last batch has one document."""
        printed, arrays = [], []
        for processes in (0, 2):
            run_dir = tmp_path / f"run-{processes}"
            settings = ("--data", data, "--run-dir", run_dir, "--optimizer=sgd", "--learning-rate=0.01", *QUICKEST)
            printed.append(example("horovod_crepe.py", *settings, cwd=tmp_path, processes=processes))
            assert len(list(run_dir.glob("checkpoints/*.params"))) == 2
            (last,) = run_dir.glob("checkpoints/crepe_epoch_2_*.params")
            arrays.append(crepe_dist.load(last).engine.arrays)
        alone, group_size = map(losses, printed)
        assert len(alone) == 14
        assert group_size == pytest.approx(alone, abs=TOLERANCE)
        for name, array in arrays[0].items():
            np.testing.assert_allclose(arrays[1][name], array, atol=TOLERANCE)


def test_finetune(data, tmp_path):
    """A network trained on three classes is finetuned on two. From random parameters, the steps are too few.

    With every build of the kernels: 97 % or more after one epoch, and 43 % until the third, of random parameters.
    """
    learning = ("--optimizer=adam", "--learning-rate=0.001", "--batch-size=25")
    widths = ("--model=paper", "--epochs=12")
    train("--data", data, "--run-dir", tmp_path / "base", *QUICK, *learning, *widths)
    write_csv(tmp_path / "two.csv", 150, seed=7, classes=2)
    printed = example("finetune.py", "base", "two.csv", "--epochs=2", cwd=tmp_path)
    assert "the rest new, because its classes differ" in printed
    finetuned, fresh = (float(share) for share in re.findall(r"^from .*: test accuracy (\S+)%", printed, re.MULTILINE))
    assert finetuned > 90
    assert fresh < 80
    assert crepe_dist.load(tmp_path / "runs" / "finetune" / "finetuned").classes == ["1", "2"]


def test_notebook(tmp_path):
    generator = random.Random(5)
    rows = [(label, generator.choice(label) * generator.randint(60, 140)) for label in ("abc", "xyz") * 100]
    write_rows(tmp_path / "letters.csv", [("label", "text"), *rows])
    text = "xyz" * 40
    settings = ("--feature-len=123", "--filters=32", "--units=64", "--dropout=0", "--batch-size=10", "--epochs=4")
    printed = example("notebook.py", "letters.csv", *settings, "--learning-rate=0.05", "--text", text, cwd=tmp_path)
    accuracies = [float(share) for share in re.findall(r"Test_acc (\S+),", printed)]
    assert len(accuracies) == 4
    assert accuracies[-1] > 0.9
    (saved,) = tmp_path.glob("crepe_epoch_3_test_acc_*.params")
    predictor = crepe_dist.load(saved, classes=["abc", "xyz"], feature_len=123)
    (prediction,) = predictor.predict([text])
    assert f"Predicted: {prediction.label}\n" in printed
    shares = {label: float(share) for label, share in re.findall(r"^(abc|xyz) (\S+)%$", printed, re.MULTILINE)}
    # `load` may compute in bfloat16
    assert shares == pytest.approx({label: 100 * share for label, share in prediction.ranking}, abs=2)
