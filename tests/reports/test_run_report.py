"""Reports of runs, and names in Markdown."""

import errno
import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

import crepe_dist.train
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.exporting.hub import escaped
from crepe_dist.formatting import percent
from crepe_dist.preparing.preparation import prepare
from crepe_dist.preparing.sources import find_sources
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import SplitOptions
from crepe_dist.reports import findings, run_page, score_page
from crepe_dist.runs.record import open_run
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.runs.scores import BINS, MILLION, Mistake, MulticlassScores
from crepe_dist.settings.config import parse
from tests.conftest import FEATURE_LEN, QUICK, needs_kernels, write_rows
from tests.reports.test_data_page import HOSTILE, Page, checked

NAMES = ["<script>alert(1)</script>", "a | b](http://x.example) $y$ `c`", "\x1b[31mred\u202e www.x.example"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set with hostile names and texts, and a run, ``one``."""
    folder = tmp_path_factory.mktemp("reported")
    generator = random.Random(0)
    rows = [("label", "text")]
    for row in range(400):
        text = f"{row} " + "".join(generator.choices("abcdefgh ", k=60)) + HOSTILE[row % len(HOSTILE)][:300]
        rows.append((NAMES[row % 3], text.encode("utf-8", "replace").decode()))
    write_rows(folder / "rows.csv", rows)
    spec = PreparationSpec(CharEncoder(feature_len=FEATURE_LEN), SplitOptions(0.3, 0.1))
    prepare(find_sources([str(folder / "rows.csv")]), folder / "data", spec)
    flags = ["--data", str(folder / "data"), "--run-dir", str(folder / "one"), *QUICK, "--logging.report=true"]
    crepe_dist.train.train(parse(flags))
    return folder


@pytest.fixture
def copy(place, tmp_path):
    """A copy of the run ``one``, which the test may change."""
    return shutil.copytree(place / "one", tmp_path / "one")


@needs_kernels
class TestReport:
    def test_says_what_came_out_and_harms_nobody(self, place):
        result = json.loads((place / "one" / "result.json").read_text())
        text = checked((place / "one" / "report.html").read_text()).text
        scores = open_run(place / "one").multiclass_test_scores
        assert scores is not None
        for piece in (
            f"test accuracy {percent(result['test_accuracy'])} ",
            f"macro F1 {scores.macro_f1:.3f} ",
            f"calibration error {percent(scores.calibration_error)} ",
            f"Epoch {result['epoch']} of 2 ",
        ):
            assert piece in text
        assert NAMES[0] in text
        assert "\\x1b[31mred\\u202e www.x.example" in text
        shown = open_dataset(place / "data").splits["test"].text(scores.mistakes[0].row)
        assert str(shown).split()[1] in text

    def test_is_a_function_of_the_folder_and_the_data(self, place, copy):
        page = (place / "one" / "report.html").read_text()
        (copy / "report.html").unlink()
        list(run_page.write_for(RunDir(copy), open_dataset(place / "data"), print))
        assert (copy / "report.html").read_text().replace(str(copy), str(place / "one")) == page

    def test_a_full_disk_does_not_end_a_finished_run(self, copy, place, monkeypatch):
        said: list[str] = []
        (copy / "report.html").unlink()

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(run_page, "write_text", full)
        list(run_page.write_for(RunDir(copy), open_dataset(place / "data"), said.append))
        assert "could not be written (OSError" in said[-1]
        assert "No space left" in said[-1]

    @pytest.mark.parametrize("file", ["result.json", "checkpoints/*.scores.json"])
    def test_a_damaged_file_is_an_error_without_a_traceback(self, copy, file):
        for path in copy.glob(file):
            path.write_text(json.dumps({**json.loads(path.read_text()), "provenance": 7, "splits": {"test": 7}}))
        with pytest.raises(UserError, match="is damaged"):
            open_run(copy)

    @pytest.mark.parametrize("count", [2, 14, 200])
    def test_any_number_of_classes_can_be_read(self, place, count):
        generator = np.random.default_rng(count)
        scores = replace(made_up(count, generator), is_correct=None)
        record = open_run(place / "one")
        about = {**record.metadata, "classes": [f"class {number}" for number in range(count)]}
        markup = run_page.page(replace(record, metadata=about, scores={"test": scores}, result=None), [])
        text = checked(markup).text
        assert "class 1" in text
        assert (">other classes<" in markup) == (count > 30)
        assert len(markup) < 1_000_000

    def test_warns_of_what_novices_overlook(self, place):
        record = open_run(place / "one")
        epochs = [
            {**record.history.epochs[0], "epoch": number, "validation_loss": loss}
            for number, loss in enumerate((1.0, 0.5, 0.9), 1)
        ]
        history = replace(record.history, epochs=epochs)
        always_first = MulticlassScores(
            np.array([[40, 0, 0]] * 3), 1.0, np.array([[120, 40, 110 * MILLION]] + [[0] * 3] * 14), []
        )
        record = replace(record, history=history, scores={"test": always_first})
        found = [each["what"] for each in findings.warnings(record, ["a", "b", "c"])]
        starts = (
            "the model is no better",
            "the test split is small",
            "2 classes are never",
            "overfitting",
        )
        assert len(found) == len(starts)
        assert all(map(str.startswith, found, starts))


def made_up(count, generator):
    wrong = generator.integers(1, 4, (count, count)) * (generator.random((count, count)) < 0.2)
    confusion = wrong + 30 * np.eye(count, dtype=np.int64)
    documents = int(confusion.sum())
    reliability = np.zeros((BINS, 3), np.int64)
    reliability[10] = documents, np.trace(confusion), documents * 7 * MILLION // 10
    return MulticlassScores(confusion, 1.0, reliability, [Mistake(0, 0, 0.1, ((1, 0.9),))])


def test_markdown_shows_hostile_names_as_they_are():
    markdown = pytest.importorskip("markdown")
    read = Page(markdown.markdown("\n\n".join(map(escaped, NAMES)), extensions=["tables", "fenced_code"]))
    assert not {"a", "img", "script"} & set(read.elements)
    shown = " ".join(read.text.split())
    for name in (NAMES[0], NAMES[1], "\\x1b[31mred\\u202e www.x.example"):
        assert name in shown


class TestNumbers:
    def test_wilson_s_interval(self):
        # Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E, table I, method 3.
        for right, documents, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
            assert score_page.interval(right, documents) == pytest.approx((low, high), abs=1e-4)
