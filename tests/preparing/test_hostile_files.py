"""Hostile files cause a clear error or a valid result. Nothing is executed, and memory and time are bounded."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crepe_dist.data.dataset import open_dataset
from crepe_dist.networks.paper.config import PaperConfig
from crepe_dist.runs import checkpoint
from tests.chaos.harness import slow
from tests.conftest import FEATURE_LEN
from tests.helpers.engines import initial
from tests.helpers.hostile import CASES, GOOD_CSV

MEGABYTES = 300  # more than the process has with everything imported
SECONDS = 40  # of processor time, of the slowest; these machines are shared
# These cases run first, without being watched, because they import and compile what any use needs.
USUAL = (
    ("predict", ("run", "--text", "x")),
    ("evaluate", ("run", "--data", "data")),
    ("prepare", ("good.csv", "--out", "out-1", "--feature-len", "123")),
    ("prepare", ("good.parquet", "--out", "out-2", "--feature-len", "123")),
    ("inspect", ("--help",)),
    ("train", ("--config", "good.yaml")),
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("good")
    (folder / "data").symlink_to(data)
    dataset = open_dataset(data)
    shape = PaperConfig(dataset.encoder.num_ids, FEATURE_LEN, 3, filters=8, units=8)
    arrays = initial(shape).values
    about: dict[str, Any] = {"epoch": 0, "test_accuracy": 0.5, "encoding": dataset.encoder.to_dict()}
    about["composition"] = dataset.preprocessor.to_dict()
    about |= {"classes": dataset.classes, "network": shape.settings()}
    checkpoint.write_checkpoint(folder / "run", arrays, about)
    (folder / "good.csv").write_bytes(GOOD_CSV)
    pq.write_table(
        pa.table({"label": ["a", "b"] * 50, "text": [f"text {i}" for i in range(100)]}), folder / "good.parquet"
    )
    (folder / "good.yaml").write_text("data: {source: nowhere}\n")  # an error once everything is imported
    return folder


@pytest.fixture(scope="module")
def answers(
    good: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, dict[str, Any]]:
    """Return the outcome of each selected case. One process runs all cases, because importing MXNet is slow."""
    root = tmp_path_factory.mktemp("hostile")
    selected = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    wanted = [name for name in CASES if name in selected]
    cases = [
        {"name": f"usual {i}", "command": name, "arguments": arguments, "cwd": str(good), "measured": False}
        for i, (name, arguments) in enumerate(USUAL)
    ]
    for number, (name, case) in enumerate((name, CASES[name]) for name in wanted):
        folder = root / str(number)
        folder.mkdir()
        (folder / "evil_module.py").write_text("import os\nos.mkdir('OWNED')\n")
        case.build(folder, good)
        about = {"name": name, "command": case.command, "arguments": case.arguments, "cwd": str(folder)}
        cases.append({**about, "measured": True, "limits": case.limits})
    file = root / "cases.json"
    file.write_text(json.dumps(cases))
    command = [sys.executable, "-m", "tests.helpers.watched", str(file)]
    here = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=here, stdout=subprocess.PIPE, text=True, check=False, timeout=280)
    found = {each["name"]: each for each in map(json.loads, done.stdout.splitlines())}
    missing = [name for name in wanted if name not in found]
    assert not missing, f"the process ended ({done.returncode}) at {missing[0]!r}"
    for name, answer in found.items():
        answer["owned"] = name in wanted and any((root / str(wanted.index(name))).rglob("OWNED"))
    return found


@pytest.mark.parametrize("name", [slow(name) if case.is_slow else name for name, case in CASES.items()])
def test_a_hostile_file_does_no_harm(name, answers):
    case, answer = CASES[name], answers[name]
    assert not answer["owned"]
    assert answer["seen"] == []
    said = answer["out"] if case.fine else answer["err"]
    assert answer["code"] == (0 if case.fine else 1), answer
    if not case.fine:
        assert re.search("^error: ", said, re.MULTILINE)
    assert re.search(case.complaint, said), said
    assert "Traceback" not in answer["err"]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", answer["out"] + answer["err"])
    assert answer["megabytes"] < MEGABYTES
    assert answer["seconds"] < SECONDS


def test_the_usual_works(answers):
    for number in range(len(USUAL) - 1):
        assert answers[f"usual {number}"]["code"] == 0, answers[f"usual {number}"]
